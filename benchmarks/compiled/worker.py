"""Reads jobs from standard input, one a line, compiles each, and answers with its cost.

`runs.py` starts `python -m benchmarks.compiled.worker CHIP`, and starts it again if a compiler has
ended the process.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradx
from benchmarks import cases, trees
from benchmarks.compiled import program, ways
from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.jobs import ROOT, Job
from benchmarks.runners import step_of

MODULES = {"gradx": gradx, "optax": optax}


def main(chip: str) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    ways.change()
    try:
        print(json.dumps({"ready": len(CHIPS[chip].devices())}), flush=True)
    except Exception as error:  # a topology that the installed compiler does not know
        print(json.dumps({"refused": str(error)[:200]}), flush=True)
        return
    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            result = measure(CHIPS[chip], job)
        except Exception as error:  # a refusal by the compiler is a result, too
            result = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(json.dumps(result), flush=True)
        jax.clear_caches()


def measure(chip: Chip, job: Job) -> dict[str, Any]:
    """The cost of a job on a chip: bytes and operations a parameter (and device)."""
    shapes, devices = trees.TREES[job.tree](False), chip.devices(many=job.sharded)
    begin = time.process_time()
    step = compiled(case_of(job), job.library, shapes, devices)
    seconds = time.process_time() - begin
    text, n = step.as_text(), trees.size(shapes)
    cost = program.cost(text)
    handed, branches = program.conditionals(text)
    return {
        "moved": round(cost.moved / n, 4),
        **({"branch": round(branches / n, 4), "handed": round(handed / n, 4)} if handed else {}),
        "temporaries": round(program.temporaries(step) / n, 4),
        "kernels": cost.kernels,
        "operations": round(program.operations(step) / n, 1),
        "collectives": {name: round(b / n, 4) for name, b in sorted(cost.collectives.items())},
        "devices": len(devices),
        "seconds": round(seconds, 1),
    }


def case_of(job: Job) -> cases.Case:
    """The row of a job, from the benchmark's table or from the table of the tests."""
    tables = {"benchmarks": cases.CASES, "watched": cases.WATCHED}
    if job.table in tables:
        return next(case for case in tables[job.table] if case.name == job.row)
    sys.path.insert(0, str(ROOT / "tests"))
    row = next(row for row in importlib.import_module("cases").CASES if row.id == job.row)
    return cases.Case(row.id, row.ready)


def compiled(case: cases.Case, library: str, shapes: trees.Shapes, devices: list[Any]) -> Any:
    """The program of one step, with donated parameters and state.

    For many devices, arrays and results are sharded by their first axis if it divides, except for
    arrays that `init` shards itself.
    """
    tx = case.make(MODULES[library])
    step = step_of(MODULES[library], case, tx)
    bare = {
        layer: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()}
        for layer, named in shapes.items()
    }
    if len(devices) == 1:
        alone = jax.sharding.SingleDeviceSharding(devices[0])
        params, state = _placed((bare, jax.eval_shape(tx.init, bare)), lambda x: alone)
        return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))

    def by_rows(x: Any) -> Any:
        divides = x.shape and x.shape[0] % len(devices) == 0
        return jax.sharding.NamedSharding(mesh, jax.P("x") if divides else jax.P())

    with jax.set_mesh(mesh):
        params = _placed(bare, by_rows)
        of_init = jax.jit(tx.init).lower(params).compile().output_shardings
        state = jax.tree.map(
            lambda x, sharding: _placed(
                x, lambda x: by_rows(x) if sharding.is_fully_replicated else sharding
            ),
            jax.eval_shape(tx.init, bare),
            of_init,
        )
        shardings = jax.tree.map(lambda x: x.sharding, (params, state))
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
        return jitted.lower(params, state, params).compile()


def _placed(tree: Any, where: Callable[[Any], Any]) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), tree)


if __name__ == "__main__":
    main(*sys.argv[1:])
