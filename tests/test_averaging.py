"""Schedule-free, lookahead, SAM and what stands around them: what the laws do not cover."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilers import counts_buffers
from problems import assert_close, assert_same, gradients, params, step, trajectory

import gradx


def run(tx: Any, p: Any, grads: Any, n: int, **extra: Any) -> tuple[Any, Any]:
    def body(carry: Any, _: Any) -> Any:
        return step(tx, *carry, grads(carry[0]), **extra), None

    return jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=n)[0])(p)


def quadratic(p: Any) -> Any:
    return jax.tree.map(lambda x: 2 * x * jnp.arange(1.0, x.size + 1), p)


P2 = jnp.array([1.0, -2.0])


# ---------------------------------------------------------------- schedule-free: the counts


def authors(n: int, warmup: int, rate: float, b1: float = 0.9) -> Any:
    """The authors' loop for SGD, whose warmup begins at 1 / W."""
    x = y = z = np.array([1.0, -2.0])
    weight_sum = largest = 0.0
    for k in range(n):
        lr = rate * min(1.0, (k + 1) / warmup)
        largest = max(largest, lr)
        weight_sum += largest**2
        c = largest**2 / weight_sum
        z = z - lr * 2 * y * np.array([1.0, 2.0])
        x = (1 - c) * x + c * z
        y = b1 * x + (1 - b1) * z
    return y, x


def test_after_its_idle_step_a_warmup_is_that_of_the_authors() -> None:
    y, x = authors(10, 4, 0.1)
    p, state = run(gradx.schedule_free_sgd(0.1, warmup_steps=4), P2, quadratic, 11)
    assert_close(p, y, rtol=1e-6)
    assert_close(gradx.schedule_free_eval_params(state, p), x, rtol=1e-6)


def test_a_count_ahead_gives_optaxs_numbers_and_the_authors() -> None:
    def ahead(tx: Any) -> Any:
        p, state = P2, tx.init(P2)
        assert state.step_count == 0
        state = state._replace(step_count=state.step_count + 1)
        for _ in range(10):
            p, state = step(tx, p, state, quadratic(p))
        return p

    rate = gradx.warmup_constant_schedule(0.0, 0.1, 4)
    tx = gradx.schedule_free(gradx.sgd(rate), rate)
    theirs, _ = run(optax.contrib.schedule_free_sgd(0.1, warmup_steps=4), P2, quadratic, 10)
    assert_close(ahead(tx), theirs, rtol=1e-6)
    assert abs(theirs - run(tx, P2, quadratic, 10)[0]).max() > 1e-3
    assert_close(ahead(gradx.schedule_free_sgd(0.1, warmup_steps=4)), authors(10, 4, 0.1)[0], 1e-6)


def test_a_schedule_is_asked_what_the_base_optimizers_is() -> None:
    asked: dict[str, list[int]] = {"base": [], "average": []}

    def schedule(who: str) -> Any:
        def rate(count: Any) -> Any:
            if not isinstance(count, jax.core.Tracer):
                asked[who].append(int(count))
            return 0.1 + 0.0 * count

        return rate

    tx = gradx.schedule_free(gradx.sgd(schedule("base")), schedule("average"))
    state = tx.init(P2)
    for _ in range(3):
        _, state = tx.update(P2, state, P2)
    assert asked == {"base": [0, 1, 2], "average": [0, 1, 2]}


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_a_learning_rate_of_zero(power: float) -> None:
    tx = gradx.schedule_free(gradx.sgd(0.0), 0.0, weight_lr_power=power)
    p, state = run(tx, P2, quadratic, 3)
    assert_same((p, gradx.schedule_free_eval_params(state, p)), (P2, P2))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_half_precision_counts_on() -> None:
    """Weights added up in bfloat16 stop at 256 of them; then the mean is of the last ones only."""
    tx = gradx.schedule_free_sgd(1.0)
    p = jnp.ones(2, jnp.bfloat16)

    def body(state: Any, _: Any) -> Any:
        return tx.update(jnp.zeros_like(p), state, p)[1], None

    state, _ = jax.jit(lambda s: jax.lax.scan(body, s, length=300))(tx.init(p))
    assert state.weight_sum == 300


