"""`gradx.lowering`: what acts on which target is chosen when a program is lowered, not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import counts_buffers

import gradx
from gradx.lowering import exact
from gradx.lowering.conditional import in_some_steps
from gradx.lowering.one_by_one import one_by_one
from gradx.lowering.order import in_place, once_known, once_stored, under_condition, write_after
from gradx.lowering.policy import PLATFORMS, POLICY, by_target
from gradx.lowering.products import HIGHEST, with_factors
from gradx.lowering.reading import reread, unshared
from gradx.lowering.siblings import AT_ONCE, SMALL, _chosen_by_flags, siblings
from gradx.lowering.stacks import alone_or_stacked, some_at_a_time, unknown_places
from gradx.lowering.sums import all_finite, in_one_read, sums_of

PLATFORM_OF = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def rounded(factors: Any, x: Any) -> Any:
    return x if factors is HIGHEST else x.astype(factors).astype(x.dtype)


def done(size: int, x: Any, y: Any) -> Any:
    """Of matrices of this size, the second."""
    return alone_or_stacked(
        size, lambda begin, x, y: begin(x, y), lambda x, y: x, x, y, renewed=True
    )


WAYS: dict[str, tuple[Callable[..., Any], str]] = {
    "reread": (lambda x, y: reread({"x": x, "n": None, "y": y})["x"], "optimization_barrier"),
    "unshared": (unshared, "optimization_barrier"),
    "write_after": (write_after, "compare"),
    "in_place": (in_place, "compare"),
    "under_condition": (
        lambda x, y: under_condition(y[0] > 0, lambda: x, lambda: y),
        "stablehlo.convert",
    ),
    "once_stored": (lambda x, y: once_stored(x, y[0]), "compare"),
    "in_some_steps": (
        lambda x, y: in_some_steps(lambda old, given: given, y[0] > 0, y, x),
        "stablehlo.while",
    ),
    "narrow_products": (lambda x, y: with_factors(None, rounded, x), "bf16"),
    "alone": (lambda x, y: done(2**16, x, y), "compare"),
    "in_turn": (lambda x, y: done(2**20, x, y), "compare"),
    "some_at_a_time": (
        lambda x, y: some_at_a_time(2**17, 1, lambda n, x: jnp.negative(-x), jnp.array, x),
        "negate",
    ),
    "unknown_places": (lambda x, y: x + 0.0 * unknown_places([0, 1], y)[0], "compare"),
    "siblings": (lambda x, y: siblings([x, None, y])[0], "optimization_barrier"),
    "once_known": (lambda x, y: jnp.where(once_known(y[0]), x, y), "compare"),
    "sums": (lambda x, y: x + sums_of(a=x, b=0.0 * x)["b"], "reducer("),
    "paired": (lambda x, y: jnp.where(in_one_read(y > 0, [y])[0] >= 0, x, y), "complex"),
    "finite_by_sum": (lambda x, y: jnp.where(all_finite([x]), x, y), "applies stablehlo.add"),
    "one_by_one": (lambda x, y: one_by_one(jnp.negative)(-x[:, None, None])[:, 0, 0], "while"),
}


def lowered(f: Callable[..., Any], target: str) -> str:
    """The program as the target's compiler is given it; none of them need be here."""
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    return jax.jit(f).trace(x, x).lower(lowering_platforms=(PLATFORM_OF[target],)).as_text()


@pytest.mark.parametrize("target", PLATFORMS)
@pytest.mark.parametrize("way", WAYS)
def test_it_acts_where_the_table_says(way: str, target: str) -> None:
    f, mark = WAYS[way]
    assert (mark in lowered(f, target)) == (target in POLICY[way].targets)


def test_every_way_of_the_table_is_one() -> None:
    assert set(WAYS) == set(POLICY)
    for way in POLICY.values():
        assert set(way.targets) < set(PLATFORMS)
        assert way.buys


