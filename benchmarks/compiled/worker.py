"""Compiles what it is told on its standard input, a job a line, and answers with what it costs.

`python -m benchmarks.compiled.worker CHIP` is started by `runs.py`, and again where a compiler has
ended the process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradx
from benchmarks import cases, trees
from benchmarks.compiled import program
from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.jobs import ROOT, Job
from benchmarks.runners import step_of

MODULES = {"gradx": gradx, "optax": optax}


def main(chip: str) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        print(json.dumps({"ready": len(CHIPS[chip].devices())}), flush=True)
    except Exception as error:  # a topology that the installed compiler does not know
        print(json.dumps({"refused": str(error)[:200]}), flush=True)
        return
    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            made = measure(CHIPS[chip], job)
        except Exception as error:  # whatever a compiler refuses is a result
            made = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(json.dumps(made), flush=True)
        jax.clear_caches()


def measure(chip: Chip, job: Job) -> dict[str, Any]:
    """What a job costs on a chip: bytes and operations a parameter (and device)."""
    shapes, devices = trees.TREES[job.tree](False), chip.devices(many=job.sharded)
    begin = time.process_time()
    made = compiled(case_of(job), job.library, shapes, devices)
    seconds = time.process_time() - begin
    text, n = made.as_text(), trees.size(shapes)
    cost = program.cost(text)
    return {
        "moved": round(cost.moved / n, 4),
        "temporaries": round(program.temporaries(made) / n, 4),
        "kernels": cost.kernels,
        "operations": round(program.operations(made) / n, 1),
        "collectives": {name: round(b / n, 4) for name, b in sorted(cost.collectives.items())},
        "devices": len(devices),
        "seconds": round(seconds, 1),
    }


def case_of(job: Job) -> cases.Case:
    """The row, of the benchmark's table or of the one that the laws run over."""
    if job.table == "benchmarks":
        return next(case for case in cases.CASES if case.name == job.row)
    sys.path.insert(0, str(ROOT / "tests"))
    row = next(row for row in importlib.import_module("cases").CASES if row.id == job.row)
    return cases.Case(row.id, row.ready)


def compiled(case: cases.Case, library: str, shapes: trees.Shapes, devices: list[Any]) -> Any:
    """The program of one step, with donated parameters and state.

    For many devices arrays are sharded by their first axis, where it divides.
    """
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))

    def placed(x: Any) -> Any:
        by_rows = x.shape and x.shape[0] % len(devices) == 0
        sharding = jax.sharding.NamedSharding(mesh, jax.P("x") if by_rows else jax.P())
        alone = jax.sharding.SingleDeviceSharding(devices[0])
        where = sharding if len(devices) > 1 else alone
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    bare = {
        layer: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()}
        for layer, named in shapes.items()
    }
    tx = case.make(MODULES[library])
    params, state = jax.tree.map(placed, (bare, jax.eval_shape(tx.init, bare)))
    jitted = jax.jit(step_of(MODULES[library], case, tx), donate_argnums=(0, 1))
    with jax.set_mesh(mesh) if len(devices) > 1 else contextlib.nullcontext():
        return jitted.lower(params, state, params).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
