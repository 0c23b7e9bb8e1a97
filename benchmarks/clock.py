"""Interleaved timing: medians, quartiles, and ratios paired within a repeat."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np


class Spread(TypedDict):
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    low, median, high = np.percentile(samples, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def paired(ours: Sequence[float], theirs: Sequence[float], scale: float = 1.0) -> Spread:
    """The spread of `ours / (scale * theirs)`, each ratio from samples of the same repeat.

    If the machine is slow for a while, both are, and the ratio stays.
    """
    return spread([a / (scale * b) for a, b in zip(ours, theirs, strict=True)])


def rotation(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Every name once in each repeat, and another one first each time."""
    names = list(names)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            yield repeat, name


def interleaved(
    programs: Mapping[str, Callable[[int], object]], repeats: int, pause: float
) -> dict[str, list[float]]:
    """Seconds of each run; in each repeat every program runs once, after a rest."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat, name in rotation(list(programs), repeats):
        time.sleep(pause)
        forget_freed_memory()
        times[name].append(seconds(programs[name], repeat))
    return times


def forget_freed_memory() -> None:
    """Gives freed memory back to the system, so that competitors do not inherit it.

    Otherwise memory that one competitor freed (torch's foreach, mostly) spares the next one the
    page faults of its temporaries, and a step's time depends on its neighbours.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def seconds(work: Callable[..., object], *args: object) -> float:
    begin = time.perf_counter()
    work(*args)
    return time.perf_counter() - begin
