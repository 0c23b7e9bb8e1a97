"""`python -m benchmarks --target …`: compiles for a chip that need not be there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax

from benchmarks.compiled import chips, page, runs, stored, ways
from benchmarks.compiled.jobs import STUDIES, Job, asked
from benchmarks.compiled.runs import Result


def arguments(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("compiled for a chip that need not be there")
    group.add_argument("--target", metavar="CHIP", help=", ".join(chips.CHIPS))
    group.add_argument(
        "--study",
        default="rows",
        choices=STUDIES,
        help="rows on one chip; matrix rules on a mesh; gradx's mechanisms on one chip, or sharded",
    )
    group.add_argument("--workers", type=int, default=1, help="compilers at a time")
    group.add_argument("--resume", action="store_true", help="only what the file lacks")
    group.add_argument(
        "--check",
        action="store_true",
        help="compare gradx's rows with the file instead, and fail where one is worse",
    )
    group.add_argument(
        "--within", type=float, metavar="SECONDS", help="only what the file says is that fast"
    )
    group.add_argument(
        "--way",
        action="append",
        default=[],
        metavar="NAME=TARGETS",
        help="let a way of gradx/lowering/policy.py act on these targets alone, as in reread= or "
        "reread=cpu,gpu, and say what that costs; nothing is kept",
    )
    group.add_argument("--json", type=Path, help="the file, instead of results/compiled-CHIP.json")


def main(args: argparse.Namespace) -> None:
    chip = chips.named(args.target)
    chip.check(many=args.study in ("mesh", "sharded"))
    jax.config.update("jax_platforms", "cpu")  # of this process, which only lists jobs
    jobs = asked(args.study, chip, args.rows)
    if args.way:
        runs.run(ways.changed(chip, args.way), jobs, _say, args.workers)
        return
    path = args.json or stored.file_of(chip.name, args.study)
    before = stored.load(path)
    if args.within is not None:
        results = {} if before is None else before.results
        jobs = [j for j in jobs if j in results and results[j].get("seconds", 0) <= args.within]
    if args.check:
        _check(chip, jobs, before, args.workers)
        return
    kept = _begin(chip, args.study, bool(args.rows), args.resume, before, path)
    order = asked(args.study, chip, "")
    jobs = [job for job in jobs if not (args.resume and job in kept.results)]

    def keep(job: Job, result: Result) -> None:
        _say(job, result)
        kept.results[job] = result
        kept.results = {job: kept.results[job] for job in order if job in kept.results}
        kept.save(path)

    runs.run(chip, jobs, keep, args.workers)
    if args.out:
        args.out.write_text(page.render())
    else:
        print(page.section(kept))


def _begin(
    chip: chips.Chip, study: str, some: bool, resume: bool, before: stored.Stored | None, path: Path
) -> stored.Stored:
    """The results to add to: those of the file, if it is of the same versions, or none."""
    if before is None or not (some or resume):
        return stored.Stored(chip.name, study, stored.versions(chip))
    _same_versions(chip, before, "measure all rows (no --rows, no --resume), or use another --json")
    return before


def _same_versions(chip: chips.Chip, before: stored.Stored, otherwise: str) -> None:
    here = stored.versions(chip)
    if before.versions != here:
        raise SystemExit(
            f"the stored table is of {before.versions}, and here are {here}: {otherwise}"
        )


def _check(chip: chips.Chip, jobs: list[Job], before: stored.Stored | None, workers: int) -> None:
    if before is None:
        raise SystemExit("--check compares with a stored table, and there is none for this target")
    _same_versions(chip, before, "install the table's")
    complaints: list[str] = []

    def keep(job: Job, result: Result) -> None:
        _say(job, result)
        complaints.extend(f"{job.row}: {x}" for x in stored.worse(result, before.results.get(job)))

    runs.run(chip, [job for job in jobs if job.library == "gradx"], keep, workers)
    if complaints:
        raise SystemExit("worse than the stored table:\n  " + "\n  ".join(complaints))


def _say(job: Job, result: Result) -> None:
    where = f"{job.row} ({job.library}{', sharded' if job.sharded else ''})"
    print(f"{where}: {page.short(result)}", file=sys.stderr, flush=True)
