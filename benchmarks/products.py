"""Times products of matrices on this machine: one by one, in stacks, and in a step of Muon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases, family, markdown
from benchmarks.clock import interleaved, paired, spread
from benchmarks.runners import Work, of_gradx
from benchmarks.settings import Settings

COUNT = 64
ONE = "one by one"


def measure(settings: Settings) -> dict[str, Any]:
    n = 64 if settings.quick else 512
    # Orthogonal, so that products of products neither grow nor vanish.
    seeds = np.random.default_rng(0).standard_normal((COUNT, n, n), dtype=np.float32)
    stack = jnp.asarray(np.linalg.qr(seeds)[0])
    work = Work("blocks", settings.quick)
    muon = of_gradx(next(c for c in cases.CASES if c.name == family.BASELINE), work)
    operations = dict.fromkeys((ONE, "in a stack"), 2.0 * COUNT * n**3)
    programs: dict[str, Callable[[int], object]] = {
        ONE: _ready(_one_by_one, stack),
        "in a stack": _ready(jnp.matmul, stack, stack),
        family.BASELINE: muon.run,
    }
    operations[family.BASELINE] = muon.facts()["flops"] or float("nan")
    for program in programs.values():
        program(0)
    times = interleaved(programs, settings.repeats, settings.pause)
    muon.free()
    work.free()
    rows = [
        {
            "name": name,
            "group": "products",
            "gflop": operations[name] / 1e9,
            "ms": spread([1e3 * t for t in times[name]]),
            "of_one": paired(times[name], times[ONE], operations[name] / operations[ONE]),
        }
        for name in programs
    ]
    return {"n": n, "rows": rows}


def _ready(program: Callable[..., Any], *arguments: Any) -> Callable[[int], object]:
    compiled = jax.jit(program).lower(*arguments).compile()
    return lambda repeat: jax.block_until_ready(compiled(*arguments))


def _one_by_one(stack: jax.Array) -> jax.Array:
    product = stack[0]
    for x in stack:
        product = product @ x
    return product


def render(results: dict[str, dict[str, Any]]) -> str:
    (data,) = results.values()
    rows = [
        [
            row["name"],
            markdown.number(row["gflop"]),
            markdown.number(row["ms"]["median"]),
            markdown.number(row["gflop"] / row["ms"]["median"] * 1e3, 0),
            markdown.ratio(row["of_one"]),
        ]
        for row in data["rows"]
    ]
    n = data["n"]
    return (
        f"{COUNT} products of {n}×{n} in float32, each by itself or all of them as one product of "
        f"stacks, and the step of {family.BASELINE}, with the operations that XLA counts in it. "
        "The last column is the time over that which as many operations take one by one, in the "
        "same repeats.\n\n"
        + markdown.table(["", "GFLOP", "ms", "GFLOP/s", "time / one by one"], rows)
    )