# ---------------------------------------------------------------- schedule-free: numbers and state


def test_a_b1_that_changes_leaves_the_average_where_it_is() -> None:
    tx = gradx.schedule_free_sgd(0.1, b1=gradx.tunable(0.9))
    p, state = P2, tx.init(P2)
    x = z = np.asarray(P2, np.float64)
    for t, b1 in enumerate([0.9, 0.9, 0.6, 0.6, 0.95]):
        state = gradx.set_hyperparams(state, b1=b1)
        z = z - 0.1 * np.asarray(quadratic(p))
        x = x + (z - x) / (t + 1)
        p, state = step(tx, p, state, quadratic(p))
        assert_close(p, b1 * x + (1 - b1) * z, rtol=1e-6)
        assert_close(gradx.schedule_free_eval_params(state, p), x, rtol=1e-6)


@pytest.mark.parametrize("make", [gradx.schedule_free_sgd, gradx.schedule_free_adamw])
@pytest.mark.parametrize("warmup", [None, 2])
def test_the_shortcuts_have_one_learning_rate(make: Any, warmup: int | None) -> None:
    tx = make(gradx.tunable(0.5), warmup)
    state = tx.init(P2)
    assert list(gradx.hyperparams(state)) == ["learning_rate"]
    p, state = step(tx, P2, gradx.set_hyperparams(state, learning_rate=0.01), quadratic(P2))
    p, state = step(tx, p, state, quadratic(p))
    assert_close(p, run(make(0.01, warmup), P2, quadratic, 2)[0], rtol=1e-6)


def test_the_shortcuts_are_what_they_say() -> None:
    """The base optimizer's learning rate may stand on either side."""
    short = gradx.schedule_free_adamw(0.1, b1=0.8, weight_decay=0.1)
    long = gradx.schedule_free(gradx.adamw(0.1, b1=0.0, weight_decay=0.1), 0.1, b1=0.8)
    foreign = gradx.schedule_free(optax.adamw(0.1, b1=0.0, weight_decay=0.1), 0.1, b1=0.8)
    ours, _ = run(short, P2, quadratic, 5)
    assert_close(run(long, P2, quadratic, 5)[0], ours, rtol=1e-6)
    assert_close(run(foreign, P2, quadratic, 5)[0], ours, rtol=1e-5)


def test_a_state_of_optax_goes_on_and_keeps_its_class() -> None:
    theirs, ours = optax.contrib.schedule_free_adamw(0.1), gradx.schedule_free_adamw(0.1)
    p, state = run(theirs, P2, quadratic, 3)
    expected, _ = step(theirs, p, state, quadratic(p))

    def body(carry: Any, _: Any) -> Any:
        return step(ours, *carry, quadratic(carry[0])), None

    (p, state), _ = jax.lax.scan(body, (p, state), length=1)
    assert_close(p, expected, rtol=1e-6)
    assert isinstance(state, optax.contrib.ScheduleFreeState)
    assert_close(
        gradx.schedule_free_eval_params(state, p),
        optax.contrib.schedule_free_eval_params(state, p),
        rtol=1e-6,
    )


def test_a_state_in_half_precision_has_a_constant_b1() -> None:
    """Optax keeps b1 in the dtype of the parameters; 0.9 is 0.8984 in bfloat16, not a change."""
    p = P2.astype(jnp.bfloat16)
    state = optax.contrib.schedule_free_sgd(0.0).init(p)
    assert state.b1.dtype == jnp.bfloat16
    tx = gradx.schedule_free_sgd(0.0)
    for _ in range(20):
        updates, state = tx.update(jnp.zeros_like(p), state, p * 2)
        assert not updates.any()


