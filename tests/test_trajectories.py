"""Against trajectories made by torch.optim: trajectories/table.py says which call is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trajectories.table import KEPT, ROWS, STEPS, Row

import gradx

FILE = Path(__file__).parent / "trajectories" / "torch.npz"


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(FILE) as file:
        return dict(file)


def test_the_file_is_of_this_table(stored: dict[str, Any]) -> None:
    kept = {key.split("/")[1]: str(stored[key]) for key in stored if key.startswith("recipe/")}
    made = {key: row.recipe() for key, row in ROWS.items()}
    assert kept == made, "run tests/trajectories/make_torch.py"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("key", ROWS)
def test_as_in_torch(key: str, dtype: str, stored: dict[str, Any]) -> None:
    row = ROWS[key]
    with jax.enable_x64(dtype == "float64"):
        after = follow(row, stored, dtype)
    # Relative to the largest parameter: the rounding of 30 steps.
    rtol = {"float64": 1e-12, "float32": 2e-6}[dtype]
    for name, p in after.items():
        want = stored[f"after/{key}/{name}"]
        assert p.dtype == dtype
        np.testing.assert_allclose(p, want, rtol=rtol, atol=rtol * np.abs(want).max())


def follow(row: Row, stored: dict[str, Any], dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters after the kept steps, all steps in one scan."""

    def tree(prefix: str) -> dict[str, jax.Array]:
        return {name: jnp.asarray(stored[f"{prefix}/{name}"], dtype) for name in ("b", "w")}

    tx, params, grads = row.ours(gradx), tree("params"), tree(f"grads/{row.grads}")

    def step(carry: Any, grad: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = gradx.apply_updates(params, updates)
        return (params, state), params

    _, path = jax.lax.scan(step, (params, tx.init(params)), grads, length=STEPS)
    return {name: np.asarray(p)[np.array(KEPT) - 1] for name, p in path.items()}
