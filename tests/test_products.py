"""What the products of Muon's family are made of: by target, by dtype, by precision."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_of

import gradx
from gradx.linalg import polar

# All whose products can be chosen.
PIECES = [
    name
    for name in gradx.__all__
    if name.startswith("scale_by_") and "gram" in inspect.signature(getattr(gradx, name)).parameters
]


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lowered(tx: Any, platform: str) -> str:
    """The program of a step on two matrices, for a platform that need not be there."""
    p = {name: jax.ShapeDtypeStruct((6, 8), jnp.float32) for name in "ab"}
    traced = jax.jit(tx.update).trace(p, jax.eval_shape(tx.init, p), p)
    return str(traced.lower(lowering_platforms=(platform,)).as_text())


# ---------------------------------------------------------------- the choice


@first_of("name", PIECES)
def test_accelerators_multiply_in_bfloat16_and_cpus_in_float32(name: str) -> None:
    tx = getattr(gradx, name)()
    for platform in ("tpu", "cuda", "rocm"):
        assert "bf16" in lowered(tx, platform)
    assert "bf16" not in lowered(tx, "cpu")


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_what_is_said_holds_on_every_target(platform: str) -> None:
    narrow = lowered(gradx.scale_by_muon(dtype=jnp.bfloat16), platform)
    assert "xbf16>" in narrow
    for dtype in ("highest", jnp.float32):
        exact = lowered(gradx.scale_by_muon(dtype=dtype), platform)
        assert "xbf16>" not in exact
        assert "precision = [HIGHEST, HIGHEST]" in exact
    for dtype in ("high", jax.lax.Precision.HIGH):
        assert "precision = [HIGH, HIGH]" in lowered(gradx.scale_by_muon(dtype=dtype), platform)


def test_float64_and_complex_matrices_are_not_narrowed_by_a_target() -> None:
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.complex64):
            p = jax.ShapeDtypeStruct((4, 6), dtype)
            tx = gradx.scale_by_muon()
            traced = jax.jit(tx.update).trace(p, jax.eval_shape(tx.init, p))
            assert "bf16" not in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("dtype", "error"),
    [pytest.param(jnp.float32, 1e-5, marks=pytest.mark.full), (jnp.bfloat16, 0.1)],
)
def test_narrow_factors_of_float64_are_added_up_in_float64(dtype: Any, error: float) -> None:
    """Also where JAX must not mix the two."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        g = jnp.asarray(numbers(0, 4, 6), jnp.float64)
        for gram in (False, True):
            made = []
            for factors in (dtype, "highest"):
                tx = gradx.scale_by_muon(dtype=factors, gram=gram, preconditioning="aol")
                made.append(jax.jit(tx.update)(g, tx.init(g))[0])
            assert made[0].dtype == jnp.float64
            np.testing.assert_allclose(made[0], made[1], rtol=0, atol=error)


@pytest.mark.parametrize("dtype", ["fastest", 3, jnp.int8, jnp.complex64])
def test_products_that_do_not_exist_are_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"scale_by_muon: dtype must be .*'highest'.* got") as e:
        gradx.scale_by_muon(dtype=dtype)
    assert gradx.core.show(dtype) in str(e.value)


def test_factors_of_a_byte_are_too_few_for_grams_matrix() -> None:
    with pytest.raises(
        ValueError, match=r"scale_by_muon: gram=True needs .* dtype is float8_e4m3fn"
    ):
        gradx.scale_by_muon(dtype=jnp.float8_e4m3fn, gram=True)
    tx = gradx.scale_by_muon(dtype=jnp.float8_e4m3fn)  # for so wide a matrix gram is the default
    g = jnp.asarray(numbers(0, 4, 16), jnp.float32)
    updates = jax.jit(tx.update)(g, tx.init(g))[0]
    assert np.linalg.svd(updates, compute_uv=False).max() < 2  # three binary digits


# ---------------------------------------------------------------- what each choice does

# How far the singular values, and the whole matrix, may be from what the polynomials make of them.
# Directions with less than a rounding error of the factors, here a thousandth, are noise.
ERRORS = {"highest": (2e-5, 3e-5), "float16": (0.01, 0.02), "bfloat16": (0.05, 0.1)}


@first_of("dtype", ["bfloat16", "highest", "float16"])
def test_singular_values_of_the_polar_factor(dtype: str) -> None:
    u, _, vh = np.linalg.svd(numbers(0, 12, 24), full_matrices=False)
    s = np.geomspace(1e-3, 1.0, 12)
    g = jnp.asarray(u * s @ vh, jnp.float32)
    exact = polar.singular_values_after(polar.NS_PRESETS["standard"], s / np.linalg.norm(s))
    for gram in (False, True):
        tx = gradx.scale_by_muon(dtype=dtype, gram=gram, eps=0.0)
        with jax.disable_jit():
            made = np.asarray(tx.update(g, tx.init(g))[0], np.float64)
        values = np.linalg.svd(made, compute_uv=False)
        turned = np.linalg.norm(made - u * exact @ vh) / np.linalg.norm(exact)
        assert np.abs(np.sort(values) - np.sort(exact)).max() < ERRORS[dtype][0], gram
        assert turned < ERRORS[dtype][1], gram
        assert values.max() < 1.01 * exact.max()
        assert values.min() > 0.99 * exact.min()


def loss(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(jnp.matmul(x, params["in"], precision="highest"))
    return jnp.mean((jnp.matmul(hidden, params["out"], precision="highest") - y) ** 2)


def trained(dtype: Any) -> float:
    """The loss of a small network after twenty steps, over that before."""
    params = {"in": 0.3 * numbers(1, 8, 16), "out": 0.3 * numbers(2, 16, 8)}
    x = numbers(3, 64, 8)
    y = np.tanh(x @ numbers(4, 8, 8))
    tx = gradx.chain(gradx.scale_by_muon(dtype=dtype), gradx.scale(-0.1))

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, x, y), state)
        return (gradx.apply_updates(params, updates), state), None

    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, 20))(params)
    return float(loss(end, x, y) / loss(params, x, y))


def test_twenty_steps_of_training_do_not_feel_the_rounding() -> None:
    exact, narrow = trained("highest"), trained(jnp.bfloat16)
    assert exact < 0.2
    assert narrow == pytest.approx(exact, rel=0.02)
