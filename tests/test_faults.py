"""Faults in random chains of wrappers, and every wrapper around every other one."""

from __future__ import annotations

from random import Random
from typing import Any

import jax
import numpy as np
import pytest
from problems import assert_same
from wrappers import INNER, PARAMS, WRAPPERS, built, gradients, random_chain

import gradx

STEPS = 20


def stepped(tx: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return gradx.apply_updates(params, updates), state

    return step


def check_guarded(seed: int) -> None:
    """With a guard around any chain, bad steps leave no trace but the guard's own counts."""
    random = Random(seed)
    name, tx = random_chain(random)
    made, good = gradients(random, STEPS)
    guard = gradx.skip_nonfinite(tx)
    step = stepped(guard)
    params, state = PARAMS, guard.init(PARAMS)
    for grads in made:
        params, state = step(params, state, grads)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params)), name
    others, other = PARAMS, guard.init(PARAMS)
    for grads, is_good in zip(made, good, strict=True):
        if is_good:
            others, other = step(others, other, grads)
    assert int(state.skipped) == good.count(False)
    assert_same(params, others)
    assert_same(state.inner_state, other.inner_state)


@pytest.mark.parametrize("seed", range(2))
def test_a_guard_keeps_a_fault_out_of_a_random_chain(seed: int) -> None:
    check_guarded(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 42))
def test_a_guard_keeps_faults_out_of_random_chains(seed: int) -> None:
    check_guarded(seed)


@pytest.mark.slow
@pytest.mark.parametrize("begin", range(42, 1000, 42))
def test_a_guard_keeps_faults_out_of_a_thousand_random_chains(begin: int) -> None:
    for seed in range(begin, min(begin + 42, 1000)):
        check_guarded(seed)


# ---------------------------------------------------------------- pairs

PAIRS = [(outer, inner) for outer in WRAPPERS for inner in WRAPPERS]


def check_pair(outer: str, inner: str) -> None:
    """It runs under jit and scan alike, and keeps finite parameters finite, or says why not."""
    bases = list(INNER)
    base = bases[PAIRS.index((outer, inner)) % len(bases)]
    try:
        tx = built([outer, inner], base)
    except ValueError:
        with pytest.raises(ValueError, match=r"^\S+: .{20}"):  # who refuses, and why
            built([outer, inner], base)
        return
    state = tx.init(PARAMS)
    noise = jax.random.normal(jax.random.key(0), (STEPS, 9))
    made = {"a": noise[:, :6].reshape(STEPS, 2, 3), "b": noise[:, 6:]}
    step = stepped(tx)
    params = PARAMS
    for i in range(STEPS):
        params, state = step(params, state, jax.tree.map(lambda x, i=i: x[i], made))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params)), (outer, inner)

    @jax.jit
    def run(made: Any) -> Any:
        return jax.lax.scan(
            lambda carry, grads: (step(*carry, grads), None), (PARAMS, tx.init(PARAMS)), made
        )[0]

    scanned, _ = run(made)
    for x, y in zip(*map(jax.tree.leaves, (scanned, params)), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def sampled(share: float) -> list[tuple[str, str]]:
    return Random(0).sample(PAIRS, round(share * len(PAIRS)))


FEW = sampled(0.003)


@pytest.mark.parametrize(("outer", "inner"), FEW)
def test_a_wrapper_around_a_wrapper_runs_or_says_why_not(outer: str, inner: str) -> None:
    check_pair(outer, inner)


@pytest.mark.full
@pytest.mark.parametrize(("outer", "inner"), sampled(0.08)[len(FEW) :])
def test_some_wrappers_around_wrappers_run_or_say_why_not(outer: str, inner: str) -> None:
    check_pair(outer, inner)


@pytest.mark.slow
@pytest.mark.parametrize("outer", WRAPPERS)
def test_every_wrapper_around_every_wrapper_runs_or_says_why_not(outer: str) -> None:
    for inner in WRAPPERS:
        check_pair(outer, inner)
