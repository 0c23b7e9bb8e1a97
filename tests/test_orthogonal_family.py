"""Muon and its kin: what the laws do not cover, since their only matrix is of 4 by 3."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from problems import assert_close, assert_same, gradients, params, trajectory
from references.orthogonal import polar as reference

import gradx
from gradx.linalg import polar
from gradx.optimizers.matrix.orthogonal import factors_of

MAKERS = {
    "muon": lambda **more: gradx.scale_by_muon(**more),
    "aol": lambda **more: gradx.scale_by_muon(preconditioning="aol", **more),
    "normuon": lambda **more: gradx.scale_by_normuon(**axes(more)),
    "adamuon": lambda **more: gradx.scale_by_adamuon(**axes(more)),
    "scion": lambda **more: gradx.scale_by_scion(radius=1.0, **axes(more)),
    "dion": lambda **more: gradx.scale_by_dion(**axes(more)),
    # Its own coefficients lose a digit for a single row.
    "dion2": lambda **more: gradx.scale_by_dion2(ns_coeffs="standard", **axes(more)),
}
every_maker = pytest.mark.parametrize("name", MAKERS)


def axes(arguments: dict[str, Any]) -> dict[str, Any]:
    """Optax's name for them is a longer one."""
    return {k.replace("weight_dimension_numbers", "axes"): v for k, v in arguments.items()}


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def twice(tx: Any, g: Any) -> Any:
    """The update of the second step, jitted."""
    state = tx.init(g)
    update = jax.jit(tx.update)
    _, state = update(g, state, g)
    return update(g, state, g)[0]


# ---------------------------------------------------------------- one matrix


@first_of("name", MAKERS)
def test_the_size_of_the_gradient_does_not_matter(name: str) -> None:
    small, usual, large = twice(
        MAKERS[name](eps=1e-12), [numbers(4, 6) * np.float32(size) for size in (1e-5, 1.0, 1e5)]
    )
    assert_close([small, large], [usual, usual], rtol=1e-5)


@first_of("name", ["muon", "aol", "adamuon", "dion", "dion2"])
@pytest.mark.full
def test_a_transposed_matrix_has_the_transposed_update(name: str) -> None:
    # Not with NorMuon, where a neuron is a column, and not with Scion, whose size follows m and n;
    # and not a square matrix with AOL, which looks at rows, and with Dion, which has to choose.
    g = [numbers(4, 6), numbers(1, 4)] + ([numbers(5, 5)] if name in ("muon", "adamuon") else [])
    turned = twice(MAKERS[name](), [x.T for x in g])
    assert_close([x.T for x in turned], twice(MAKERS[name](), g), rtol=1e-4)


@first_of("name", MAKERS)
@pytest.mark.full
def test_zero_extreme_and_rank_one_gradients(name: str) -> None:
    rank_one = np.outer(numbers(3), numbers(4, seed=1))
    zero = {str(t): jnp.zeros((3, 4), t) for t in (jnp.float32, jnp.bfloat16, jnp.float16)}
    extreme = [numbers(3, 4) * np.float32(size) for size in (1e-30, 1e15)]
    u = twice(MAKERS[name](), {"zero": zero, "extreme": extreme, "one": rank_one})
    assert_same(u["zero"], zero)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(u))
    s = np.linalg.svd(u["one"], compute_uv=False)
    assert s[1] < 1e-3 * s[0]
    bare = np.zeros((3, 4), np.float32)
    assert_same(jax.tree.map(np.asarray, twice(MAKERS[name](eps=0.0), bare)), bare)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_a_single_row_or_column_is_normalised(shape: Any) -> None:
    g = numbers(*shape)
    for tx in (gradx.scale_by_muon("exact"), gradx.scale_by_normuon("exact")):
        u = twice(tx, g)
        assert np.linalg.norm(u) == pytest.approx(1.0, rel=1e-6)
    # One input and five neurons: each neuron's update has the size of the others'.
    if shape == (1, 5):
        assert_close(np.abs(u), np.full((1, 5), 5**-0.5, np.float32), rtol=1e-6)


@pytest.mark.parametrize("kind", ["frobenius", "spectral", "aol", "schatten"])
def test_singular_values_follow_the_polynomials_and_come_near_to_one(kind: str) -> None:
    u, _, vh = np.linalg.svd(numbers(8, 20), full_matrices=False)
    g = jnp.asarray(u * np.geomspace(0.1, 1.0, 8, dtype=np.float32) @ vh)
    x, square = polar.normalised(g, kind, 1e-8)
    before = np.linalg.svd(x, compute_uv=False)
    assert before.max() < 1 + 1e-6
    for steps in polar.NS_PRESETS.values():
        made = polar.newton_schulz(x, jnp.asarray(steps), square, gram=False)
        after = np.linalg.svd(made, compute_uv=False)
        assert_close(after, np.sort(polar.singular_values_after(steps, before))[::-1], rtol=1e-4)
        assert after.min() > 0.45
        assert after.max() < 1.3