@pytest.mark.parametrize(
    "tx",
    [
        gradx.schedule_free(gradx.adam(0.1, b1=0.0), 0.1),
        gradx.schedule_free(optax.sgd(0.1), 0.1),
        gradx.schedule_free_sgd(),
        gradx.sam(gradx.adam(0.1), gradx.sgd(0.1)),
    ],
)
def test_parameters_and_state_can_both_be_donated(tx: Any) -> None:
    p = {"a": jnp.ones(3), "b": None}
    donated = jax.jit(lambda p, s: step(tx, p, s, p), donate_argnums=(0, 1))
    p, state = donated(p, tx.init(p))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(donated(p, state)))


def test_the_dtype_of_z() -> None:
    half, double = jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.complex64)
    assert gradx.schedule_free_sgd().init(half).z.dtype == jnp.float32
    tx = gradx.schedule_free_sgd(state_dtype=jnp.bfloat16)
    p, state = step(tx, P2, tx.init(P2), P2)
    assert state.z.dtype == jnp.bfloat16
    assert p.dtype == gradx.schedule_free_eval_params(state, p).dtype == jnp.float32
    assert tx.init(double).z.dtype == jnp.complex64


def test_another_state_is_refused() -> None:
    tx = gradx.schedule_free(gradx.sgd(0.1), 0.1)
    with pytest.raises(ValueError, match="instead of ScheduleFreeState"):
        tx.update(P2, gradx.sgd(0.1).init(P2), P2)


# ---------------------------------------------------------------- where to evaluate


def test_the_state_is_found_wherever_it_is() -> None:
    p = {"a": jnp.ones(2), "b": jnp.full(3, 2.0), "c": None}
    free = gradx.schedule_free_sgd(0.1, b1=0.5)
    expected, state = run(free, p, quadratic, 3)
    x = gradx.schedule_free_eval_params(state, expected)
    for tx in (
        gradx.chain(gradx.identity(), free),
        optax.chain(optax.identity(), gradx.named_chain(("free", free))),
        gradx.schedule_free_sgd(gradx.tunable(0.1), b1=0.5),
        gradx.apply_if_finite(free, 3),
        gradx.partition({"one": free, "two": free}, gradx.by_path({"a": "one"}, default="two")),
    ):
        y, state = run(tx, p, quadratic, 3)
        assert_close(y, expected, rtol=1e-6)
        assert_close(gradx.schedule_free_eval_params(state, y), x, rtol=1e-6)


def test_leaves_of_others_are_as_they_are() -> None:
    p = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = gradx.partition(
        {"free": gradx.schedule_free_sgd(0.1), "plain": gradx.sgd(0.1)},
        gradx.by_path({"a": "free"}, default="plain"),
    )
    y, state = run(tx, p, quadratic, 3)
    x = gradx.schedule_free_eval_params(state, y)
    assert_same(x["b"], y["b"])
    assert (x["a"] != y["a"]).all()


def test_what_there_is_not_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no ScheduleFreeState in the state, a tuple"):
        gradx.schedule_free_eval_params(gradx.adam(0.1).init(P2), P2)
    twice = gradx.chain(gradx.schedule_free_sgd(), gradx.schedule_free_sgd())
    with pytest.raises(ValueError, match="two states have the leaf 'w'"):
        gradx.schedule_free_eval_params(twice.init({"w": P2}), {"w": P2})


def test_in_a_flax_optimizer() -> None:
    from flax import nnx

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gradx.schedule_free_sgd(0.1), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.state(model, nnx.Param))
    x = gradx.schedule_free_eval_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    assert (x["kernel"][...] != model.kernel[...]).any()


# ---------------------------------------------------------------- lookahead


def looked_ahead(k: int, alpha: float, n: int, reset: bool) -> Any:
    """Zhang et al., Alg. 1, around SGD with momentum."""
    slow = fast = np.array([1.0, -2.0])
    m = np.zeros(2)
    for t in range(n):
        m = 0.9 * m + 2 * fast * np.array([1.0, 2.0])
        fast = fast - 0.05 * m
        if (t + 1) % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow
            m = m * (not reset)
    return fast, slow


