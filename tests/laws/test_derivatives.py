"""The law of derivatives: they are numbers wherever an update is a smooth function, or a constant.

Who learns an optimizer differentiates through its updates, also where a gradient, a parameter or
the state is still zero. There a root and a quotient that are smooth together are 0 times infinity
one by one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case, each
from mechanisms import each_mechanism

import gradx
from gradx.core.roots import cbrt, rsqrt, sqrt

SHAPES = {"still": (2, 3), "new": (3,)}
Point = tuple[Any, Any]  # a gradient and parameters


def drawn(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=s), np.float32) for name, s in SHAPES.items()}


def nothing() -> Any:
    return jax.tree.map(jnp.zeros_like, drawn(0))


def mixed() -> Point:
    """A leaf without gradient; and a parameter of zero, with an element that has no gradient."""
    g, p, zero = drawn(1), drawn(0), nothing()
    return {**zero, "new": g["new"].at[0].set(0)}, {**p, "new": zero["new"]}


def check(tx: Any, point: Point, later: bool = False) -> None:
    """Both modes, of all that a step makes of gradients, parameters and state."""
    g, p = point
    with jax.disable_jit():
        state = tx.init(p)
        if later:
            _, state = tx.update(drawn(2), state, p)
        leaves, treedef = jax.tree.flatten((g, state, p))
        floats = [i for i, x in enumerate(leaves) if is_float(x)]

        def step(values: Any) -> Any:
            given = list(leaves)
            for i, x in zip(floats, values, strict=True):
                given[i] = x
            return [x for x in jax.tree.leaves(tx.update(*treedef.unflatten(given))) if is_float(x)]

        at = [leaves[i] for i in floats]
        made, along = jax.linearize(step, at)
        forward = along(some_like(at))
        (reverse,) = jax.linear_transpose(along, at)(some_like(made))
    assert all(np.isfinite(x).all() for x in forward), "forward"
    assert all(np.isfinite(x).all() for x in reverse), "reverse"


def is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def some_like(arrays: Any) -> Any:
    rng = np.random.default_rng(3)
    return [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in arrays]


@each_mechanism(CASES)
def test_derivatives_are_numbers(case: Case) -> None:
    check(case.ready(), mixed())


@pytest.mark.full
@each(CASES)
def test_derivatives_are_numbers_later_and_at_no_gradient(case: Case) -> None:
    check(case.ready(), mixed(), later=True)
    check(case.ready(), (nothing(), drawn(0)))
    check(case.ready(), (drawn(1), drawn(0)))


PIECES = {
    "clip_by_global_norm": gradx.clip_by_global_norm(1.0),
    "no clip": gradx.clip_by_global_norm(float("inf")),
    "clip_by_block_rms": gradx.clip_by_block_rms(1.0),
    "adaptive_grad_clip": gradx.adaptive_grad_clip(0.1),
    "adaptive_grad_clip without eps": gradx.adaptive_grad_clip(0.1, 0.0),
    "normalize": gradx.normalize(),
    "normalize_by_update_norm": gradx.normalize_by_update_norm(),
    "normalize_by_update_norm without eps": gradx.normalize_by_update_norm(eps=0.0),
    "scale_by_trust_ratio": gradx.scale_by_trust_ratio(),
    "scale_by_param_block_rms": gradx.scale_by_param_block_rms(),
    "centralize": gradx.centralize(),
    "in a wrapper": gradx.apply_if_finite(gradx.MultiSteps(gradx.adam(0.1), 2), 3),
}


@pytest.mark.parametrize("name", PIECES)
def test_derivatives_of_pieces_are_numbers(name: str) -> None:
    for point in (mixed(), (nothing(), nothing())):
        check(PIECES[name], point)


def test_a_derivative_at_zero_is_that_of_the_function() -> None:
    """Adam's first update is g / (|g| + eps), below its bound a norm has no say, and so on."""
    expected = {
        gradx.scale_by_adam(eps=0.5): 2.0,
        gradx.clip_by_global_norm(1.0): 1.0,
        gradx.scale_by_factored_rms(epsilon=0.25): 2.0,
        gradx.normalize_by_update_norm(eps=0.5): 2.0,
    }
    zero, one = jnp.zeros(2), jnp.ones(2)
    for tx, slope in expected.items():
        with jax.disable_jit():
            state = tx.init(zero)
            _, along = jax.linearize(lambda g: tx.update(g, state, zero)[0], zero)  # noqa: B023
            for made in (along(one), *jax.linear_transpose(along, zero)(one)):
                np.testing.assert_allclose(made, slope * one, rtol=1e-5)


def test_the_norms_of_single_examples_have_derivatives() -> None:
    def total(grads: Any) -> Any:
        return jnp.sum(gradx.per_example_global_norm_clip([grads], 1.0)[0][0])

    grads = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    with jax.disable_jit():
        assert np.isfinite(jax.grad(total)(grads)).all()


@pytest.mark.parametrize("tx", [gradx.scale_by_adam(), gradx.scale_by_rms()], ids=str)
def test_a_second_moment_that_overflows_has_a_derivative(tx: Any) -> None:
    """The update is 0 there, as is that of a gradient twice as large."""
    with jax.disable_jit():
        assert jax.grad(lambda g: tx.update(g, tx.init(g))[0])(jnp.float32(1e25)) == 0


@pytest.mark.parametrize("power", [sqrt, rsqrt, cbrt], ids=["sqrt", "rsqrt", "cbrt"])
def test_powers_are_flat_at_both_ends(power: Any) -> None:
    for x in (0.0, jnp.inf):
        for derivative in (jax.grad(power), jax.jacfwd(power)):
            assert derivative(jnp.float32(x)) == 0


def test_a_program_without_derivatives_is_the_same() -> None:
    ours, theirs = (
        jax.jit(lambda x, f=f: f(x) + 1).lower(jnp.ones(3)).as_text() for f in (sqrt, jnp.sqrt)
    )
    assert ours == theirs
