"""Times what a step costs before it runs: tracing, lowering and compiling it, on 1,000 leaves."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradx
from benchmarks import cases, markdown, trees
from benchmarks.clock import paired, rotation, spread
from benchmarks.runners import Tree, check, step_of
from benchmarks.settings import Settings

MODULES = {"gradx": gradx, "optax": optax}
KINDS = {
    "trace": "trace + lower",
    "compile": "compile",
    "compile_cpu": "compile, CPU time",
    "all": "trace + lower + compile",
}


def measure(settings: Settings) -> dict[str, Any]:
    chosen = cases.chosen(settings.rows)
    check(chosen, MODULES)
    shapes = trees.thousand(settings.quick)
    params, small = _abstract(shapes), _abstract(trees.thousand(True))
    rows = []
    for case in chosen:
        for name in case.libraries:  # the first compilation in a process costs more
            _cost(case, name, small)
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in case.libraries}
        repeats = settings.compile_repeats if case.compile_cost else settings.trace_repeats
        for _, name in rotation(case.libraries, repeats):
            samples[name].append(_cost(case, name, params))
        rows.append({"name": case.name, "group": case.group} | _row(samples))
        print(f"  {case.name}: {_summary(rows[-1])}", file=sys.stderr, flush=True)
    return {"leaves": len(trees.leaves(shapes)), "rows": rows}


def _abstract(shapes: trees.Shapes) -> Tree:
    return {
        layer: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()}
        for layer, named in shapes.items()
    }


def _cost(case: cases.Case, name: str, params: Tree) -> dict[str, float]:
    """Seconds to trace and lower, and to compile if the row says so, with nothing cached."""
    tx = case.make(MODULES[name])
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(step_of(MODULES[name], case, tx), donate_argnums=(0, 1))
    jax.clear_caches()
    gc.collect()
    begin = time.perf_counter()
    lowered = step.lower(params, state, params)
    middle, cpu = time.perf_counter(), time.process_time()
    if not case.compile_cost:
        return {"trace": middle - begin}
    lowered.compile()
    return {
        "trace": middle - begin,
        "compile": time.perf_counter() - middle,
        "compile_cpu": time.process_time() - cpu,  # of all threads
        "all": time.perf_counter() - begin,
    }


def _row(samples: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    columns = {
        name: {kind: [sample[kind] for sample in taken] for kind in KINDS if kind in taken[0]}
        for name, taken in samples.items()
    }
    ours = columns["gradx"]
    return {
        "competitors": {
            name: {kind: spread(column[kind]) for kind in column}
            for name, column in columns.items()
        },
        "ratios": {
            name: {kind: paired(ours[kind], column[kind]) for kind in column}
            for name, column in columns.items()
            if name != "gradx"
        },
    }


def _summary(row: dict[str, Any]) -> str:
    return ", ".join(
        name + "".join(f" {spent['median']:.2f} s" for spent in c.values())
        for name, c in row["competitors"].items()
    )


def render(results: dict[str, dict[str, Any]]) -> str:
    (data,) = results.values()
    rows = []
    for row in data["rows"]:
        cells = [row["name"]]
        for kind in KINDS:
            cells += [
                markdown.number(row["competitors"].get(name, {}).get(kind, {}).get("median"), 2)
                for name in ("gradx", "optax")
            ]
            cells.append(markdown.ratio(row["ratios"].get("optax", {}).get(kind)))
        rows.append(cells)
    head = [f"{title}: {cell}" for title in KINDS.values() for cell in ("gradx", "optax", "ratio")]
    return (
        f"A step on {data['leaves']:,} small float32 leaves of ten shapes; `jax.clear_caches()` "
        "before each sample. Seconds on the clock, and for compilation also those of the "
        "processor, on which other work on the machine has less influence.\n\n"
        + markdown.table(["", *head], rows)
    )