@pytest.mark.parametrize("library", [gradx, optax])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_lookahead_is_that_of_the_paper(library: Any, reset: bool, k: int) -> None:
    tx = gradx.lookahead(library.sgd(0.05, momentum=0.9), k, 0.3, reset_state=reset)
    start = gradx.LookaheadParams.init_synced(P2)
    p, state = run(tx, start, lambda p: quadratic(p.fast), 7)
    fast, slow = looked_ahead(k, 0.3, 7, reset)
    assert_close(p, gradx.LookaheadParams(fast, slow), rtol=1e-6)
    assert state.steps_since_sync == 7 % k


@pytest.mark.parametrize("reset", [False, True])
def test_lookahead_agrees_with_optax(reset: bool) -> None:
    def after(library: Any, params_of: Any) -> Any:
        tx = library.lookahead(library.adam(0.05), 3, 0.5, reset_state=reset)
        p = params_of.LookaheadParams.init_synced(jax.tree.map(jnp.asarray, params()))
        p, _ = run(tx, p, lambda p: jax.tree.map(jnp.sin, p.fast), 8)
        assert type(p) is params_of.LookaheadParams
        return tuple(p)

    assert_close(after(gradx, gradx), after(optax, optax), rtol=5e-6)
    assert_close(after(gradx, optax), after(optax, optax), rtol=5e-6)


def test_fast_and_slow_parameters_can_be_donated() -> None:
    tx = gradx.lookahead(gradx.adam(0.1), 2, 0.5)
    p = gradx.LookaheadParams.init_synced({"a": jnp.ones(3), "b": None})
    donated = jax.jit(lambda p, s: step(tx, p, s, p.fast), donate_argnums=(0, 1))
    p, _ = donated(p, tx.init(p))
    assert p.fast["b"] is None
    assert_same(p.slow["a"], jnp.ones(3))


@counts_buffers
@pytest.mark.parametrize("reset", [False, True])
def test_lookahead_needs_no_memory(reset: bool) -> None:
    def temporaries(library: Any) -> float:
        tx = library.lookahead(library.adam(0.1), 5, 0.5, reset_state=reset)
        p = library.LookaheadParams(*[jax.ShapeDtypeStruct((64, 256), jnp.float32)] * 2)
        jitted = jax.jit(lambda p, s, g: step(tx, p, s, g), donate_argnums=(0, 1))
        used = jitted.lower(p, jax.eval_shape(tx.init, p), p.fast).compile().memory_analysis()
        return used.temp_size_in_bytes / (64 * 256 * 4)

    assert temporaries(gradx) < 0.05 < 1 < temporaries(optax)


def test_what_is_not_finite_stays_with_the_fast_parameters() -> None:
    tx = gradx.lookahead(gradx.sgd(0.1), 2, 0.5)
    p = gradx.LookaheadParams.init_synced(jnp.ones(2))
    p, _ = step(tx, p, tx.init(p), jnp.array([jnp.nan, jnp.inf]))
    assert_same(p.slow, jnp.ones(2))


def test_lookahead_in_half_precision_keeps_dtypes() -> None:
    tx = gradx.lookahead(gradx.adam(0.1), 2, 0.5)
    p = gradx.LookaheadParams.init_synced(jnp.ones(2, jnp.bfloat16))
    updates, _ = tx.update(p.fast, tx.init(p), p)
    assert updates.fast.dtype == updates.slow.dtype == jnp.bfloat16


def test_a_reset_leaves_live_values_alone() -> None:
    tx = gradx.lookahead(gradx.adam(gradx.tunable(0.1)), 1, 0.5, reset_state=True)
    p = gradx.LookaheadParams.init_synced(P2)
    state = gradx.set_hyperparams(tx.init(p), learning_rate=0.5)
    for _ in range(2):
        _, state = tx.update(P2, state, p)
    assert gradx.hyperparams(state)["learning_rate"] == 0.5
    assert state.fast_state[0].count == 1


