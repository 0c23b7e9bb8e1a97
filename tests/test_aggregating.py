"""`gradx.experimental.aggregating`: as Optax's, in float32 where it is in half precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating as theirs
from problems import assert_close, step

import gradx
from gradx.experimental import aggregating as ours

PARAMS = {"w": np.ones((2, 3), np.float32), "b": np.float32(0.5)}
CALLS = 5


def examples(call: int, size: int = 4) -> Any:
    """Gradients of single examples that hardly differ, as far from 0."""
    rng = np.random.default_rng(call)
    return {
        name: rng.normal(100.0, 1.0, (size, *p.shape)).astype(np.float32)
        for name, p in PARAMS.items()
    }


def run(tx: Any, per_example: bool = True) -> list[Any]:
    params, state, found = PARAMS, tx.init(PARAMS), []
    for call in range(CALLS):
        grads = examples(call)
        if not per_example:
            grads = jax.tree.map(lambda g: g[0], grads)
        updates, new = tx.update(grads, state, params)
        assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, state)
        params, state = optax.apply_updates(params, updates), new
        found.append((updates, state))
    return found


CHAINS = {
    "mean": lambda m, g: m.process(g.identity(), m.average_per_element_updates(), g.adam(0.1)),
    "clipped": lambda m, g: m.process(g.clip(100.0), m.average_per_element_updates(0), g.sgd(0.1)),
    "over calls": lambda m, g: m.process(
        g.identity(), m.average_incrementally_updates(0, 2), g.adam(0.1)
    ),
    "over one call": lambda m, g: m.average_incrementally_updates(0, 1),
    "variance": lambda m, g: m.add_mean_variance_to_opt(g.adam(0.1)),
    "variance over calls": lambda m, g: m.add_mean_variance_to_opt(
        g.sgd(0.1), ema_decay=0.5, accumulation_steps=2
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_updates_and_states_are_optaxs(chain: str) -> None:
    with jax.disable_jit():
        for mine, wanted in zip(
            run(CHAINS[chain](ours, gradx)), run(CHAINS[chain](theirs, optax)), strict=True
        ):
            for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-4)
        if "variance" in chain:
            state = wanted[1]  # Optax's own, of the last call
            assert_close(
                ours.get_unbiased_mean_and_variance_ema(state),
                theirs.get_unbiased_mean_and_variance_ema(state),
                rtol=1e-5,
            )


def test_without_an_axis_only_calls_are_averaged() -> None:
    with jax.disable_jit():
        mine, wanted = (
            run(m.average_incrementally_updates(None, 2), per_example=False) for m in (ours, theirs)
        )
    assert_close(mine, wanted, rtol=1e-6)
    assert type(mine[0][1]) is ours.AccumulateAvgUpdatesState
    assert ours.accumulate_avg_updates(1).init(PARAMS) == gradx.EmptyState()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_several_calls_are_one_large_batch(dtype: Any) -> None:
    """And in half precision as well: means and distances are float32."""
    whole = ours.get_per_element_mean_and_sum_sq_diff_grads(0, 1)
    parts = ours.get_per_element_mean_and_sum_sq_diff_grads(0, 2)
    w = jnp.asarray(examples(0, size=8)["w"], dtype)
    with jax.disable_jit():
        (mean, wanted), _ = whole.update(w, whole.init(w[0]))
        nothing, state = parts.update(w[:4], parts.init(w[0]))
        found, _ = parts.update(w[4:], state)
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))
    assert_close(found, (mean, wanted), rtol=1e-5 + np.finfo(dtype).eps)
    assert mean.dtype == found[0].dtype == dtype
    exact = np.asarray(w, np.float64)
    distances = np.sum((exact - exact.mean(0)) ** 2, 0)
    np.testing.assert_allclose(wanted["sum_sq_diff_grads"], distances, rtol=1e-4)


def test_between_steps_the_optimizer_stands_still() -> None:
    """Not only its updates are 0: its state is the same, and a live value stays settable."""
    tx = ours.process(
        gradx.identity(), ours.average_incrementally_updates(0, 2), gradx.adam(gradx.tunable(0.1))
    )
    state = tx.init(PARAMS)
    _, after = tx.update(examples(0), state, PARAMS)
    for a, b in zip(jax.tree.leaves(after[2]), jax.tree.leaves(state[2]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert gradx.hyperparams(after) == {"learning_rate": np.float32(0.1)}
    assert "accumulate_avg_updates" in str(gradx.describe(tx, PARAMS))


def test_they_describe_themselves() -> None:
    tx = ours.add_mean_variance_to_opt(gradx.sgd(0.1), accumulation_steps=2)
    assert repr(tx) == "add_mean_variance_to_opt(sgd(0.1), accumulation_steps=2)"
    assert gradx.from_config(gradx.to_config(tx)) == tx
    assert isinstance(tx, ours.Aggregator)
    assert isinstance(tx, gradx.Transform)
    assert not isinstance(ours.process(*[gradx.identity()] * 3), ours.Aggregator)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^process: aggregator must be a transformation, got 3"):
        ours.process(gradx.identity(), 3, gradx.identity())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"accumulation_steps must be in \[1, inf\), got 0"):
        ours.average_incrementally_updates(0, 0)
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1"):
        ours.track_per_element_mean_and_variance_with_ema(1.0)
    tracked = ours.track_per_element_mean_and_variance_with_ema()
    with pytest.raises(ValueError, match=r"needs sum_sq_diff_grads=… and sample_size=…"):
        tracked.update(PARAMS, tracked.init(PARAMS))
    with pytest.raises(ValueError, match=r"same number of examples.*'b': 3, 'w': 2"):
        ours.get_batch_size_from_per_elt_updates({"b": jnp.ones(3), "w": jnp.ones((2, 2))}, 0)
    with pytest.raises(ValueError, match="add_mean_variance_to_opt makes one"):
        ours.get_unbiased_mean_and_variance_ema(gradx.EmptyState())


def test_optaxs_parts_fit_in() -> None:
    mixed = ours.process(optax.identity(), theirs.average_per_element_updates(), optax.sgd(0.1))
    assert isinstance(mixed, ours.Aggregator)
    params, _ = step(mixed, PARAMS, mixed.init(PARAMS), examples(0))
    assert params["w"].shape == (2, 3)
