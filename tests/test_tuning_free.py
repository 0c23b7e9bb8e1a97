"""Rules that find their own step size: what the laws do not ask, and where Optax goes wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from cases import first_of
from problems import assert_close, assert_same, bowl, params, step

import gradx

P = jax.sharding.PartitionSpec


def numbers(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def all_finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def moved(tx: Any, grads: Any, p: Any, values: Any = None) -> Any:
    """The parameters and the state after some steps."""
    s = tx.init(p)
    for i, g in enumerate(grads):
        p, s = step(tx, p, s, g, **({} if values is None else {"value": values[i]}))
    return p, s


TREE = {"a": numbers(0, 16, 4), "b": numbers(1, 8)}
GRADS = [{"a": numbers(2 + i, 16, 4), "b": numbers(6 + i, 8)} for i in range(4)]


# ---------------------------------------------------------------- sharded leaves


SHARDED = {
    "dog": lambda **more: gradx.dog(init_step=("heuristic", 0.1), **more),
    "dowg": lambda **more: gradx.dowg(init_estim_sq_dist=0.1, **more),
    "by leaf": lambda **more: gradx.scale_by_distance_over_gradients(0.1, **more),
    "prodigy": lambda **more: gradx.prodigy(estim_lr0=0.1, **more),
    "dadapt_adamw": lambda **more: gradx.dadapt_adamw(estim_lr0=0.1, **more),
    "polyak_sgd": lambda **more: gradx.polyak_sgd(**more),
    "momo": lambda **more: gradx.momo(adapt_lower_bound=True, **more),
    "momo_adam": lambda **more: gradx.momo_adam(0.1, **more),
    "mechanize": lambda **more: gradx.mechanize(gradx.adam(1.0), s_init=0.1, **more),
}


@pytest.mark.parametrize("name", ["dog", "by leaf"])
@pytest.mark.full
def test_sharded_leaves_are_measured_together_from_the_start(name: str) -> None:
    """With `init` inside the mapping; `test_collectives.py` has it outside, for all rules."""
    tx = SHARDED[name](axis_name="d")

    def run(p: Any, s: Any, grads: Any) -> Any:
        s = tx.init(p)
        for g in grads:
            p, s = step(tx, p, s, g, value=3.0)
        return p, s

    state = tx.init(TREE)
    specs = jax.tree.map(lambda x: P("d") if x.shape in ((16, 4), (8,)) else P(), (TREE, state))
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    given = (*specs, [specs[0]] * len(GRADS))
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=given, out_specs=specs))
    whole = moved(SHARDED[name](), GRADS, TREE, [3.0] * len(GRADS))
    assert_close(mapped(TREE, state, GRADS), whole, rtol=5e-6)


def test_an_axis_that_is_not_there_is_named() -> None:
    for make in SHARDED.values():
        tx = make(axis_name="d")
        with pytest.raises(ValueError, match="no mapped axis 'd'"):
            tx.update(TREE, tx.init(TREE), TREE, value=1.0)


# ---------------------------------------------------------------- their states


STATES = {
    "dog": lambda: gradx.dog(),
    "dowg": lambda: gradx.dowg(),
    "by leaf": lambda: gradx.scale_by_distance_over_gradients(),
    "prodigy": lambda: gradx.prodigy(),
    "madgrad": lambda: gradx.madgrad(0.1),
    "cocob": lambda: gradx.cocob(),
    "mechanize": lambda: gradx.mechanize(gradx.sgd(1.0)),
}


@pytest.mark.parametrize("name", STATES)
def test_where_it_began_is_a_copy(name: str) -> None:
    """In Optax it is the array of the parameters, which cannot be donated twice."""
    tx = STATES[name]()
    p = {"w": jnp.arange(4.0)}
    donating = jax.jit(lambda p, s, g: step(tx, p, s, g), donate_argnums=(0, 1))
    p, s = donating(p, tx.init(p), {"w": jnp.ones(4)})
    p, s = donating(p, s, {"w": jnp.ones(4)})
    assert all_finite((p, s))


@pytest.mark.full
def test_the_state_of_a_rejected_step_stays() -> None:
    """The scalars of the tree too, and those of a wrapper inside."""
    for inner in (gradx.prodigy(), gradx.dog(), gradx.mechanize(gradx.adam(1.0))):
        tx = gradx.apply_if_finite(inner, 5)
        p, s = moved(tx, GRADS[:2], TREE)
        updates, new = tx.update(jax.tree.map(lambda x: x * jnp.nan, TREE), s, p)
        assert_same(new.inner_state, s.inner_state)
        assert not any(jnp.any(u) for u in jax.tree.leaves(updates))


def test_in_a_partition_each_measures_its_own_leaves() -> None:
    labels = {"a": "one", "b": "two"}
    tx = gradx.partition({"one": gradx.prodigy(), "two": gradx.dog()}, labels)
    p, _ = moved(tx, GRADS, TREE)
    for name, alone in (("a", gradx.prodigy()), ("b", gradx.dog())):
        only, _ = moved(alone, [{name: g[name]} for g in GRADS], {name: TREE[name]})
        assert_close(p[name], only[name], rtol=1e-6)


@first_of("name", SHARDED)
def test_one_may_differentiate_through_steps(name: str) -> None:
    """At the first step the distance is 0, where a root has no derivative."""

    def after(p: Any, g: Any) -> Any:
        p, _ = moved(SHARDED[name](), [g, g], p, [3.0, 2.0])
        return sum(jnp.sum(x**2) for x in p.values())

    assert all_finite(jax.jit(jax.grad(after, (0, 1)))(TREE, GRADS[0]))


@pytest.mark.full
def test_the_loss_and_the_wrapped_optimizers_converge() -> None:
    """The laws ask the optimizers with a learning rate."""
    for tx in (
        gradx.polyak_sgd(),
        gradx.polyak_sgd(scaling=0.5, variant="sps+"),
        gradx.mechanize(gradx.adam(1.0)),
        gradx.chain(gradx.adam(0.1), gradx.reduce_on_plateau(0.5, patience=5)),
    ):
        start = jax.tree.map(lambda x: jnp.asarray(x) * 0.5, params())

        def body(carry: Any, _: Any, tx: Any = tx) -> Any:
            value, g = jax.value_and_grad(bowl)(carry[0])
            return step(tx, *carry, g, value=value), None

        (p, _), _ = jax.lax.scan(body, (start, tx.init(start)), length=400)
        assert bowl(p) < 3e-3 * bowl(start)


# ---------------------------------------------------------------- DoG


def test_dog_begins_in_three_ways() -> None:
    flat = list(TREE.values())
    grads = [list(g.values()) for g in GRADS]
    for kind in ("distance", "heuristic", "learning_rate"):
        begin = {"init_step": (kind, 0.01), "weight_decay": 0.1}
        ours, _ = moved(gradx.dog(**begin), GRADS, TREE)
        assert_close(
            list(ours.values()), references.run(references.dog(**begin), flat, grads)[-1], 2e-6
        )
        assert_close(ours, moved(optax.contrib.dog(**begin), GRADS, TREE)[0], rtol=2e-6)


def test_dog_is_not_stuck_where_it_began() -> None:
    """A first gradient, or a first learning rate, of zero moves nothing: the distance is 0 then."""
    begin = {"init_step": ("learning_rate", 0.1)}
    p, zero = jnp.ones(2), jnp.zeros(2)
    assert not jnp.array_equal(moved(gradx.dog(**begin), [zero, p, p], p)[0], p)
    assert jnp.array_equal(moved(optax.contrib.dog(**begin), [zero, p, p], p)[0], p)
    warmup = gradx.linear_schedule(0.0, 1.0, 2)
    assert not jnp.array_equal(moved(gradx.dog(warmup, **begin), [p, p, p], p)[0], p)


@pytest.mark.parametrize("begin", ["distance", ("far", 1.0), ("distance",), ("distance", -1.0)])
def test_dog_refuses_another_beginning(begin: Any) -> None:
    with pytest.raises(ValueError, match=r"scale_by_dog: init_step"):
        gradx.scale_by_dog(begin)


def test_without_eps_a_zero_gradient_is_a_zero_update() -> None:
    p, zero = jnp.ones(2), jnp.zeros(2)
    for tx in (
        gradx.dog(eps=0.0),
        gradx.scale_by_distance_over_gradients(eps=0.0),
        gradx.madgrad(0.1, eps=0.0),
    ):
        assert jnp.array_equal(moved(tx, [zero, zero], p)[0], p)


def test_layer_wise_dog_keeps_shapes() -> None:
    tx = gradx.scale_by_distance_over_gradients(0.1, param_dtype=jnp.bfloat16)
    scalar, state = tx.update(jnp.array(2.0), tx.init(jnp.array(1.0)), jnp.array(1.0))
    assert scalar.shape == ()
    assert state.init_params.dtype == jnp.bfloat16
    theirs = optax.scale_by_distance_over_gradients(0.1, global_scale=-2.0)
    ours = gradx.scale_by_distance_over_gradients(0.1, global_scale=-2.0)
    assert_close(moved(ours, GRADS, TREE), moved(theirs, GRADS, TREE), rtol=2e-6)


# ---------------------------------------------------------------- Prodigy, D-Adaptation


NEW_RATES = {"prodigy": gradx.prodigy, "dadapt_adamw": gradx.dadapt_adamw}


@pytest.mark.parametrize("name", NEW_RATES)
@pytest.mark.parametrize("cause", ["a zero gradient", "a warmup from zero"])
def test_a_step_without_information_keeps_the_estimate(name: str, cause: str) -> None:
    """0/0 there; in Optax the estimate is NaN from then on."""
    rate: Any = 1.0 if cause == "a zero gradient" else gradx.linear_schedule(0.0, 1.0, 2)
    p = jnp.ones(2)
    grads = [jnp.zeros(2) if cause == "a zero gradient" else p, *[p] * 4]
    _, first = moved(NEW_RATES[name](rate, estim_lr0=0.01), grads[:1], p)
    assert first.estim_lr == jnp.float32(0.01)
    after, state = moved(NEW_RATES[name](rate, estim_lr0=0.01), grads, p)
    assert all_finite((after, state))
    assert not jnp.array_equal(after, p)
    lost = getattr(optax.contrib, name)(rate, estim_lr0=0.01)
    assert jnp.isnan(moved(lost, grads, p)[1].estim_lr)


@pytest.mark.parametrize("make", NEW_RATES.values())
@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, "0.9"), None])
def test_betas_are_a_pair_of_decays(make: Any, betas: Any) -> None:
    with pytest.raises(ValueError, match="betas"):
        make(betas=betas)


@pytest.mark.parametrize("make", NEW_RATES.values())
def test_betas_may_be_live_or_scheduled(make: Any) -> None:
    changed = make(betas=(lambda count: 0.9, gradx.tunable(0.99)))
    assert list(gradx.hyperparams(changed.init(TREE))) == ["b2"]
    plain = make(betas=(0.9, 0.99))
    assert_close(moved(changed, GRADS, TREE)[0], moved(plain, GRADS, TREE)[0], rtol=2e-6)


def test_the_estimate_of_half_precision_parameters_is_float32() -> None:
    p = jnp.ones(2, jnp.bfloat16)
    for make in NEW_RATES.values():
        state = make().init(p)
        assert {str(x.dtype) for x in jax.tree.leaves(state)} == {"float32", "int32"}
    # In float16 the first estimate of 1e-6 has two digits, and its square none.
    assert optax.contrib.prodigy().init(p.astype(jnp.float16)).estim_lr != jnp.float32(1e-6)


# ---------------------------------------------------------------- the value of the loss


LOSS_AWARE = {
    "scale_by_polyak": gradx.polyak_sgd(),
    "momo": gradx.momo(),
    "momo_adam": gradx.momo_adam(),
    "reduce_on_plateau": gradx.chain(gradx.sgd(0.1), gradx.reduce_on_plateau()),
}


@pytest.mark.parametrize("name", LOSS_AWARE)
def test_a_missing_value_is_named(name: str) -> None:
    tx = LOSS_AWARE[name]
    p = jnp.ones(2)
    with pytest.raises(ValueError, match=rf"{name}: needs the extra argument 'value'"):
        tx.update(p, tx.init(p), p)
    with pytest.raises(ValueError, match="'value' where the call says 'values'"):
        tx.update(p, tx.init(p), p, values=1.0)
    for value in (None, jnp.ones(2)):
        with pytest.raises(ValueError, match="'value' must be one real number"):
            tx.update(p, tx.init(p), p, value=value)
    made = [tx.update(p, tx.init(p), p, value=v)[0] for v in (2, 2.0, np.float64(2), jnp.array(2))]
    assert all(jnp.array_equal(u, made[0]) for u in made)


def test_the_scaling_of_polyaks_step_scales_it() -> None:
    """In Optax it divides, since it comes into the norm of the gradient twice."""
    p, g = jnp.zeros(2), jnp.array([3.0, 4.0])
    for library, size in ((gradx, 0.5), (optax, 2.0)):
        tx, half = library.polyak_sgd(), library.polyak_sgd(scaling=0.5)
        whole, _ = tx.update(g, tx.init(p), p, value=1.0)
        part, _ = half.update(g, half.init(p), p, value=1.0)
        assert_close(part, size * whole, rtol=1e-6)


@pytest.mark.parametrize("name", ["momo", "momo_adam"])
@pytest.mark.full
def test_losses_that_change_as_in_optax(name: str) -> None:
    values = [3.0, 0.1, 2.0, 0.05]
    rate = gradx.linear_schedule(0.1, 0.02, 4)
    with jax.enable_x64(True):  # where the bound lies depends on differences
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (TREE, GRADS))
        kwargs = {"lower_bound": -0.5, "weight_decay": 0.1, "adapt_lower_bound": True}
        ours = moved(getattr(gradx, name)(rate, **kwargs), wide[1], wide[0], values)
        theirs = moved(getattr(optax.contrib, name)(rate, **kwargs), wide[1], wide[0], values)
    assert_close(ours, theirs, rtol=1e-9)


# ---------------------------------------------------------------- mechanize


@pytest.mark.full
def test_mechanize_around_optaxs_optimizer_and_around_any_chain() -> None:
    def base(library: Any) -> Any:  # of two passes over the leaves
        return library.chain(library.sgd(1.0, 0.9), library.clip_by_global_norm(0.5))

    expected = moved(optax.contrib.mechanize(base(optax), s_init=0.1), GRADS, TREE)
    for inner in (base(optax), base(gradx)):
        assert_close(moved(gradx.mechanize(inner, s_init=0.1), GRADS, TREE), expected, rtol=5e-6)


def test_mechanize_begins_where_the_first_update_does() -> None:
    tx = gradx.mechanize(gradx.sgd(1.0), s_init=0.1)
    s = tx.init(jax.tree.map(jnp.zeros_like, TREE))  # before pretrained weights are loaded
    _, s = step(tx, TREE, s, GRADS[0])
    assert_same(s.x0, TREE)
    _, s = step(tx, TREE, s, GRADS[1])
    assert_same(s.x0, TREE)


def test_mechanize_with_live_numbers() -> None:
    tx = gradx.mechanize(gradx.sgd(gradx.tunable(1.0)), gradx.tunable(0.1), s_init=0.1)
    state = tx.init(TREE)
    assert sorted(gradx.hyperparams(state)) == ["learning_rate", "weight_decay"]
    state = gradx.set_hyperparams(state, learning_rate=0.5, weight_decay=0.2)
    updates, state = tx.update(GRADS[0], state, TREE)
    plain = gradx.mechanize(gradx.sgd(0.5), 0.2, s_init=0.1)
    assert_close(updates, plain.update(GRADS[0], plain.init(TREE), TREE)[0], rtol=1e-6)
    assert "mechanize" in str(gradx.describe(tx, TREE))


@pytest.mark.full
def test_mechanize_in_half_precision() -> None:
    """In Optax the vectors are float16 too, where eps=1e-8 is 0: NaN in the first step."""
    p = jnp.ones(4, jnp.float16)
    after, state = moved(gradx.mechanize(gradx.sgd(1.0)), [p, p], p)
    assert all_finite((after, state))
    assert state.s.dtype == jnp.float32
    lost = optax.contrib.mechanize(optax.sgd(1.0))
    assert jnp.isnan(lost.update(p, lost.init(p), p)[1].s).any()


def test_mechanize_refuses_another_state() -> None:
    tx = gradx.mechanize(gradx.sgd(1.0))
    with pytest.raises(ValueError, match="mechanize: got a state of type EmptyState"):
        tx.update(TREE, gradx.scale(1.0).init(TREE), TREE)


# ---------------------------------------------------------------- reduce_on_plateau


def scales(library: Any, values: Any, dtype: Any = jnp.float32, **kwargs: Any) -> list[float]:
    tx = getattr(library, "contrib", library).reduce_on_plateau(**kwargs)
    one = jnp.ones((), dtype)

    def body(state: Any, value: Any) -> Any:
        _, state = tx.update(one, state, value=value)
        return state, state.scale

    return jax.jit(partial(jax.lax.scan, body))(tx.init(one), jnp.asarray(values))[1].tolist()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"patience": 2},
        {"patience": 1, "factor": 0.5, "min_scale": 0.3},
        {"patience": 2, "cooldown": 3},
        {"patience": 1, "accumulation_size": 3, "rtol": 0.0, "atol": 0.2},
    ],
)
def test_plateaus_as_in_optax(kwargs: Any) -> None:
    values = np.abs(np.random.default_rng(0).normal(size=40)) * np.linspace(2.0, 0.5, 40)
    ours, theirs = scales(gradx, values, **kwargs), scales(optax, values, **kwargs)
    assert ours[-1] < 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_plateau_below_zero_is_one() -> None:
    """A loss that stays at -1 does not improve on -1 + 1e-4; in Optax it does, for ever."""
    assert scales(gradx, [-1.0] * 6, patience=2, factor=0.5)[-1] == 0.25
    assert scales(optax, [-1.0] * 6, patience=2, factor=0.5)[-1] == 1.0
    falling = [-1.0, -1.1, -1.2, -1.3]
    assert scales(gradx, falling, patience=2)[-1] == 1.0


def test_the_scale_of_half_precision_parameters_is_float32() -> None:
    falls = scales(gradx, [1.0] * 9, jnp.float16, patience=1, factor=0.1)
    np.testing.assert_allclose(falls[-1], 1e-8, rtol=1e-5)
    assert scales(optax, [1.0] * 9, jnp.float16, patience=1, factor=0.1)[-1] == 0


def test_a_plateau_needs_a_tolerance() -> None:
    with pytest.raises(ValueError, match="rtol and atol"):
        gradx.reduce_on_plateau(rtol=0.0)
    assert gradx.reduce_on_plateau(rtol=0.0, atol=0.1)