def test_the_gram_matrix_gives_the_same() -> None:
    g = numbers(4, 32)
    g = jnp.asarray(g / np.linalg.norm(g))
    for steps in polar.NS_PRESETS.values():
        plain, by_gram = (
            polar.newton_schulz(g, jnp.asarray(steps), gram=gram) for gram in (False, True)
        )
        assert_close(by_gram, plain, rtol=1e-4)


SPECTRA = [np.ones(24), np.linspace(1, 1 / 24, 24), 1 / np.arange(1, 25), np.arange(1, 25) ** -2.0]


@first_of("dtype", [jnp.bfloat16, "highest", jnp.float16])
def test_every_preset_keeps_its_range_in_every_dtype(dtype: Any) -> None:
    """To 1%, but for Gram's matrix in bfloat16, whose errors grow for two steps: to 10%."""
    factors = factors_of("dtype", dtype)
    u, _, vh = np.linalg.svd(np.stack([numbers(24, 64, seed=i) for i in range(4)]), False)
    g = (u * np.stack(SPECTRA)[:, None]) @ vh
    x = jnp.asarray(g / np.linalg.norm(g, axis=(1, 2), keepdims=True), jnp.float32)
    before = np.linalg.svd(x, compute_uv=False)
    for name, steps in polar.NS_PRESETS.items():
        highest = polar.singular_values_after(steps, np.linspace(0, 1, 1000)).max()
        exact = polar.singular_values_after(steps, before)
        for gram in (False, True):
            run = functools.partial(polar.newton_schulz, factors=factors, gram=gram)
            made = jax.vmap(run, (0, None))(x, jnp.asarray(steps, jnp.float32))
            after = np.linalg.svd(made, compute_uv=False)
            assert np.isfinite(after).all(), (name, gram)
            slack = 1.1 if gram and dtype == jnp.bfloat16 else 1.01
            assert after.max() < slack * highest, (name, gram)
            assert np.all(after.min(axis=1) > 0.85 * exact.min(axis=1)), (name, gram)


# ---------------------------------------------------------------- many matrices


@first_of("name", MAKERS)
@pytest.mark.full
def test_stacked_layers_and_parts_are_updated_like_separate_matrices(name: str) -> None:
    each = [numbers(6, 4, seed=i) for i in range(3)]
    separate = twice(MAKERS[name](), each)
    for chunk in (None, 2):
        layers = {"chunk": chunk, "weight_dimension_numbers": gradx.MatrixAxes(-2, -1)}
        together = twice(MAKERS[name](**layers), np.stack(each))
        assert_close(together, np.stack(separate), rtol=1e-5)
    fused = MAKERS[name](weight_dimension_numbers=gradx.MatrixAxes(0, 1, parts=3))
    together = twice(fused, np.concatenate(each, axis=1))
    assert_close(together, np.concatenate(separate, axis=1), rtol=1e-5)


@first_of("name", ["muon", "normuon", "adamuon", "scion", "dion", "dion2"])
def test_matrices_without_gradient_are_left_alone(name: str) -> None:
    p = {"a": numbers(3, 4), "b": numbers(3, 4, seed=1), "bias": numbers(4)}
    tx = getattr(gradx, name)(0.1)
    state = tx.init(p)
    updates, new = tx.update({**p, "a": None}, state, p)
    assert updates["a"] is None
    rest = {"b": p["b"], "bias": p["bias"]}
    alone, _ = tx.update(rest, tx.init(rest), rest)
    assert_close({k: updates[k] for k in rest}, alone, rtol=1e-6)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    tx.update(p, new, p)


# ---------------------------------------------------------------- as it is elsewhere


@first_of(
    "kind, adaptive",
    [("frobenius", True), ("spectral", False), ("aol", True), ("schatten", False)],
)
def test_muon_agrees_with_optax(kind: Any, adaptive: bool) -> None:
    """With its Nesterov flag, which only Adam there must not see."""
    p, g = params()["dense"]["kernel"], gradients()["dense"]["kernel"]
    arguments = {"preconditioning": kind, "adaptive": adaptive, "weight_decay": 0.1, "beta": 0.8}
    ours, theirs = (
        trajectory(muon(0.05, **arguments), p, g) for muon in (gradx.muon, optax.contrib.muon)
    )
    assert_close(ours, theirs, rtol=1e-5)


