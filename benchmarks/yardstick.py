"""The yardstick: measures how fast this machine reads and writes memory, by an in-place axpy."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import markdown
from benchmarks.clock import seconds, spread
from benchmarks.runners import JaxRunner, Work, axpy
from benchmarks.settings import Settings

AXPY = 12  # bytes a parameter: p and g are read, p is written, in float32
ADAMW = 28  # p, g, mu and nu are read, p, mu and nu are written


def measure(settings: Settings) -> dict[str, Any]:
    work = Work("wide" if settings.large else "blocks", settings.quick)
    runner = JaxRunner(axpy, (), work, settings.burst)
    for i in range(settings.warmup):
        runner.run(i)
    times = []
    for i in range(2 * settings.repeats):
        time.sleep(settings.pause)
        times.append(seconds(runner.run, i) / runner.calls)
    runner.free()
    work.free()
    ms = spread([1e3 * t for t in times])
    return {
        "parameters": work.n,
        "ms": ms,
        "gb_per_s": AXPY * work.n / ms["median"] / 1e6,
        "adamw_ms": ms["median"] * ADAMW / AXPY,
    }


def render(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            title,
            markdown.milliseconds(data),
            f"{data['ms']['low']:.2f}–{data['ms']['high']:.2f}",
            markdown.number(data["gb_per_s"]),
            markdown.number(data["adamw_ms"], 2),
        ]
        for title, data in results.items()
    ]
    n = next(iter(results.values()))["parameters"]
    return (
        f"The in-place axpy `p - 1e-3 * g` with `p` donated moves {AXPY} bytes a parameter, here "
        f"for {n:,} parameters in float32 leaves. The last column is "
        f"the time that AdamW's {ADAMW} bytes a parameter would take at that rate.\n\n"
        + markdown.table(["process", "axpy ms", "quartiles", "GB/s", f"{ADAMW} B/param, ms"], rows)
    )