def test_lookahead_says_what_it_wants() -> None:
    for bad in ({"sync_period": 0}, {"sync_period": 1.5}, {"slow_step_size": -0.5}):
        with pytest.raises(ValueError, match=f"lookahead: {next(iter(bad))}"):
            gradx.lookahead(gradx.sgd(0.1), **{"sync_period": 2, "slow_step_size": 0.5, **bad})
    with pytest.raises(ValueError, match="fast_optimizer must be a transformation"):
        gradx.lookahead(None, 2, 0.5)
    tx = gradx.lookahead(gradx.sgd(0.1), 2, 0.5)
    for given in (None, P2):  # `init` takes the fast ones alone
        with pytest.raises(ValueError, match="needs the fast and the slow parameters"):
            tx.update(P2, tx.init(P2), given)


def test_lookahead_describes_itself() -> None:
    tx = gradx.lookahead(gradx.adam(0.1), 2, 0.5, reset_state=True)
    assert gradx.from_config(gradx.to_config(tx)) == tx
    table = str(gradx.describe(tx, gradx.LookaheadParams.init_synced(P2)))
    assert "scale_by_adam" in table
    p = gradx.LookaheadParams(*[jax.ShapeDtypeStruct((2,), jnp.float32)] * 2)
    assert "scale_by_adam" in str(gradx.describe(tx, gradx.LookaheadParams.init_synced(p.fast)))


# ---------------------------------------------------------------- SAM


def adversary(library: Any) -> Any:
    normalize = getattr(library, "contrib", library).normalize
    return library.chain(normalize(), library.sgd(0.1, momentum=0.5))


@pytest.mark.parametrize("period", [2, 3])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("opaque", [True, False])
def test_sam_agrees_with_optax(period: int, reset: bool, opaque: bool) -> None:
    def after(library: Any) -> Any:
        sam = getattr(library, "contrib", library).sam
        tx = sam(library.adam(0.05), adversary(library), period, reset, opaque)
        extra = {"grad_fn": lambda p, i: quadratic(jax.tree.map(lambda x: x + i, p))}
        return run(tx, P2, quadratic, 4 if opaque else 4 * period, **(extra if opaque else {}))

    (ours, our_state), (theirs, their_state) = after(gradx), after(optax)
    assert_close(ours, theirs, rtol=2e-6)
    assert_close(our_state, their_state, rtol=5e-6)
    assert type(our_state)._fields == type(their_state)._fields


@pytest.mark.parametrize("library", [gradx, optax])
@pytest.mark.parametrize("period", [1, 2, 3])
def test_the_two_modes_of_sam_agree(library: Any, period: int) -> None:
    parts = library.adam(0.05), adversary(library), period
    seen, _ = run(gradx.sam(*parts), P2, quadratic, 4 * period)
    tx = gradx.sam(*parts, opaque_mode=True)
    p, _ = run(tx, P2, quadratic, 4, grad_fn=lambda p, i: quadratic(p))
    assert_close(p, seen, rtol=2e-6)


def test_a_period_of_one_is_the_optimizer() -> None:
    tx = gradx.sam(gradx.adam(0.05), adversary(gradx), 1)
    assert_close(
        run(tx, P2, quadratic, 5)[0], run(gradx.adam(0.05), P2, quadratic, 5)[0], rtol=1e-6
    )


@pytest.mark.parametrize("library", [gradx, optax])
def test_a_state_does_not_change_in_a_step_that_is_not_its_own(library: Any) -> None:
    tx = gradx.sam(library.adam(0.1), library.adam(0.2), 3, reset_state=False)
    p, state = P2, tx.init(P2)
    advance = jax.jit(lambda p, s: step(tx, p, s, quadratic(p)))
    for i in range(6):
        p, new = advance(p, state)
        kept, moved = ("adv", "opt") if i % 3 == 2 else ("opt", "adv")
        assert_same(getattr(new, f"{kept}_state"), getattr(state, f"{kept}_state"))
        assert (
            getattr(new, f"{moved}_state")[0].count == getattr(state, f"{moved}_state")[0].count + 1
        )
        state = new


def test_the_adversary_cannot_poison_the_optimizer() -> None:
    """A gradient that is not finite belongs to one call; the next finds its way home."""
    tx = gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1))
    _, state = step(tx, P2, tx.init(P2), jnp.array([jnp.nan, jnp.inf]))
    updates, state = tx.update(jnp.ones(2), state, P2)
    assert_close(P2 + updates, P2 - 0.1, rtol=1e-6)


