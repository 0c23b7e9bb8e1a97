"""Averages of the parameters, and the one function that evaluates them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_same, distance, step

import gradx

EMA = gradx.ema_params(0.5)
P = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}
Weighted = Callable[[Sequence[Any], int], Any]  # (theta_0, theta_1, …), count -> what to evaluate


def quadratic(p: Any) -> Any:
    return jax.tree.map(lambda x: 2 * x - 1, p)


def walk(tx: Any, n: int, p: Any = P, jit: bool = True) -> Iterator[tuple[Any, Any]]:
    """The parameters and the state after each step."""
    take = (jax.jit if jit else lambda f: f)(lambda p, s: step(tx, p, s, quadratic(p)))
    state = tx.init(p)
    for _ in range(n):
        p, state = take(p, state)
        yield p, state


# ---------------------------------------------------------------- against float64


def ema(decay: float, debias: bool = True, warmup: bool = False, every: int = 1, start: int = 0):
    def mean(seen: Sequence[Any], t: int) -> Any:
        taken = [x for i, x in enumerate(seen) if i and i >= start and (i - start) % every == 0]
        if t < start or (debias and not taken):
            return seen[-1]
        average, total = seen[0] if start == 0 else seen[start], 0.0 if debias else 1.0
        for m, x in enumerate(taken):
            beta = min(decay, (1 + m) / (10 + m)) if warmup else decay
            total = beta * total + 1 - beta
            average = average + (1 - beta) / total * (x - average)
        return average

    return mean


def latest(window: int, every: int) -> Weighted:
    def mean(seen: Sequence[Any], t: int) -> Any:
        taken = [x for i, x in enumerate(seen) if i and i % every == 0][-window:]
        return np.mean(taken, axis=0) if taken else seen[-1]

    return mean


def swa(start: int, every: int) -> Weighted:
    def mean(seen: Sequence[Any], t: int) -> Any:
        taken = [x for i, x in enumerate(seen) if i and i >= start and (i - start) % every == 0]
        return np.mean(taken, axis=0) if taken else seen[-1]

    return mean


def mixed(mean: Weighted, share: float) -> Weighted:
    return lambda seen, t: (1 - share) * seen[-1] + share * mean(seen, t)


AVERAGES: dict[str, tuple[Any, Weighted]] = {
    "ema": (gradx.ema_params(0.8), ema(0.8)),
    "ema, not corrected": (gradx.ema_params(0.8, debias=False), ema(0.8, False)),
    "ema by half-life": (gradx.ema_params(half_life=3.0), ema(2 ** (-1 / 3))),
    "ema, warmed up": (gradx.ema_params(0.8, debias=False, warmup=True), ema(0.8, False, True)),
    "ema, every 3": (gradx.ema_params(0.8, every=3), ema(0.8, every=3, start=0)),
    "ema, every 3, live": (gradx.ema_params(gradx.tunable(0.8), every=3), ema(0.8, every=3)),
    "ema, half-life, every 2": (
        gradx.ema_params(half_life=3.0, every=2),
        ema(2 ** (-2 / 3), every=2),
    ),
    "ema from step 4": (gradx.ema_params(0.8, start=4), ema(0.8, start=4)),
    "swa": (gradx.swa_params(), swa(0, 1)),
    "swa from step 3, every 2": (gradx.swa_params(3, 2), swa(3, 2)),
    "tail": (gradx.tail_ema_params(4, 0.8), mixed(ema(0.8, False, start=4), 0.6)),
    "lawa": (gradx.lawa_params(3, 2), latest(3, 2)),
    "lawa, one": (gradx.lawa_params(1, 1), latest(1, 1)),
}


def test_averages_are_what_their_formulas_say_after_every_step() -> None:
    """All of them in one chain, which is compiled once; each is asked by its own part."""
    parts = [part for part, _ in AVERAGES.values()]
    tx, plain = gradx.chain(gradx.sgd(0.2, momentum=0.9), *parts), gradx.sgd(0.2, momentum=0.9)
    seen = [jax.tree.map(np.float64, P)]
    first = tx.init(P)
    assert all(
        (x == p).all()
        for part, state in zip(parts, first[1:], strict=True)
        for x, p in zip(*map(jax.tree.leaves, (gradx.eval_params(part, state, P), P)), strict=True)
    )
    for t, ((p, state), (q, _)) in enumerate(zip(walk(tx, 9), walk(plain, 9), strict=True), 1):
        assert_same(p, q)  # the updates pass
        seen.append(jax.tree.map(np.float64, p))
        for name, one in zip(AVERAGES, state[1:], strict=True):
            part, mean = AVERAGES[name]
            x = gradx.eval_params(part, one, p)
            expected = {k: mean([s[k] for s in seen], t) for k in P}
            assert distance(x, expected) < 5e-6, (name, t)


def test_an_average_may_stand_anywhere_in_a_chain() -> None:
    found = []
    for parts in ([EMA, gradx.sgd(0.1)], [gradx.sgd(0.1), EMA]):
        tx = gradx.chain(*parts)
        *_, (p, state) = walk(tx, 3, jit=False)
        found.append(gradx.eval_params(tx, state, p))
    assert_same(*found)


def test_an_average_is_of_the_parameters_as_they_are_left() -> None:
    """With a projection after the update, the average obeys the constraint, too."""
    tx = gradx.chain(gradx.sgd(0.3), gradx.swa_params())
    p, state, seen = P, tx.init(P), []
    for _ in range(4):
        p, state = step(tx, p, state, quadratic(p))
        p = jax.tree.map(lambda x: jnp.clip(x, -0.25, 0.25), p)
        seen.append(np.asarray(p["w"]))
    assert_close(gradx.eval_params(tx, state, p)["w"], np.mean(seen, axis=0), rtol=1e-6)


# ---------------------------------------------------------------- gradients elsewhere


def test_ema_nesterov_is_the_paper_s_two_lines() -> None:
    """theta+ = A(theta + beta m), m <- gamma m + (1 - gamma) (theta+ - theta), in float64."""
    rates = np.array([0.5, 0.5, 0.3, 0.2, 0.0, 0.0])
    tx = gradx.chain(
        gradx.sgd(0.1),
        gradx.ema_nesterov(lambda count: jnp.asarray(rates, jnp.float32)[count], 0.9),
    )
    theta, m, beta = np.array([1.0, -2.0, 3.0]), np.zeros(3), 0.0
    for t, (p, state) in enumerate(walk(tx, 6)):
        y = theta + beta * m
        new = y - 0.1 * (2 * y - 1)
        m = 0.9 * m + 0.1 * (new - theta)
        theta, beta = new, rates[t]
        assert_close(p["w"], theta + beta * m, rtol=1e-5)
        assert_close(gradx.eval_params(tx, state, p)["w"], theta, rtol=1e-5)
    assert_close(gradx.eval_params(tx, state, p)["w"], p["w"], rtol=1e-6)  # at rest they meet


@pytest.mark.parametrize("b1", [0.7, "falling"])
def test_gpa_moves_three_sequences(b1: Any) -> None:
    shares = np.full(6, 0.7) if b1 == 0.7 else np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    source = b1 if b1 == 0.7 else lambda count: jnp.asarray(shares, jnp.float32)[count]
    tx = gradx.gpa(gradx.sgd(0.1), 0.8, source)
    x = y = z = np.array([1.0, -2.0, 3.0])
    for t, (p, state) in enumerate(walk(tx, 6)):
        z = z - 0.1 * (2 * y - 1)
        x = 0.8 * x + 0.2 * z
        y = shares[t] * x + (1 - shares[t]) * z
        assert_close(p["w"], y, rtol=2e-6)
        assert_close(gradx.eval_params(tx, state, p)["w"], x, rtol=1e-5)


# ---------------------------------------------------------------- wherever it is


PLACES: dict[str, Callable[[Any], Any]] = {
    "in Optax's chain": lambda tx: optax.chain(optax.clip(1e3), tx),
    "in a guard": lambda tx: gradx.apply_if_finite(tx, 3),
    "in groups": lambda tx: gradx.partition(
        {"one": tx, "two": tx}, gradx.by_path({"w": "one"}, default="two")
    ),
    "live": lambda tx: gradx.tunable(tx),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_an_average_is_found_wherever_it_is(place: str, every: int) -> None:
    plain = gradx.chain(gradx.sgd(0.2), gradx.ema_params(0.5, every=every))
    tx = PLACES[place](plain)
    *_, (p, state) = walk(plain, 4)
    *_, (q, other) = walk(tx, 4)
    x = gradx.eval_params(plain, state, p)
    assert_close(gradx.eval_params(tx, other, q), x, rtol=1e-6)
    assert_close(gradx.eval_params(tx, {"opt_state": other}, q), x, rtol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_that_does_not_count_leaves_the_average_as_it_is(every: int) -> None:
    inner = gradx.chain(gradx.sgd(0.2), gradx.ema_params(0.5, every=every), gradx.lawa_params(2, 1))
    tx = gradx.apply_if_finite(inner, 3)
    *_, (p, state) = walk(tx, 3)
    broken = jax.tree.map(lambda x: x * jnp.nan, p)
    _, after = jax.jit(lambda s: tx.update(broken, s, p))(state)
    assert_same(after.inner_state, state.inner_state)


def test_accumulation_averages_after_updates_only() -> None:
    large = gradx.chain(gradx.sgd(0.2), EMA)
    tx = gradx.MultiSteps(large, 2)
    p, state, q, other = P, tx.init(P), P, large.init(P)
    for _ in range(3):
        grads = quadratic(q)
        q, other = step(large, q, other, grads)
        for _ in range(2):
            p, state = step(tx, p, state, grads)
    assert_close(gradx.eval_params(tx, state, p), gradx.eval_params(large, other, q), rtol=1e-6)


def test_a_mask_says_what_is_averaged() -> None:
    tx = gradx.chain(gradx.sgd(0.2), gradx.masked(EMA, {"w": True, "b": False}))
    *_, (p, state) = walk(tx, 3)
    x = gradx.eval_params(tx, state, p)
    assert_same(x["b"], p["b"])
    assert (x["w"] != p["w"]).all()


def test_under_vmap_scan_and_donated() -> None:
    tx = gradx.chain(gradx.sgd(0.2), gradx.ema_params(0.5, every=2), gradx.lawa_params(2, 2))

    def run(p: Any) -> Any:
        def body(carry: Any, _: None) -> Any:
            return step(tx, *carry, quadratic(carry[0])), None

        (p, state), _ = jax.lax.scan(body, (p, tx.init(p)), length=5)
        return [gradx.eval_params(tx, state, p, which=w) for w in ("ema_params", "lawa_params")]

    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), P)
    alone = [run(jax.tree.map(lambda x, i=i: x[i], many)) for i in range(2)]
    together = jax.jit(jax.vmap(run))(many)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone[i], rtol=1e-6)


@pytest.mark.parametrize("part", [EMA, gradx.ema_params(0.5, every=2), gradx.lawa_params(2, 1)])
def test_half_precision_is_averaged_in_float32(part: Any) -> None:
    tx = gradx.chain(gradx.sgd(0.2), part)
    half = {"w": jnp.ones(3, jnp.bfloat16), "none": None}
    *_, (p, state) = walk(tx, 2, half)
    kept = [x for x in jax.tree.leaves(state) if x.shape == (3,)]
    assert {x.dtype for x in kept} == {jnp.dtype(jnp.float32)}
    x = gradx.eval_params(tx, state, p)
    assert (x["w"].dtype, x["none"]) == (jnp.bfloat16, None)


def test_in_optaxs_schedule_free() -> None:
    tx = optax.contrib.schedule_free_sgd(0.1)
    *_, (p, state) = walk(tx, 3)
    assert_close(
        gradx.eval_params(tx, state, p),
        optax.contrib.schedule_free_eval_params(state, p),
        rtol=1e-6,
    )


def test_in_a_flax_optimizer() -> None:
    from flax import nnx

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    for part in (EMA, gradx.ema_params(0.5, every=2), gradx.lawa_params(2, 1)):
        tx = gradx.chain(gradx.sgd(0.1), part)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(3):
            optimizer.update(model, nnx.state(model, nnx.Param))
        params = nnx.state(model, nnx.Param)
        x = gradx.eval_params(tx, optimizer.opt_state, params)
        assert jax.tree.structure(x) == jax.tree.structure(params)
        assert (x["kernel"][...] != model.kernel[...]).any()


# ---------------------------------------------------------------- several, and lookahead


def test_two_averages_at_once_want_a_name() -> None:
    tx = gradx.chain(gradx.schedule_free_sgd(0.1), EMA)
    *_, (p, state) = walk(tx, 3)
    with pytest.raises(ValueError, match=r"several averages, \['schedule_free', 'ema_params'\]"):
        gradx.eval_params(tx, state, p)
    x = gradx.eval_params(tx, state, p, which="schedule_free")
    assert_same(x, gradx.schedule_free_eval_params(state, p))
    with pytest.raises(ValueError, match=r"which must be one of .* got 'ema'"):
        gradx.eval_params(tx, state, p, which="ema")
    twice = gradx.chain(EMA, EMA)
    with pytest.raises(ValueError, match=r"\['0/ema_params', '1/ema_params'\]"):
        gradx.eval_params(twice, twice.init(P), P)


def test_lookahead_alone_inside_and_outside() -> None:
    fast = gradx.chain(gradx.sgd(0.2), EMA)
    tx = gradx.lookahead(gradx.sgd(0.2), 2, 0.5)
    pair = gradx.LookaheadParams.init_synced(P)
    assert_same(gradx.eval_params(tx, tx.init(pair), pair), P)

    inside = gradx.lookahead(fast, 2, 0.5)
    state = inside.init(pair)
    with pytest.raises(ValueError, match=r"\['ema_params', 'lookahead'\]"):
        gradx.eval_params(inside, state, pair)
    assert_same(gradx.eval_params(inside, state, pair, which="lookahead"), pair.slow)
    assert_same(gradx.eval_params(inside, state, pair, which="ema_params"), pair.fast)

    outside = optax.chain(tx, EMA)
    state, seen = outside.init(pair), []
    for _ in range(4):
        updates, state = outside.update(quadratic(pair.fast), state, pair)
        pair = gradx.apply_updates(pair, updates)
        seen.append(np.asarray(pair.slow["w"]))
    expected = ema(0.5)([np.asarray(P["w"]), *seen], 4)
    assert_close(gradx.eval_params(outside, state, pair)["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("make", [gradx.sam, gradx.look_sam])
def test_uphill_the_parameters_at_home_are_evaluated(make: Any) -> None:
    tx = make(gradx.sgd(0.2), gradx.chain(gradx.normalize(), gradx.sgd(0.1)))
    state = tx.init(P)
    uphill, state = step(tx, P, state, quadratic(P))
    assert_same(gradx.eval_params(tx, state, uphill), P)
    assert (uphill["w"] != P["w"]).all()
    p, state = step(tx, uphill, state, quadratic(uphill))
    assert_same(gradx.eval_params(tx, state, p), p)


# ---------------------------------------------------------------- wrong arguments


def test_what_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match="ema_params: give decay or half_life, one of them"):
        gradx.ema_params()
    with pytest.raises(ValueError, match="ema_params: give decay or half_life, one of them"):
        gradx.ema_params(0.9, half_life=10)
    with pytest.raises(ValueError, match=r"ema_params: decay must be in \[0, 1\), got 1.0"):
        gradx.ema_params(1.0)
    with pytest.raises(ValueError, match="swa_params: every must be"):
        gradx.swa_params(every=0)
    with pytest.raises(ValueError, match=r"adam\(0.1\) averages no parameters"):
        gradx.eval_params(gradx.adam(0.1), gradx.adam(0.1).init(P), P)
    for part in (EMA, gradx.ema_params(0.5, every=2), gradx.lawa_params(2, 1)):
        with pytest.raises(ValueError, match="_params: needs the parameters: call update"):
            part.update(P, part.init(P))
        with pytest.raises(ValueError, match="of type TraceState instead of"):
            part.update(P, gradx.trace(0.9).init(P), P)


def test_an_average_inside_sam_is_of_the_parameters_at_home() -> None:
    adversary = gradx.chain(gradx.normalize(), gradx.sgd(0.1))
    tx, plain = (
        gradx.sam(gradx.chain(gradx.sgd(0.2), EMA), adversary),
        gradx.sam(gradx.sgd(0.2), adversary),
    )
    seen = [np.asarray(p["w"]) for p, _ in walk(plain, 4, jit=False)][1::2]
    for t, (p, state) in enumerate(walk(tx, 5, jit=False), 1):
        if t > 2:  # also after the fifth call, which moved them uphill
            expected = ema(0.5)([np.asarray(P["w"]), *seen[: t // 2]], t // 2)
            assert_close(gradx.eval_params(tx, state, p)["w"], expected, rtol=1e-6)


def test_until_the_first_average_the_parameters_are_evaluated() -> None:
    for part in (gradx.swa_params(every=3), gradx.ema_params(0.5, every=3)):
        tx = gradx.chain(gradx.sgd(0.2), part)
        for p, state in walk(tx, 3, jit=False):
            assert_close(gradx.eval_params(tx, state, p), p, rtol=1e-6)


def test_snapshots_of_another_window_are_refused() -> None:
    with pytest.raises(ValueError, match="with 2 snapshots instead of 3"):
        gradx.lawa_params(3, 1).update(P, gradx.lawa_params(2, 1).init(P), P)


def test_what_stands_around_lookahead_says_where_to_put_it() -> None:
    tx = gradx.skip_nonfinite(gradx.lookahead(gradx.sgd(0.1), 2, 0.5))
    pair = gradx.LookaheadParams.init_synced(P)
    with pytest.raises(ValueError, match=r"put it inside, lookahead\(chain"):
        tx.update(P, tx.init(pair), pair)
