"""Several sums in one reading, and state written in place: the same numbers on each target."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradx.lowering import order, sums

Array = jax.Array

EDGES = np.array([0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, 3e38, 1e-45], np.float32)


def both(ways: Callable[..., object], *args: object) -> list[str]:
    """The program for CPUs and that for GPUs, from one trace."""
    traced = jax.jit(ways).trace(*args)
    return [traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")]


def test_sums_are_one_reduction_on_gpus_and_several_elsewhere() -> None:
    x = jnp.ones((3, 4))
    cpu, gpu = both(lambda x: sums.sums_of(a=x, b=x * x, c=x + 1), x)
    assert cpu.count("stablehlo.reduce(") == 3
    assert gpu.count("stablehlo.reduce(") == 1


def test_sums_in_pairs_are_the_same() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    for arrays in ([x, x * x], [x, x * x, x + 1]):
        for way in (sums.in_one_read, sums._counted, sums._in_pairs):
            count, found = way(x > 0, arrays)
            np.testing.assert_array_equal(count, np.sum(x > 0, -1, dtype=np.int32), strict=True)
            np.testing.assert_allclose(found, np.sum(arrays, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", [sums._at_once, sums._one_by_one])
def test_either_way_gives_the_sums(way: Callable[[list[Array]], list[Array]]) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    for shape in [(5, 6), (30,), (0, 3), ()]:
        y = x.reshape(shape) if x.size == np.prod(shape) else jnp.ones(shape)
        for made, summand in zip(way([y, y * y]), [y, y * y], strict=True):
            np.testing.assert_allclose(made, jnp.sum(summand), rtol=1e-6)
    stacked = jax.vmap(lambda x: way([x, 2 * x]))(x)
    np.testing.assert_allclose(stacked[1], 2 * x.sum(axis=1), rtol=1e-5)


def test_sums_have_the_derivatives_of_sums() -> None:
    def f(x: Array) -> Array:
        made = sums.sums_of(a=x * x, b=x)
        return made["a"] * made["b"]

    x = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(jax.grad(f)(x), 2 * x * 6 + 14, rtol=1e-6)


def test_a_sum_varies_over_a_mapped_axis_if_its_own_array_does() -> None:
    """Else what all devices have alike would be counted once a device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

    def each(g: Array, p: Array) -> tuple[Array, Array, Array]:
        slope, size = sums.sums_of(slope=g * p, size=p).values()
        alike = sums.sums_of(slope=g, size=g * p)
        return jax.lax.psum(slope, "data"), size, jax.lax.psum(alike["size"], "data")

    mapped = jax.shard_map(each, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
    made = jax.jit(mapped).trace(jnp.arange(4.0), jnp.ones(2))
    assert all(made.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda"))
    np.testing.assert_allclose(made.lower().compile()(jnp.arange(4.0), jnp.ones(2)), [6, 2, 6])


@pytest.mark.parametrize("way", [order.in_place, order._never_old])
def test_what_is_written_in_place_is_the_new_value(way: Callable[[Array, Array], Array]) -> None:
    """Bit for bit, whatever the two are."""
    new, old = (jnp.asarray(x) for x in np.meshgrid(EDGES, EDGES))
    np.testing.assert_array_equal(np.signbit(way(new, old)), np.signbit(new))
    np.testing.assert_array_equal(way(new, old), new)
    np.testing.assert_array_equal(way(new + 1j, old + 1j), new + 1j)


@pytest.mark.parametrize("way", [sums.all_finite, sums._by_element])
def test_finite_is_what_has_no_element_that_is_not(way: Callable[[list[Array]], Array]) -> None:
    huge = jnp.full(4, 3e38)  # the sum of which is infinite
    assert way([huge, jnp.zeros(()), jnp.zeros((0, 2))])
    assert way([])
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        assert not way([jnp.ones(3), huge.at[2].set(bad)])
    assert not way([jnp.array([1.0, jnp.inf * 1j])])
