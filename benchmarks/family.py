"""Times each step of the matrix optimizers over one renewal, as some steps take longer."""

from __future__ import annotations

import gc
import importlib.util
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import cases, markdown
from benchmarks.clock import forget_freed_memory, seconds
from benchmarks.runners import HeavyBallRunner, Runner, Work, of_gradx, torch_device
from benchmarks.settings import Settings

GROUP = "family"
BASELINE = "muon"


def measure(settings: Settings) -> dict[str, Any]:
    chosen = [case for case in cases.CASES if case.group == GROUP]
    chosen = [case for case in chosen if case in cases.chosen(settings.rows, settings.within)]
    work = Work("blocks", settings.quick)
    muon = of_gradx(next(case for case in cases.CASES if case.name == BASELINE), work)
    muon.run(0)
    rows = []
    for case in chosen:
        runners: dict[str, Runner] = {"gradx": of_gradx(case, work)}
        if case.heavyball and settings.torch and _has_heavyball():
            runners["heavyball"] = HeavyBallRunner(case.heavyball, work)
        rows.append({"name": case.name, "group": case.group} | _row(runners, muon, case.calls))
        for runner in runners.values():
            runner.free()
        del runners
        jax.clear_caches()
        gc.collect()
        print(f"  {case.name}: {_summary(rows[-1])}", file=sys.stderr, flush=True)
    muon.free()
    work.free()
    return {"rows": rows}


def _has_heavyball() -> bool:
    return torch_device() == "cpu" and importlib.util.find_spec("heavyball") is not None


def _row(runners: dict[str, Runner], muon: Runner, cycle: int) -> dict[str, Any]:
    """Times the first step, and each of the `cycle` steps after it, in turn with steps of Muon."""
    first = {name: seconds(runner.run, 0) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in (*runners, BASELINE)}
    for step in range(1, max(cycle, 5) + 1):
        for name, runner in {**runners, BASELINE: muon}.items():
            forget_freed_memory()
            times[name].append(seconds(runner.run, step))
    base = float(np.mean(times.pop(BASELINE)))
    competitors = {
        name: {
            "first": first[name],
            "mean": float(np.mean(taken)),
            "slowest": max(taken),
            "of_muon": float(np.mean(taken)) / base,
            **runners[name].facts(),
        }
        for name, taken in times.items()
    }
    return {"competitors": competitors, "ratios": {}}


def _summary(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {1e3 * c['mean']:.0f} ms a step, slowest {1e3 * c['slowest']:.0f}, "
        f"first {1e3 * c['first']:.0f}, {c['of_muon']:.2f} of {BASELINE}"
        for name, c in row["competitors"].items()
    )


def render(results: dict[str, dict[str, Any]]) -> str:
    (data,) = results.values()
    rows = []
    for row in data["rows"]:
        mine, theirs = (row["competitors"].get(name) for name in ("gradx", "heavyball"))
        rows.append(
            [
                row["name"],
                markdown.number(1e3 * mine["mean"], 0),
                markdown.number(mine["of_muon"], 2),
                markdown.number(1e3 * mine["slowest"], 0),
                markdown.number(mine["slowest"] / mine["mean"], 2),
                markdown.number(1e3 * mine["first"], 0),
                markdown.number(mine["temporaries"]),
                markdown.number(mine["state"]),
                markdown.number(theirs and 1e3 * theirs["mean"], 0),
                markdown.number(theirs and mine["mean"] / theirs["mean"], 2),
            ]
        )
    head = ["", "mean ms", f"of {BASELINE}'s", "slowest ms", "slowest / mean", "first ms"]
    head += ["temporaries", "state", "HeavyBall mean ms", "gradx/HeavyBall"]
    return (
        f"A step on the parameters of the step times, over one renewal of what is renewed (the "
        f"steps after the first, which also finds the first bases), with steps of {BASELINE} in "
        "between, and of HeavyBall where it is installed and has the algorithm (not compiled by "
        "torch, bases renewed as often). Temporaries and state in bytes a parameter.\n\n"
        + markdown.table(head, rows)
    )
