"""Measures a step: its time, its temporaries, the bytes it touches, the bytes its state holds."""

from __future__ import annotations

import gc
import math
import sys
import time
from typing import Any

import jax
import optax

import gradx
from benchmarks import cases, family, markdown, yardstick
from benchmarks.clock import interleaved, paired, spread
from benchmarks.runners import Runner, Work, check, competitors
from benchmarks.settings import Settings

MODULES = {"gradx": gradx, "optax": optax}


def measure(settings: Settings) -> dict[str, Any]:
    chosen = [c for c in cases.chosen(settings.rows, settings.within) if c.group != family.GROUP]
    check(chosen, MODULES)
    # If time may run out, rows that torch has too come first.
    chosen = sorted(chosen, key=lambda case: settings.minutes < math.inf and case.torch is None)
    trees = [case.compiled_tree if settings.large else case.tree for case in chosen]
    works = {tree: Work(tree, settings.quick) for tree in set(trees)}
    rows, end = [], time.monotonic() + 60 * settings.minutes
    for case, tree in zip(chosen, trees, strict=True):
        if time.monotonic() > end:
            break
        work = works[tree]
        runners = competitors(case, work, MODULES, settings.torch, settings.burst)
        rows.append({"name": case.name, "group": case.group} | _row(case, runners, settings))
        for runner in runners.values():
            runner.free()
        del runners
        jax.clear_caches()
        gc.collect()
        print(f"  {case.name}: {_summary(rows[-1])}", file=sys.stderr, flush=True)
    for work in works.values():
        work.free()
    return {"rows": rows, "left_out": [case.name for case in chosen[len(rows) :]]}


def _row(case: cases.Case, runners: dict[str, Runner], settings: Settings) -> dict[str, Any]:
    for runner in runners.values():
        for i in range(settings.warmup):
            runner.run(i)
    gc.collect()
    gc.disable()
    programs = {name: runner.run for name, runner in runners.items()}
    taken = interleaved(programs, settings.repeats, settings.pause)
    gc.enable()
    times = {name: [t / runners[name].calls for t in of] for name, of in taken.items()}
    facts = {name: runner.facts() for name, runner in runners.items()}
    # The step's least traffic, in units of the axpy's.
    least = (facts["gradx"]["least"] or 0.0) / yardstick.AXPY
    return {
        "competitors": {
            name: {"ms": spread([1e3 * t for t in times[name]])} | facts[name] for name in runners
        },
        "ratios": {
            name: paired(times["gradx"], times[name]) for name in runners if name != "gradx"
        },
        "bandwidth": paired(times["gradx"], times["axpy"], least),
    }


def _summary(row: dict[str, Any]) -> str:
    parts = [f"{name} {c['ms']['median']:.2f} ms" for name, c in row["competitors"].items()]
    ratio = row["ratios"].get("optax")
    return ", ".join(parts) + (f"; ratio {ratio['median']:.3f}" if ratio else "")


# ---------------------------------------------------------------- tables


def render(results: dict[str, dict[str, Any]]) -> str:
    by_title = {title: {r["name"]: r for r in data["rows"]} for title, data in results.items()}
    (first, rows), *others = by_title.items()
    mine = [row["competitors"] for row in rows.values()]
    torch = sorted({c for row in mine for c in row if c.startswith("torch")}, reverse=True)

    timing = [
        [
            *_times(row),
            markdown.ratio(row["bandwidth"]),
            *(markdown.milliseconds(row["competitors"].get(mode)) for mode in torch),
            *(cell for _, other in others for cell in _times(other.get(name))[1:]),
        ]
        for name, row in rows.items()
    ]
    three = ["gradx ms", "optax ms", "gradx/optax"]
    head = ["", *three, "x bandwidth", *(f"{mode} ms" for mode in torch)]
    head += [f"{title}: {cell}" for title, _ in others for cell in three]

    memory = [
        [
            name,
            _both(row, "temporaries", 2),
            _both(row, "touched"),
            _both(row, "state"),
            *(
                cell
                for _, other in others
                for cell in (
                    _both(other.get(name), "temporaries", 2),
                    _both(other.get(name), "touched"),
                )
            ),
        ]
        for name, row in rows.items()
    ]
    memory_head = ["", "temporaries", "touched", "state"]
    memory_head += [f"{t}: {cell}" for t, _ in others for cell in ("temporaries", "touched")]
    return "\n\n".join(
        [
            f"Process: {first}. Ratios are medians of ratios within a repeat, with their "
            "quartiles; below 1 gradx is faster. *x bandwidth* is gradx's time over the time that "
            "the least possible traffic (gradients read; parameters and state read and written) "
            "takes at the axpy's rate, measured in the same repeats.",
            *_left_out(results),
            markdown.table(head, timing),
            "### Memory",
            "Bytes a parameter, gradx / optax: temporaries of the compiled step, bytes that XLA "
            "counts as accessed, and the state. These do not depend on the load of the machine.",
            markdown.table(memory_head, memory),
        ]
    )


def _left_out(results: dict[str, dict[str, Any]]) -> list[str]:
    names = {name for data in results.values() for name in data.get("left_out", [])}
    return [f"Left out, for want of time: {', '.join(sorted(names))}."] if names else []


def _times(row: dict[str, Any] | None) -> list[str]:
    if row is None:  # this process does not measure it
        return [""] * 4
    mine = row["competitors"]
    return [
        row["name"],
        markdown.milliseconds(mine["gradx"]),
        markdown.milliseconds(mine.get("optax")),
        markdown.ratio(row["ratios"].get("optax")),
    ]


def _both(row: dict[str, Any] | None, fact: str, digits: int = 1) -> str:
    if row is None:
        return ""
    mine = row["competitors"]
    return markdown.pair(mine["gradx"][fact], mine.get("optax", {}).get(fact), digits)