@pytest.mark.parametrize("way", WAYS)
def test_it_changes_no_number(way: str) -> None:
    x, y = jnp.array([1.0, -2.0, 0.0]), jnp.array([3.0, jnp.inf, 1.0])
    f, _ = WAYS[way]
    for g in (f, jax.jit(f), jax.vmap(f, (None, None), axis_size=1)):
        np.testing.assert_array_equal(np.ravel(g(x, y))[:3], x)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x, y))))(x)
    np.testing.assert_allclose(gradient, np.cos(x), rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_it_varies_over_mapped_axes_as_its_inputs(way: str) -> None:
    f, _ = WAYS[way]
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    p = jax.sharding.PartitionSpec("d")
    mapped = jax.shard_map(lambda x, y: f(x, y), mesh=mesh, in_specs=(p, p), out_specs=p)
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(jax.jit(mapped)(x, x), x)


def test_a_step_is_compiled_for_two_targets() -> None:
    """One traced step: with barriers for a CPU, without for an accelerator."""
    tx = gradx.chain(gradx.snapshot("norm", gradx.global_norm), gradx.lars(0.1))
    p = {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    traced = jax.jit(tx.update).trace(p, jax.eval_shape(tx.init, p), p)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")}
    assert texts["cpu"].count("optimization_barrier") > 0
    assert texts["tpu"].count("optimization_barrier") == 0


@counts_buffers
def test_narrow_gradients_are_not_kept_wide_for_their_norm() -> None:
    tx, n = gradx.chain(gradx.clip_by_global_norm(1.0), gradx.adamw(0.1)), 64
    p = jax.ShapeDtypeStruct((n, n), jnp.bfloat16)

    def step(p: Any, s: Any, g: Any) -> Any:
        updates, s = tx.update(g, s, p)
        return gradx.apply_updates(p, updates), s

    jitted = jax.jit(step, donate_argnums=(0, 1))
    used = jitted.lower(p, jax.eval_shape(tx.init, p), p).compile().memory_analysis()
    assert used.temp_size_in_bytes < 0.1 * 4 * n**2


def test_small_leaves_of_one_shape_are_siblings() -> None:
    """On GPUs; not what is large, no array, or alone in its shape or group."""
    shapes = [(3,), (2, 2), (3,), (3, 1), (SMALL + 1,), (SMALL + 1,)] + [(2,)] * (AT_ONCE + 1)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    traced = jax.jit(lambda xs: siblings([*xs, None])).trace(arrays)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")}
    assert texts["cuda"].count("stablehlo.select") == 2 + AT_ONCE
    assert texts["cpu"].count("stablehlo.select") == 0


def test_siblings_are_the_same_to_the_bit() -> None:
    odd = jnp.array([0.0, -0.0, jnp.nan, jnp.inf, 1e-45, 3.0])
    kinds = (jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn, jnp.complex64, jnp.int32)
    given = [odd.astype(kind) for kind in kinds]
    for old, new in zip(given, jax.jit(_chosen_by_flags)([given])[0], strict=True):
        assert new.dtype == old.dtype
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


@pytest.mark.parametrize(
    ("tx", "barriers"),
    [
        (gradx.adam(0.1), 1),
        (gradx.chain(gradx.clip_by_global_norm(1.0), gradx.adam(0.1)), 2),  # one for the sums
        (gradx.lars(0.1), 1),  # the norm is known before the state is written
        (gradx.lamb(0.1), 0),  # the norm is of the new state
    ],
    ids=repr,
)
def test_a_pass_joins_small_leaves_unless_it_sums_new_state(tx: Any, barriers: int) -> None:
    p = {name: jax.ShapeDtypeStruct((3,), jnp.float32) for name in "ab"}
    traced = jax.jit(tx.update).trace(p, jax.eval_shape(tx.init, p), p)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("optimization_barrier") == barriers


def test_what_is_refused() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        by_target("nowhere", jnp.sin, jnp.cos, 1.0)


def test_exact() -> None:
    numbers = jnp.arange(1.0, 50.0)
    shares = jax.jit(lambda n: exact.share_of(n, jnp.zeros_like(n), n))(numbers)
    np.testing.assert_array_equal(shares, 1.0)
    root = jax.jit(lambda x: exact.root_or_zero(x * x, jnp.sqrt(x * x)))
    assert root(jnp.float32(1e-30)) == 0.0
    assert root(jnp.float32(3.0)) == 3.0