@pytest.mark.full
def test_small_gradients_are_normalised_by_aol_too() -> None:
    """Optax compares their squares with eps, and makes nothing of them."""
    g = numbers(3, 4) * np.float32(1e-9)
    ours, theirs = (
        np.asarray(tx.update(g, tx.init(g))[0])
        for tx in (
            gradx.scale_by_muon(preconditioning="aol"),
            optax.contrib.scale_by_muon(preconditioning="aol"),
        )
    )
    assert np.linalg.norm(theirs) < 0.1 * np.linalg.norm(ours)
    assert_close(ours, reference(np.float64(g), preconditioning="aol"), rtol=1e-4)


def test_a_neuron_of_normuon_is_an_output() -> None:
    """In the layout (inputs, outputs) it is a column."""
    g = numbers(5, 3) * np.array([1.0, 10.0, 0.1], np.float32)
    state = gradx.scale_by_normuon().init({"w": g})
    assert state.nu["w"].shape == (3,)
    u = twice(gradx.scale_by_normuon("exact", consistent_rms=0.2), g)
    assert_close(np.sqrt(np.mean(np.square(u), axis=0)), np.full(3, 0.2, np.float32), rtol=1e-5)


@pytest.mark.parametrize("name", ["normuon", "adamuon"])
@pytest.mark.full
def test_updates_have_the_promised_root_mean_square(name: str) -> None:
    p = {"mlp": numbers(8, 20), "narrow": numbers(30, 2)}
    tx = getattr(gradx, name)(1.0, weight_decay=0.0)
    for u in jax.tree.leaves(twice(tx, p)):
        assert np.sqrt(np.mean(np.square(u))) == pytest.approx(0.2, rel=1e-5)


def test_only_signs_matter_to_adamuon() -> None:
    tx, g = gradx.scale_by_adamuon(), numbers(4, 6)
    assert_close(twice(tx, np.sign(g)), twice(tx, g), rtol=1e-6)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", ["muon", "normuon", "dion", "dion2", "scale_by_shape"])
def test_a_size_is_said_once(name: str) -> None:
    make = functools.partial(getattr(gradx, name), *([] if name == "scale_by_shape" else [0.1]))
    for rms in (None, 0.2):
        with pytest.raises(ValueError, match=rf"{name}.*: convention must be one of.*'bogus'"):
            make(consistent_rms=rms, convention="bogus")
    with pytest.raises(
        ValueError, match=rf"{name}.*: consistent_rms and convention are two answers"
    ):
        make(consistent_rms=0.2, convention="none")
    make(consistent_rms=None, convention="none")


@pytest.mark.full
def test_sizes_by_default() -> None:
    p = {"mlp": numbers(4, 6)}
    usual = {"muon": "keller", "normuon": "spectral", "dion": "spectral", "dion2": "spectral"}
    for name, convention in usual.items():
        ours, theirs = (
            twice(getattr(gradx, name)(0.1, consistent_rms=None, convention=c), p)
            for c in (None, convention)
        )
        assert_same(ours, theirs)


def test_a_preset_takes_no_other_number_of_steps() -> None:
    for name, steps in polar.NS_PRESETS.items():
        for own in {5, len(steps)}:
            gradx.muon(0.1, name, own)
        if name in ("standard", "dion"):
            gradx.muon(0.1, name, 3)
            continue
        with pytest.raises(ValueError, match=f"ns_steps is 3, and ns_coeffs='{name}' has"):
            gradx.muon(0.1, name, 3)
    with pytest.raises(ValueError, match="ns_coeffs='exact' has no steps"):
        gradx.scion(0.1, ns_coeffs="exact", ns_steps=4)


# ---------------------------------------------------------------- Scion's norms


@pytest.mark.full
def test_scion_chooses_norms_by_names() -> None:
    p = {
        "embed": numbers(9, 4),
        "block": {"kernel": numbers(4, 6), "bias": numbers(6), "scale": np.float32(2.0)},
        "Conv_0": numbers(3, 3, 2, 5),
        "lm_head": numbers(4, 9),
    }
    tx = gradx.scale_by_scion(ns_coeffs="exact", radius=2.0, head_radius=10.0)
    u = tx.update(p, tx.init(p))[0]
    rms = lambda x: np.sqrt(np.mean(np.square(x), axis=-1))
    assert_close(rms(u["embed"]), np.full(9, 2.0, np.float32), rtol=1e-6)
    assert_close(rms(u["block"]["bias"]), np.float32(2.0), rtol=1e-6)
    assert_close(u["block"]["scale"], np.float32(2.0), rtol=1e-6)
    assert_close(u["lm_head"], 10.0 * np.sign(p["lm_head"]) / 4, rtol=1e-6)
    s = np.linalg.svd(u["block"]["kernel"], compute_uv=False)
    assert_close(s, np.full(4, 2.0 * np.sqrt(6 / 4)), rtol=1e-5)
    s = np.linalg.svd(u["Conv_0"].reshape(18, 5), compute_uv=False)
    assert_close(s, np.full(5, 2.0 * np.sqrt(5 / 2) / 9), rtol=1e-5)


