"""Compiles rows and says what they cost, one JSON object a line; a compiler may end the process.

`python -m benchmarks.compiled.worker CHIP ROW LIBRARY …`, started by `runs.py`, which starts it again
with the rows that are left.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradx
from benchmarks import cases, trees
from benchmarks.compiled import program
from benchmarks.compiled.chips import CHIPS
from benchmarks.runners import step_of

MODULES = {"gradx": gradx, "optax": optax}


def compiled(case: cases.Case, library: Any, shapes: trees.Shapes, sharding: Any) -> Any:
    """The program of one step, with donated parameters and state."""

    def placed(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    bare = {
        layer: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()}
        for layer, named in shapes.items()
    }
    tx = case.make(library)
    state = jax.eval_shape(tx.init, bare)
    params = placed(bare)
    jitted = jax.jit(step_of(library, case, tx), donate_argnums=(0, 1))
    return jitted.lower(params, placed(state), params).compile()


def measure(chip: str, row: str, library: str, tree: str | None = None) -> dict[str, Any]:
    """What a row costs on a chip; bytes are given per parameter."""
    case = next(c for c in cases.CASES if c.name == row)
    shapes = trees.TREES[tree or case.compiled_tree](False)
    sharding = jax.sharding.SingleDeviceSharding(CHIPS[chip].devices()[0])
    begin = time.process_time()
    made = compiled(case, MODULES[library], shapes, sharding)
    seconds = time.process_time() - begin
    text = made.as_text()
    cost, n = program.cost(text), trees.size(shapes)
    return {
        "moved": cost.moved / n,
        "temporaries": program.temporaries(made) / n,
        "kernels": cost.kernels,
        "seconds": seconds,
    }


def main(chip: str, *rows: str) -> None:
    for row, library in zip(rows[::2], rows[1::2], strict=True):
        print(json.dumps({"begins": [row, library]}), flush=True)
        try:
            made = measure(chip, row, library)
        except Exception as error:  # whatever a compiler refuses is a result
            made = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps({"row": row, "library": library, **made}), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main(*sys.argv[1:])
