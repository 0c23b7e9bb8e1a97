"""Against trajectories made by other implementations: trajectories/table.py and table_others.py
say which call is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import first_of
from trajectories import table_others
from trajectories.table import KEPT, ROWS, STEPS

import gradx

HERE = Path(__file__).parent / "trajectories"

Stored = dict[str, np.ndarray[Any, Any]]


def load(name: str) -> Stored:
    with np.load(HERE / name) as file:
        return dict(file)


@pytest.fixture(scope="module")
def stored() -> Stored:
    return load("torch.npz")


@pytest.fixture(scope="module")
def others() -> Stored:
    return load("others.npz")


@pytest.mark.parametrize(
    ("file", "rows", "script"),
    [("torch.npz", ROWS, "make_torch.py"), ("others.npz", table_others.ROWS, "make_others.py")],
)
def test_the_file_is_of_this_table(file: str, rows: Any, script: str) -> None:
    arrays = load(file)
    kept = {key.split("/")[1]: str(arrays[key]) for key in arrays if key.startswith("recipe/")}
    made = {key: row.recipe() for key, row in rows.items()}
    assert kept == made, f"run tests/trajectories/{script}"


def arrays_of(stored: Stored, prefix: str) -> Stored:
    return {name: stored[f"{prefix}/{name}"] for name in ("b", "w")}


def each(rows: Any, prefix: str = "") -> Any:
    """Marks a test to run over these rows; those that repeat others, under ``-m full``."""
    marks = [[pytest.mark.full] * (prefix + key in oracles.repetitions()) for key in rows]
    marked = [pytest.param(key, marks=m) for key, m in zip(rows, marks, strict=True)]
    return pytest.mark.parametrize("key", marked)


@first_of("dtype", ["float64", "float32"])
@each(ROWS, "torch ")
def test_as_in_torch(key: str, dtype: str, stored: Stored) -> None:
    row = ROWS[key]
    with jax.enable_x64(dtype == "float64"):
        given = {"grads": arrays_of(stored, f"grads/{row.grads}")}
        after = follow(row.ours(gradx), arrays_of(stored, "params"), given, dtype)
    # Relative to the largest parameter: the rounding of 30 steps.
    assert_as_stored(key, after, stored, {"float64": 1e-12, "float32": 2e-6}[dtype])


@each(table_others.ROWS)
def test_as_in_others(key: str, stored: Stored, others: Stored) -> None:
    """In float64 only: that is where an algorithm shows, and the laws look at float32."""
    row = table_others.ROWS[key]
    if row.ahead:
        with pytest.raises(AttributeError):  # if not: the row is ahead no more
            row.ours(gradx)
        return
    given: dict[str, Any] = {}
    if row.grads != "curved":
        given["grads"] = row.grads_as(arrays_of(stored, f"grads/{row.grads}"))
    if row.value:
        given["value"] = others["losses"]
    with jax.enable_x64(True):
        after = follow(
            row.ours(gradx),
            row.params_as(arrays_of(stored, "params")),
            given,
            "float64",
            curvature=arrays_of(others, "curvature"),
            start=row.start,
            read=row.read,
        )
    assert_as_stored(key, after, others, row.rtol)


def follow(
    tx: Any,
    params: Stored,
    given: dict[str, Any],
    dtype: str,
    *,
    curvature: Stored | None = None,
    start: Any = lambda lib, params: params,
    read: Any = lambda lib, params, state: params,
) -> Stored:
    """The parameters after the kept steps, all steps in one scan.

    Without gradients among what is given, they are those of a bowl with this curvature.
    """

    def cast(arrays: Any) -> Any:
        wide = np.result_type(dtype, np.complex64)
        return jax.tree.map(lambda a: jnp.asarray(a, wide if np.iscomplexobj(a) else dtype), arrays)

    first, curved = start(gradx, cast(params)), cast(curvature)

    def step(carry: Any, given: Any) -> tuple[Any, Any]:
        params, state = carry
        extra = dict(given)
        grad = extra.pop("grads", None)
        if grad is None:
            grad = jax.tree.map(jnp.multiply, curved, params)
        updates, state = tx.update(grad, state, params, **extra)
        params = gradx.apply_updates(params, updates)
        return (params, state), read(gradx, params, state)

    _, path = jax.lax.scan(step, (first, tx.init(first)), cast(given), length=STEPS)
    return {name: np.asarray(p)[np.array(KEPT) - 1] for name, p in path.items()}


def assert_as_stored(key: str, after: Stored, stored: Stored, rtol: float) -> None:
    for name, p in after.items():
        want = stored[f"after/{key}/{name}"]
        assert p.dtype == want.dtype or p.dtype == np.float32
        np.testing.assert_allclose(p, want, rtol=rtol, atol=rtol * np.abs(want).max())


def test_lbfgs_as_in_scipy(stored: Stored, others: Stored) -> None:
    """The two loops, against the product that SciPy's L-BFGS-B returns; JAX brings SciPy along."""
    from scipy.optimize import LbfgsInvHessProduct

    curved, p = others["curvature/b"], stored["params/b"]
    seen: list[tuple[Any, Any]] = []
    with jax.enable_x64(True):
        tx = gradx.scale_by_lbfgs(memory_size=3, scale_init_precond=False)
        update, state = jax.jit(tx.update), tx.init(jnp.asarray(p))
        for _ in range(6):
            g = curved * p + 0.1 * p**3
            seen.append((p, g))
            made, state = update(jnp.asarray(g), state, jnp.asarray(p))
            pairs = [np.diff(x, axis=0)[-3:] for x in zip(*seen, strict=True)]
            inverse = LbfgsInvHessProduct(*pairs) if len(seen) > 1 else np.eye(5)
            np.testing.assert_allclose(made, inverse @ g, rtol=1e-10)
            p = p - 0.5 * np.asarray(made)


def test_the_page_of_oracles() -> None:
    page = HERE.parent.parent / "docs" / "oracles.md"
    assert page.read_text() == oracles.page(), "run python tests/oracles.py > docs/oracles.md"