def test_scions_norms_and_axes_can_be_said() -> None:
    p = {"embed": numbers(9, 4), "first": numbers(8, 2), "rest": numbers(2, 3)}
    tx = gradx.scale_by_scion(
        ns_coeffs="exact",
        norms=gradx.by_path({"embed": "sign", "first": "spectral_max"}, default="auto"),
        axes=gradx.by_path({"embed": gradx.MatrixAxes(1, 0)}, default=None),
        radius=1.0,
        head_radius=1.0,
    )
    u = tx.update(p, tx.init(p))[0]
    assert_close(u["embed"], np.sign(p["embed"]) / 4, rtol=1e-6)
    assert_close(np.linalg.svd(u["first"], compute_uv=False), np.ones(2), rtol=1e-5)
    with pytest.raises(ValueError, match=r"scion.*norms must be one of.*'embed'.*'l2'"):
        gradx.scion(0.1, norms={"embed": "l2", "first": "auto", "rest": None}).init(p)
    said = gradx.by_path({"embed": gradx.MatrixAxes(1, 0)}, default=None)
    with pytest.raises(
        ValueError, match=r"scion.*the norm at 'embed' is 'rms'.*'sign' for a table"
    ):
        gradx.scion(0.1, axes=said).init(p)
    gradx.scion(0.1, axes=gradx.MatrixAxes()).init({**p, "bias": numbers(3)})
    with pytest.raises(ValueError, match="bias"):
        gradx.scion(0.1, norms="spectral").init({"bias": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="claims no leaf"):
        gradx.scion(0.1, norms=gradx.by_path({"head": "sign"}, default="auto")).init(p)


@pytest.mark.full
def test_scion_stays_in_its_balls() -> None:
    p = {"w": np.zeros((4, 6), np.float32), "bias": np.zeros(3, np.float32)}
    tx = gradx.scion(0.3, ns_coeffs="exact", radius=2.0)
    g = {"w": np.stack([numbers(4, 6)] * 30), "bias": np.stack([numbers(3)] * 30)}
    after = jax.tree.map(lambda x: np.asarray(x[-1]), trajectory(tx, p, g))
    # Along one gradient it comes to the border, and does not leave.
    assert np.linalg.norm(after["w"], 2) == pytest.approx(2 * np.sqrt(6 / 4), rel=1e-3)
    assert np.sqrt(np.mean(np.square(after["bias"]))) == pytest.approx(2.0, rel=1e-3)
    free = gradx.scion(0.3, ns_coeffs="exact", radius=2.0, unconstrained=True)
    assert np.linalg.norm(trajectory(free, p, g)["w"][-1], 2) > 20


# ---------------------------------------------------------------- polar factors


def test_operations_are_counted_rightly() -> None:
    """What `gram` goes by, against XLA's own count."""
    x = jax.ShapeDtypeStruct((32, 128), jnp.float32)
    steps = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    for i, gram in enumerate((False, True)):
        run = jax.jit(lambda x, steps, gram=gram: polar.newton_schulz(x, steps, gram=gram))
        flops = run.lower(x, steps).compile().cost_analysis()["flops"]
        assert flops == pytest.approx(polar.operations(32, 128, 5)[i], rel=0.15)


def test_the_exact_polar_factor_has_a_derivative_where_singular_values_are_equal() -> None:
    change = jnp.asarray(numbers(3, 3))
    with jax.disable_jit():
        _, along = jax.jvp(polar.exact, (jnp.eye(3),), (change,))
        assert_close(along, (change - change.T) / 2, rtol=1e-6)
        # Elsewhere the rows stay orthonormal, and that is all that a change of length may do.
        a, change = jnp.asarray(numbers(3, 5)), jnp.asarray(numbers(3, 5, seed=1))
        q, along = jax.jvp(polar.exact, (a,), (change,))
        np.testing.assert_allclose(along @ q.T + q @ along.T, np.zeros((3, 3)), atol=1e-5)
        np.testing.assert_allclose(jax.jvp(polar.exact, (a,), (a,))[1], 0 * a, atol=1e-5)