def test_the_adversary_keeps_live_values() -> None:
    tx = gradx.sam(gradx.sgd(0.1), gradx.adam(gradx.tunable(0.1)))
    state = gradx.set_hyperparams(tx.init(P2), learning_rate=0.5)
    for _ in range(2):
        _, state = tx.update(P2, state, P2)
    assert gradx.hyperparams(state)["learning_rate"] == 0.5
    assert state.adv_state[0].count == 0


def test_what_an_opaque_adversary_sees_on_all_devices() -> None:
    tx = gradx.sam(gradx.sgd(1.0), gradx.sgd(1.0), opaque_mode=True, batch_axis_name="batch")

    def update(g: Any) -> Any:
        grad_fn = lambda p, i: p * g
        return tx.update(P2 * g, tx.init(P2), P2, grad_fn=grad_fn)[0]

    g = jnp.array([1.0, 3.0])
    made = jax.vmap(update, axis_name="batch")(g)
    expected = -np.mean([(P2 + P2 * x) * x for x in g], axis=0)
    assert_close(made, np.stack([expected, expected]), rtol=1e-6)
    with pytest.raises(ValueError, match="no mapped axis 'batch' here"):
        update(g[0])


def test_sam_says_what_it_wants() -> None:
    opaque = gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1), opaque_mode=True)
    with pytest.raises(ValueError, match="grad_fn"):
        opaque.update(P2, opaque.init(P2), P2)
    with pytest.raises(ValueError, match="needs the parameters"):
        opaque.update(P2, opaque.init(P2), grad_fn=lambda p, i: p)


# ---------------------------------------------------------------- copies of parameters


def test_an_average_of_parameters() -> None:
    old = {
        "half": jnp.ones(2, jnp.bfloat16),
        "wide": jnp.zeros(2),
        "count": jnp.array(3),
        "none": None,
        "kept": jnp.ones(1),
        "complex": jnp.zeros(1, complex),
    }
    new = {
        "half": jnp.full(2, 1.01),
        "wide": jnp.ones(2, jnp.bfloat16),
        "count": jnp.array(7),
        "none": None,
        "kept": None,
        "complex": jnp.full(1, 1j),
    }
    made = gradx.incremental_update(new, old, 0.25)
    assert {k: None if x is None else x.dtype for k, x in made.items()} == {
        k: None if x is None else x.dtype for k, x in old.items()
    }
    assert_close(made["wide"], np.full(2, 0.25), rtol=1e-7)
    assert_close(made["complex"], np.full(1, 0.25j), rtol=1e-7)
    assert made["count"] == 7
    assert made["kept"] == 1
    theirs = optax.incremental_update(params(), gradients(steps=1), 0.1)
    ours = gradx.incremental_update(params(), first_of(gradients(steps=1)), jnp.float32(0.1))
    assert_close(ours, first_of(theirs), rtol=1e-6)


def first_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x[0]), tree)


def test_averages_refuse_what_does_not_fit() -> None:
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"step_size must be in \[0, 1\]"):
            gradx.incremental_update(P2, P2, bad)
    for f in (gradx.incremental_update, lambda new, old, x: gradx.periodic_update(new, old, 0, 2)):
        with pytest.raises(ValueError, match="at 'a' the new tensor has shape"):
            f({"a": P2}, {"a": jnp.ones(3)}, 0.5)
        with pytest.raises(ValueError, match="old_tensors"):
            f({"a": P2}, {"b": P2}, 0.5)
    with pytest.raises(ValueError, match="update_period must be at least 1"):
        gradx.periodic_update(P2, P2, 0, 0)


