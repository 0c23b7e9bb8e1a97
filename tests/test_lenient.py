"""What Optax accepts with a meaning has that meaning here; where Optax warns, so does gradx."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradx

PARAMS = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}


# ---------------------------------------------------------------- numbers at the border


def test_a_sum_keeps_all_or_turns_back() -> None:
    for decay in (1.0, -0.5, -1.0):
        ours, theirs = gradx.trace(decay), optax.trace(decay)
        state, their_state = ours.init(PARAMS), theirs.init(PARAMS)
        for _ in range(3):
            made, state = ours.update(PARAMS, state)
            expected, their_state = theirs.update(PARAMS, their_state)
        np.testing.assert_array_equal(made["bias"], expected["bias"])
    assert repr(gradx.sgd(0.1, 1.0)) == "sgd(0.1, momentum=1.0)"
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        gradx.ema(1.0)  # whose bias correction divides by 1 - decay


@pytest.mark.parametrize("step_size", [0.0, 1.5])
def test_slow_parameters_may_stay_or_overtake(step_size: float) -> None:
    after = []
    for lib in (gradx, optax):
        tx = lib.lookahead(lib.sgd(0.5), 2, step_size)
        params: Any = lib.LookaheadParams.init_synced(jnp.ones(1))
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jnp.ones(1), state, params)
            params = lib.apply_updates(params, updates)
        after.append(params)
    np.testing.assert_array_equal(jnp.stack(after[0]), jnp.stack(after[1]))


def test_a_refusal_says_how_to_get_it() -> None:
    with pytest.raises(ValueError, match=r"got -0.1. To climb, put scale\(-1.0\) behind it"):
        gradx.adam(-0.1)
    with pytest.raises(ValueError, match=r"got -1.0. add_decayed_weights takes any number"):
        gradx.adamw(0.1, weight_decay=-1.0)


def test_options_without_an_effect_are_no_errors() -> None:
    assert gradx.sgd(0.1, accumulator_dtype=jnp.float32).init(PARAMS) == gradx.sgd(0.1).init(PARAMS)
    gradx.adafactor(0.1, weight_decay_mask={"bias": False, "kernel": True}).init(PARAMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dampening": 0.5}, "dampening needs a momentum"),
        ({"nesterov": True}, "nesterov needs a momentum"),
        ({"dampening": 0.5, "momentum": 0.9, "nesterov": True}, "nesterov .* without dampening"),
    ],
)
def test_dampening_is_of_momentum(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^sgd: {message}"):
        gradx.sgd(0.1, **arguments)


def test_no_dampening_is_a_plain_sum() -> None:
    """And without momentum there is none, as in PyTorch."""
    for plain in (
        gradx.sgd(0.1, 0.9, nesterov=True, dampening=0.0),
        gradx.sgd(0.1, 0.0, dampening=0.5),
    ):
        state = plain.init(PARAMS)
        assert jax.tree.structure(state) == jax.tree.structure(gradx.sgd(0.1, 0.9).init(PARAMS))


def test_dampening_is_that_of_pytorch() -> None:
    """The trajectory of `sgd_ema` in trajectories/table.py, whose first gradient is 0."""
    with np.load(Path(__file__).parent / "trajectories" / "torch.npz") as stored:
        start, grads, after = (
            stored[f"{what}/w"] for what in ("params", "grads/sparse", "after/sgd_ema")
        )
    with jax.enable_x64(True), jax.disable_jit():
        params = jnp.asarray(start)
        tx = gradx.sgd(0.01, momentum=0.9, dampening=0.9)
        state, made = tx.init(params), []
        for g in grads[:8]:
            updates, state = tx.update(jnp.asarray(g), state, params)
            params = params + updates
            made.append(params)
        for i, step in enumerate((1, 2, 3, 5, 8)):
            np.testing.assert_allclose(made[step - 1], after[i], rtol=0, atol=1e-12)


# ---------------------------------------------------------------- names of yesterday, and no key

OLD_NAMES: dict[str, tuple[Any, ...]] = {
    "add_noise": (0.1, 0.5),
    "noisy_sgd": (0.1, 0.01, 0.55),
    "differentially_private_aggregate": (1.0, 0.5),
    "dpsgd": (0.1, 1.0, 0.5),
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_of_arguments(name: str) -> None:
    factory, args = getattr(gradx, name), OLD_NAMES[name]
    with pytest.warns(DeprecationWarning, match=f"^{name}: .* seed is called key now") as said:
        old = factory(*args, seed=3)
    assert said[0].filename == __file__
    assert old == factory(*args, key=3)
    assert repr(old) == repr(factory(*args, 3))
    old_name = pytest.warns(DeprecationWarning, match="called key now")
    with old_name, pytest.raises(ValueError, match="one argument"):
        factory(*args, key=0, seed=3)
    with pytest.warns(DeprecationWarning, match="called key now"):
        gradx.inject_hyperparams(factory)(*args, seed=3)


def test_a_config_may_have_old_names() -> None:
    config = {"name": "noisy_sgd", "arguments": {"learning_rate": 0.1, "seed": 3}}
    with pytest.warns(DeprecationWarning, match="called key now"):
        assert gradx.from_config(config) == gradx.noisy_sgd(0.1, key=3)


@pytest.mark.parametrize("name", [name for name in OLD_NAMES if name != "dpsgd"])
def test_without_a_key_it_is_that_of_0_and_said(name: str) -> None:
    factory, args = getattr(gradx, name), OLD_NAMES[name]
    with pytest.warns(UserWarning, match=f"^{name}.*without a key the noise is that of key=0"):
        made = factory(*args)
    stacked = jax.tree.map(lambda p: p[None], PARAMS)
    updates = [tx.update(stacked, tx.init(PARAMS))[0]["kernel"] for tx in (made, factory(*args, 0))]
    np.testing.assert_array_equal(*updates)


def test_what_optax_calls_deprecated() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(DeprecationWarning, match="use `optimistic_adam_v2` instead"):
            gradx.optimistic_adam(0.1)
        with pytest.warns(DeprecationWarning, match="use inject_hyperparams"):
            gradx.inject_stateful_hyperparams(gradx.sgd)(0.1)


# ---------------------------------------------------------------- errors that programs catch


@pytest.mark.parametrize(
    "tx",
    [
        gradx.polyak_sgd(),
        gradx.lbfgs(),
        gradx.sgd(gradx.from_call("learning_rate")),
        gradx.hutchinson_estimator_diag_hessian(),
    ],
    ids=lambda tx: tx.spec.name,
)
def test_a_missing_extra_argument_is_a_type_error(tx: Any) -> None:
    for kind in (TypeError, ValueError):
        with pytest.raises(kind, match="needs the extra argument"):
            jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), PARAMS)


def test_two_line_searches_are_a_key_error() -> None:
    search = gradx.scale_by_backtracking_linesearch(5, store_grad=True)
    state = gradx.chain(search, search).init(PARAMS)
    with pytest.raises(KeyError) as raised:
        gradx.value_and_grad_from_state(gradx.global_norm)(PARAMS, state=state)
    assert str(raised.value).startswith("value_and_grad_from_state: the state must have one line")


# ---------------------------------------------------------------- other people's arrays


def test_python_integers_under_jit_are_numbers() -> None:
    """There they are weakly typed scalars; integers of an array are refused as ever."""
    tx = gradx.chain(gradx.clip_by_global_norm(1.0), gradx.adamw(0.1))
    params: Any = {"a": 1, "b": 2.5}
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, params, state, params)
    assert state == new
    assert [x.dtype for x in jax.tree.leaves((updates, new[1][0].mu))] == [jnp.float32] * 4
    for bad in (jnp.int32(1), np.int32(1), True):
        with pytest.raises(ValueError, match="only real and complex floating-point arrays"):
            tx.init({"a": bad})


def test_numbers_of_numpy_are_injected_under_jit() -> None:
    made = [
        gradx.inject_hyperparams(gradx.adamw)(np.array(0.1), b1=np.float32(0.9)),
        gradx.inject_hyperparams(gradx.adamw)(np.array(1), mask=np.array(True)),
        gradx.inject_hyperparams(gradx.adafactor)(0.1, min_dim_size_to_factor=np.array(2)),
    ]
    for tx in made:
        state = jax.eval_shape(tx.init, PARAMS)
        jax.eval_shape(tx.update, PARAMS, state, PARAMS)


def test_micro_batches_of_python_integers_under_jit() -> None:
    tx = gradx.MultiSteps(gradx.sgd(0.1), 2)
    state = jax.jit(tx.init)({"a": 3})
    assert jax.tree.structure(state) == jax.tree.structure(tx.init({"a": 3}))
    for g in (1.0, 3.0):
        updates, state = tx.update({"a": g}, state, {"a": 3})
    np.testing.assert_allclose(updates["a"], -0.2, rtol=1e-6)


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.scales = nnx.List([nnx.Param(jnp.ones(2)), nnx.Param(jnp.ones(2))])


STATE = jax.tree.map(jnp.ones_like, nnx.state(Layer(nnx.Rngs(0)), nnx.Param))
LINEAR = {"kernel": True, "bias": False}


def of_params(tree: Any) -> Any:
    return jax.tree.map(nnx.Param, tree)


@pytest.mark.parametrize("params", [STATE, nnx.to_pure_dict(STATE)], ids=["State", "dict"])
@pytest.mark.parametrize(
    "mask",
    [
        jax.tree.map(lambda x: x.ndim > 1, STATE),
        nnx.State(of_params({"linear": LINEAR, "scales": {0: False, 1: False}})),
        of_params({"linear": LINEAR, "scales": [False, False]}),
        of_params({"linear": LINEAR, "scales": False}),
        nnx.State({"linear": nnx.State(of_params(LINEAR)), "scales": nnx.Param(False)}),
    ],
    ids=["mapped", "State", "dict", "prefix", "State in State"],
)
def test_masks_and_labels_of_nnx(params: Any, mask: Any) -> None:
    labels = jax.tree.map(lambda m: "a" if m else "b", mask)
    groups = {"a": gradx.scale(2.0), "b": gradx.scale(1.0)}
    for tx in (
        gradx.masked(gradx.scale(2.0), mask),
        gradx.masked(gradx.scale(2.0), lambda tree: mask),
        gradx.partition(groups, labels),
    ):
        with jax.disable_jit():
            made, _ = tx.update(params, tx.init(params), params)
        assert [float(u.max()) for u in jax.tree.leaves(made)] == [
            2.0 if p.ndim > 1 else 1.0 for p in jax.tree.leaves(params)
        ]


def test_a_mask_of_nnx_has_the_leaves_of_the_parameters() -> None:
    for mask in (of_params({"linear": LINEAR}), of_params({"linear": LINEAR, "other": True})):
        with pytest.raises(ValueError, match=r"mask must be a tree of the parameters' structure"):
            gradx.masked(gradx.scale(2.0), mask).init(STATE)
