"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import cases, processes, report
from benchmarks.compiled import command
from benchmarks.sections import SECTIONS
from benchmarks.settings import ACCELERATOR, Settings

RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=report.__doc__)
    p.add_argument("--quick", action="store_true", help="small trees, few repeats: does it run?")
    p.add_argument(
        "--accelerator",
        action="store_true",
        help="for a GPU or TPU at hand: 100 million parameters, at most eight minutes",
    )
    p.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    p.add_argument("--sections", help=f"comma-separated: {','.join(SECTIONS)}")
    p.add_argument("--repeats", type=int, help="samples of each step time")
    p.add_argument("--compile-repeats", type=int, help="samples of each compile cost")
    p.add_argument("--no-torch", action="store_true", help="leave torch.optim out")
    p.add_argument("--out", type=Path, help="the Markdown file; without it, standard output")
    p.add_argument("--render", type=Path, metavar="JSON", help="measure nothing; show this run")
    command.arguments(p)
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    default = ACCELERATOR if args.accelerator else Settings()
    sections = tuple(args.sections.split(",")) if args.sections else default.sections
    unknown = set(sections) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"no section {sorted(unknown)}; there are {list(SECTIONS)}")
    cases.chosen(args.rows)
    if args.quick:
        default = replace(default, repeats=5, compile_repeats=2)
    return replace(
        default,
        rows=args.rows,
        sections=sections,
        quick=args.quick,
        repeats=args.repeats or default.repeats,
        compile_repeats=args.compile_repeats or default.compile_repeats,
        torch=not args.no_torch,
    )


def result_file(platform: str, date: str, settings: Settings) -> Path:
    """The file for the results. Only that of a full run has a name that git does not ignore."""
    full = settings in (Settings(), ACCELERATOR)
    return RESULTS / f"{platform}-{date}{'' if full else '-part'}.json"


def command_line(argv: list[str]) -> str:
    """The command as it was typed, with absolute paths cut to their names, for privacy."""
    plain = [Path(a).name if Path(a).is_absolute() else a for a in argv]
    return shlex.join(["python", "-m", "benchmarks", *plain])


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    if args.target:
        command.main(args)
        return
    if args.render:
        run = json.loads(args.render.read_text())
    else:
        settings = settings_of(args)
        begin = time.perf_counter()
        measured = processes.run_all(settings)
        run = {
            "date": datetime.date.today().isoformat(),
            "minutes": (time.perf_counter() - begin) / 60,
            "command": command_line(argv),
            "settings": asdict(settings),
            **measured,
        }
        path = result_file(run["machine"]["platform"], run["date"], settings)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(run, indent=1) + "\n")
        print(f"wrote {path.name}", file=sys.stderr)
    text = report.render(run)
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
