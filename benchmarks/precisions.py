"""Times Muon's step with the factors of its products in each precision."""

from __future__ import annotations

from typing import Any

import gradx
from benchmarks import cases, markdown
from benchmarks.clock import interleaved, paired, spread
from benchmarks.runners import JaxRunner, Work, step_of
from benchmarks.settings import Settings

# Values for `muon(dtype=…)`; None chooses by platform.
PRECISIONS: tuple[str | None, ...] = (None, "bfloat16", "float16", "default", "high", "highest")


def measure(settings: Settings) -> dict[str, Any]:
    work = Work("wide" if settings.large else "blocks", settings.quick)
    runners = {_name(dtype): _runner(dtype, work, settings) for dtype in PRECISIONS}
    for runner in runners.values():
        runner.run(0)
    programs = {name: runner.run for name, runner in runners.items()}
    times = interleaved(programs, settings.repeats, settings.pause)
    rows = [
        {
            "name": name,
            "group": "precisions",
            "gflop": (runner.facts()["flops"] or float("nan")) / 1e9,
            "ms": spread([1e3 * t / runner.calls for t in times[name]]),
            "of_first": paired(times[name], times[_name(None)]),
        }
        for name, runner in runners.items()
    ]
    for runner in runners.values():
        runner.free()
    work.free()
    return {"rows": rows}


def _name(dtype: str | None) -> str:
    return "by platform" if dtype is None else dtype


def _runner(dtype: str | None, work: Work, settings: Settings) -> JaxRunner:
    case = cases.Case("muon", lambda lib: lib.muon(1e-3, dtype=dtype))
    tx = case.make(gradx)
    return JaxRunner(step_of(gradx, case, tx), tx.init(work.params()), work, settings.burst)


def render(results: dict[str, dict[str, Any]]) -> str:
    (data,) = results.values()
    rows = [
        [
            row["name"],
            markdown.number(row["gflop"]),
            markdown.milliseconds({"ms": row["ms"]}),
            markdown.number(row["gflop"] / row["ms"]["median"] * 1e3, 0),
            markdown.ratio(row["of_first"]),
        ]
        for row in data["rows"]
    ]
    return (
        "A step of Muon with each `dtype=`, and the operations that XLA counts in it. The last "
        "column is its time over that of the default, in the same repeats.\n\n"
        + markdown.table(["dtype", "GFLOP", "ms", "GFLOP/s", "time / default"], rows)
    )
