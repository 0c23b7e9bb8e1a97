"""Many matrices at a time: in stacks, in chunks of them, or leaf by leaf as large ones on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_of
from compilers import counts_buffers
from matrix_runs import close, normal, run

import gradx
from gradx.lift import batching
from gradx.lowering import stacks


def for_cpus(tx: Any, shapes: dict[str, tuple[int, int]]) -> Any:
    """The compiled update of zeros, with donated gradients and state."""
    with jax.default_device(jax.devices("cpu")[0]):
        g = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        return jax.jit(tx.update, donate_argnums=(0, 1)).lower(g, tx.init(g)).compile()


Spied = list[tuple[Any, ...]]


def spied(monkeypatch: pytest.MonkeyPatch, name: str, cached: int) -> Spied:
    """The arguments of each call, with caches of that size. Programs are kept by shape: a test that
    traces nothing, since another has had its shapes, finds no calls."""
    calls: Spied = []
    function = getattr(batching, name)

    def spy(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(batching, name, spy)
    monkeypatch.setattr(stacks, "_CACHED", cached)
    return calls


@pytest.fixture
def leaf_by_leaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every matrix counts as large."""
    calls = spied(monkeypatch, "_apart", 1)
    yield
    assert calls


@pytest.mark.full
@first_of("staggered", [True, False])
def test_leaf_by_leaf_it_is_as_in_stacks(monkeypatch: pytest.MonkeyPatch, staggered: bool) -> None:
    """Leaves that hold one matrix or several, and the turns that they take."""
    axes = gradx.MatrixAxes(-2, -1)
    tx = gradx.scale_by_soap(precondition_frequency=3, staggered=staggered, axes=axes)
    grads = [normal(7, 7, 5), normal(7, 2, 7, 5, seed=1), normal(7, 7, 5, seed=2)]
    stacks = run(tx, grads)
    jax.clear_caches()  # of the programs for these shapes
    calls = spied(monkeypatch, "_apart", 1)
    for actual, expected in zip(*map(jax.tree.leaves, (run(tx, grads), stacks)), strict=True):
        close(actual, expected)
    assert calls


def test_where_a_small_leaf_begins_is_no_constant() -> None:
    """Or else XLA makes a kernel for each, also for a rule with no numbers but what is known."""
    tx = gradx.matrixwise(lambda g, s, p, h: (g @ g.T @ g, s))
    assert "conditional(" in for_cpus(tx, {f"w{i}": (3, 7) for i in range(5)}).as_text()


@counts_buffers
def test_large_matrices_are_neither_stacked_nor_cut_out_again() -> None:
    n, count = 256, 4
    compiled = for_cpus(gradx.scale_by_muon(), {f"w{i}": (n, n) for i in range(count)})
    assert "concatenate" not in compiled.as_text()
    # However many there are: the matrix, its square, a factor, and what they become.
    assert compiled.memory_analysis().temp_size_in_bytes <= 5.1 * 4 * n * n


@first_of(
    "count, cached, chunk",
    [(11, 160, 8), (6, 60, 3), (7, 60, 1), (5, 1, 1)],
    ids=["the rest by itself", "a divisor", "a prime number", "one by one"],
)
@pytest.mark.full
def test_chunks_of_what_a_cache_holds(
    monkeypatch: pytest.MonkeyPatch, count: int, cached: int, chunk: int
) -> None:
    grads = normal(2, count, 4, 5, seed=cached)
    tx = gradx.scale_by_muon(weight_dimension_numbers=gradx.MatrixAxes(-2, -1))
    alone = [run(tx, grads[:, i])[0] for i in range(count)]
    calls = spied(monkeypatch, "_in_chunks", cached)
    close(run(tx, grads)[0], np.stack(alone, axis=1))
    assert {size for _, size, *_ in calls} == {chunk}


@pytest.mark.usefixtures("leaf_by_leaf")
@pytest.mark.full
def test_leaves_of_no_matrices_and_of_other_devices() -> None:
    """What is sharded inside `shard_map` and what is not are no leaves of one kind."""
    n = jax.device_count()
    mesh = jax.make_mesh((n,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    tx = gradx.scale_by_muon(weight_dimension_numbers=gradx.MatrixAxes(-2, -1))
    g = {"a": normal(0, 3, 6), "b": normal(2, 3, 6), "c": normal(2, 3, 6, seed=1)}
    shards = {**g, "c": normal(2 * n, 3, 6, seed=1)}
    specs = {"a": spec(), "b": spec(), "c": spec("d")}

    def made(g: Any) -> Any:
        return tx.update(g, tx.init(g))[0]

    with jax.enable_x64(True):
        updates = jax.jit(jax.shard_map(made, mesh=mesh, in_specs=(specs,), out_specs=specs))(
            shards
        )
        alone = {name: jax.jit(made)(g[name]) for name in ("b", "c")}
    assert updates["a"].shape == (0, 3, 6)
    close(np.asarray(updates["b"]), np.asarray(alone["b"]))
    close(np.asarray(updates["c"][:2]), np.asarray(alone["c"]))


@pytest.mark.full
def test_no_step_renews_two_of_the_largest_before_each_has_had_one() -> None:
    """Of the shapes' turns: by name, the second large one would come together with the first."""
    shapes = {"a": (5, 4), "b": (3, 3), "c": (4, 5)}
    grads = {name: normal(6, *shape) for name, shape in shapes.items()}
    tx = gradx.scale_by_soap(precondition_frequency=2, staggered=True)
    bases: Any = run(tx, grads)[1].row_basis
    renewed = {k: (q[1:] != q[:-1]).any(axis=(1, 2)) for k, q in bases.items()}
    np.testing.assert_array_equal(renewed["a"], ~renewed["c"])


@pytest.mark.usefixtures("leaf_by_leaf")
@pytest.mark.full
def test_large_leaves_stay_where_they_are_on_an_explicit_mesh() -> None:
    n = jax.device_count()
    mesh = jax.make_mesh((n,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    spec = jax.sharding.PartitionSpec
    specs = {"a": spec("d", None), "b": spec(None, "d"), "c": spec(None, None)}
    g = {name: jnp.asarray(normal(n, n, seed=i)) for i, name in enumerate(specs)}
    update = jax.jit(gradx.scale_by_muon().update)
    alone = update(g, gradx.scale_by_muon().init(g))[0]
    with jax.set_mesh(mesh):
        placed = {
            k: jax.device_put(x, jax.sharding.NamedSharding(mesh, specs[k])) for k, x in g.items()
        }
        made = update(placed, gradx.scale_by_muon().init(placed))[0]
    assert {k: u.sharding.spec for k, u in made.items()} == specs
    for name, u in made.items():
        close(np.asarray(u), np.asarray(alone[name]), 1e-5)