def test_a_periodic_copy() -> None:
    new, old = {"a": jnp.ones(2), "b": None}, {"a": jnp.zeros(2, jnp.bfloat16), "b": None}
    renew = jax.jit(lambda t: gradx.periodic_update(new, old, t, 3))
    for t in range(4):
        made = renew(t)
        assert made["a"].dtype == jnp.bfloat16
        assert made["b"] is None
        assert (made["a"] == (t % 3 == 0)).all()
    key = jax.random.key(0)
    assert gradx.periodic_update(key, jax.random.key(1), 0, 1) == key


# ---------------------------------------------------------------- other views


def test_one_vector() -> None:
    tx = gradx.flatten(gradx.clip_by_block_rms(1.0))
    grads = {"a": jnp.array([[6.0]]), "b": None, "c": jnp.zeros(3, jnp.bfloat16)}
    updates, _ = tx.update(grads, tx.init(grads))
    assert_same(updates, {**grads, "a": jnp.array([[2.0]])})  # in their own dtypes


@pytest.mark.parametrize("library", [gradx, optax])
def test_a_missing_gradient_is_zero_in_the_vector(library: Any) -> None:
    tx = gradx.flatten(library.trace(0.5))
    p = {"a": jnp.ones(1), "b": jnp.ones(2)}
    _, state = tx.update(p, tx.init(p), p)
    updates, state = tx.update({"a": None, "b": jnp.ones(2)}, state, p)
    assert updates["a"] is None
    assert_same(state.trace, jnp.array([0.5, 1.5, 1.5]))


def test_trees_that_make_no_vector() -> None:
    tx = gradx.flatten(gradx.adam(0.1))
    with pytest.raises(ValueError, match="real and complex leaves"):
        tx.init({"a": jnp.ones(1), "b": jnp.ones(1, complex)})
    inside = gradx.split_real_and_imaginary(tx)
    p = {"a": jnp.ones(1), "b": jnp.ones(1, complex)}
    updates, _ = inside.update(p, inside.init(p), p)
    assert updates["b"].dtype == jnp.complex64
    assert gradx.flatten(optax.adam(0.1)).init({}).__class__ is tuple  # of an empty vector


@pytest.mark.full
def test_complex_numbers_as_two() -> None:
    p, g = params(np.complex64), gradients(np.complex64, steps=3)
    ours = trajectory(gradx.split_real_and_imaginary(gradx.adam(0.1)), p, g)
    theirs = trajectory(optax.contrib.split_real_and_imaginary(optax.adam(0.1)), p, g)
    assert_close(ours, theirs, rtol=2e-6)
    tx = gradx.split_real_and_imaginary(gradx.sgd(1.0))
    g = {"z": jnp.array([complex(1.0, jnp.inf)]), "x": jnp.ones(1), "none": None}
    updates, _ = tx.update(g, tx.init(g))
    assert updates["z"].real == -1  # and not NaN
    assert updates["none"] is None
    state = gradx.split_real_and_imaginary(gradx.adam(0.1)).init(g)
    assert isinstance(state.inner_state[0].mu["z"], gradx.SplitRealAndImaginaryArrays)


def test_a_reset_leaves_injected_numbers_alone() -> None:
    tx = gradx.lookahead(gradx.inject_hyperparams(gradx.sgd)(0.1), 2, 0.5, reset_state=True)
    params = gradx.LookaheadParams.init_synced(jnp.ones(1))
    state = gradx.set_hyperparams(tx.init(params), learning_rate=0.5)
    for _ in range(3):
        updates, state = tx.update(jnp.ones(1), state, params)
    np.testing.assert_array_equal(updates.fast, -0.5)


def test_shapes_that_differ_are_refused_by_path() -> None:
    flat = gradx.flatten(gradx.adam(0.1))
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"flatten: at 'a' the update has shape \(3,\)"):
        flat.update({"a": jnp.ones(3), "b": jnp.ones(2)}, flat.init(params), params)
    ahead = gradx.lookahead(gradx.sgd(0.1), 2, 0.5)
    mixed = gradx.LookaheadParams(fast=jnp.ones(3), slow=jnp.ones(1))
    with pytest.raises(ValueError, match="lookahead: at '' the update has shape"):
        ahead.update(jnp.ones(3), ahead.init(mixed), mixed)
