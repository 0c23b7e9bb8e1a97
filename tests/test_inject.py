"""`inject_hyperparams`: Optax's way to make numbers live, with its traps taken out."""

from __future__ import annotations

import functools
import json
import pickle
from typing import Any, NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_same, gradients, params, trajectory
from runs import paths_and_types

import gradx
from gradx import inject_hyperparams

P = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
LIBRARIES = pytest.mark.parametrize("library", [gradx, optax], ids=["gradx", "optax"])


def types(tree: Any) -> Any:
    return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(tree)]


def learning_rate(state: Any) -> float:
    return float(state.hyperparams["learning_rate"])


# ---------------------------------------------------------------- what Optax's does


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "lion", "radam"])
def test_same_structure_and_numbers_as_optaxs(name: str) -> None:
    schedule = lambda count: 0.01 / (1.0 + count)
    ours = inject_hyperparams(getattr(gradx, name))(schedule)
    theirs = optax.inject_hyperparams(getattr(optax, name))(schedule)
    assert paths_and_types(ours.init(params())) == paths_and_types(theirs.init(params()))
    g = gradients(steps=3)
    assert_close(trajectory(ours, params(), g), trajectory(theirs, params(), g), rtol=1e-5)


@pytest.mark.parametrize(
    "case",
    [case for case in cases.OPTIMIZERS if not case.note and not case.extra],
    ids=lambda case: case.id,
)
def test_every_optimizer_can_be_injected(case: cases.Case) -> None:
    make = inject_hyperparams(getattr(gradx, case.factory))
    tx = case.bind(make(**cases.made(case.kwargs, gradx)))
    state = jax.eval_shape(tx.init, params())
    updates, new = jax.eval_shape(tx.update, params(), state, params())
    assert jax.tree.structure(updates) == jax.tree.structure(params())
    assert types(new) == types(state)


def test_a_number_is_set_in_the_state_without_a_new_trace() -> None:
    """The way that Optax documents: the state's dictionary is written to."""
    tx = inject_hyperparams(gradx.sgd)(learning_rate=0.1)
    traces = []

    @jax.jit
    def update(state: Any) -> Any:
        traces.append(1)
        return tx.update(P, state, P)

    _, state = update(tx.init(P))
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    updates, state = update(state)
    assert_same(updates, jax.tree.map(lambda x: -0.5 * x, P))
    assert len(traces) == 1
    for by_hand in (0.25, 1, np.float64(0.25)):  # other types for jit, but the state keeps its own
        state.hyperparams["learning_rate"] = by_hand
        updates, state = update(state)
        assert_same(updates, jax.tree.map(lambda x, c=by_hand: -c * x, P))
        assert types(state) == types(tx.init(P))


def test_what_is_written_over_a_schedule_has_no_effect() -> None:
    tx = inject_hyperparams(gradx.sgd)(lambda count: 1.0 + count)
    state = tx.init(P)
    state.hyperparams["learning_rate"] = 7.0
    updates, state = tx.update(P, state, P)
    assert learning_rate(state) == 1.0
    assert updates["b"][0] == -1.0


def test_schedules_see_zero_first() -> None:
    tx = inject_hyperparams(gradx.scale)(lambda count: count)
    state = tx.init(P)
    for count in range(3):
        updates, state = tx.update(P, state, P)
        assert updates["b"][0] == state.hyperparams["step_size"] == count
        assert state.count == state.hyperparams_states["step_size"].count == count + 1


@LIBRARIES
def test_extra_arguments_reach_stateful_schedules_and_the_inner_one(library: Any) -> None:
    class Plateau(NamedTuple):
        best: Any
        rate: Any

    class HalvedWhenWorse:
        def init(self) -> Plateau:
            return Plateau(jnp.float32(jnp.inf), jnp.float32(1.0))

        def update(self, state: Plateau, *, loss: Any, **extra_args: Any) -> Plateau:
            rate = jnp.where(loss < state.best, state.rate, state.rate / 2)
            return Plateau(jnp.minimum(loss, state.best), rate)

        def __call__(self, state: Plateau, **extra_args: Any) -> Any:
            return state.rate

    seen = []

    def factory(step_size: Any) -> Any:
        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            seen.append(sorted(extra))
            return jax.tree.map(lambda u: u * step_size, updates), state

        return library.GradientTransformationExtraArgs(lambda params: (), update)

    assert isinstance(HalvedWhenWorse(), gradx.StatefulSchedule)
    tx = library.inject_hyperparams(factory)(HalvedWhenWorse())
    state = tx.init(P)
    used = []
    for loss in (3.0, 4.0, 5.0, 1.0):
        updates, state = tx.update(P, state, P, loss=loss)
        used.append(float(updates["b"][0]))
    assert used == [1.0, 1.0, 0.5, 0.25]
    assert seen == [["loss"]] * 4


@pytest.mark.parametrize("static_args", ["b1", ["b1"], ("b1", "eps")])
def test_static_args_stay_constants(static_args: Any) -> None:
    tx = inject_hyperparams(gradx.scale_by_adam, static_args=static_args)(b1=0.5)
    assert not set(tx.init(P).hyperparams) & set(
        [static_args] if isinstance(static_args, str) else static_args
    )
    with pytest.raises(ValueError, match=r"static_args names \['lr'\].*learning_rate"):
        inject_hyperparams(gradx.sgd, "lr")


@pytest.mark.parametrize("inner", [gradx.adam, optax.adam, "mine"])
def test_the_factory_may_be_anybodys(inner: Any) -> None:
    def mine(learning_rate: Any, b1: Any = 0.9) -> Any:
        return optax.chain(gradx.scale_by_adam(b1), optax.scale(-learning_rate))

    tx = inject_hyperparams(mine if inner == "mine" else inner)(gradx.linear_schedule(0.1, 0.0, 4))
    g = gradients(steps=3)
    expected = trajectory(gradx.adam(gradx.linear_schedule(0.1, 0.0, 4)), params(), g)
    assert_close(trajectory(tx, params(), g), expected, rtol=1e-4)


def test_under_jit_vmap_and_scan() -> None:
    tx = inject_hyperparams(gradx.adam)(0.1, b1=lambda count: 0.9 - 0.1 / (1 + count))
    state = jax.jit(tx.init)(P)
    assert_same(state, tx.init(P))
    assert types(state) == types(tx.init(P))
    assert_same(jax.jit(tx.update)(P, state, P)[1], tx.update(P, state, P)[1])
    rates = jnp.array([0.1, 0.2])
    states = jax.vmap(lambda r: gradx.set_hyperparams(state, learning_rate=r))(rates)
    updates, states = jax.vmap(tx.update, in_axes=(None, 0, None))(P, states, P)
    np.testing.assert_allclose(updates["b"][1], 2 * updates["b"][0], rtol=1e-6)
    made = jax.vmap(lambda r: inject_hyperparams(gradx.sgd)(r).init(P))(rates)
    assert_same(made.hyperparams["learning_rate"], rates)
    jax.lax.scan(lambda s, _: (tx.update(P, s, P)[1], None), state, length=3)


def test_a_state_that_optax_made_goes_on() -> None:
    theirs = optax.inject_hyperparams(optax.adam)(0.1)
    _, state = theirs.update(P, theirs.init(P), P)
    updates, new = inject_hyperparams(gradx.adam)(0.1).update(P, state, P)
    assert_close(updates, theirs.update(P, state, P)[0], rtol=1e-4)
    assert isinstance(new, optax.InjectStatefulHyperparamsState)
    assert gradx.set_hyperparams(state, b1=0.5).hyperparams["b1"] == 0.5


# ---------------------------------------------------------------- where Optax has a trap


@LIBRARIES
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_numbers_of_half_precision_parameters_are_float32(library: Any, dtype: Any) -> None:
    """Also for Optax's own factories, whose state they must not widen."""
    p = jax.tree.map(lambda x: x.astype(dtype), P)
    tx = inject_hyperparams(library.adamw)(1e-3, eps=1e-4)
    state = tx.init(p)
    assert {x.dtype for x in state.hyperparams.values()} == {jnp.dtype(jnp.float32)}
    updates, new = jax.jit(tx.update)(p, state, p)
    assert types(new) == types(state)
    np.testing.assert_allclose(np.float32(updates["b"]), -1e-3, rtol=0.01)


def test_what_optax_does_in_half_precision() -> None:
    """In bfloat16 b2 = 0.999 is 1, so that Adam divides by 0."""
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), P)
    tx = optax.inject_hyperparams(optax.adamw)(1e-3)
    assert tx.init(p).hyperparams["b2"] == 1
    assert np.isnan(np.float32(tx.update(p, tx.init(p), p)[0]["b"])).all()


def test_hyperparam_dtype() -> None:
    make = inject_hyperparams(gradx.adam, hyperparam_dtype=jnp.bfloat16)
    tx = make(lambda count: 0.1, b2=0.5, eps=jnp.float32(1e-8))
    state = tx.init(P)
    kinds = {name: str(x.dtype) for name, x in state.hyperparams.items()}
    assert kinds.pop("eps") == "float32"  # an array keeps its own
    assert set(kinds.values()) == {"bfloat16"}
    assert types(tx.update(P, state, P)[1]) == types(state)
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 1\.0"):
        gradx.set_hyperparams(state, tx=tx, b2=0.9999)  # in bfloat16 it is 1
    with pytest.raises(ValueError, match="hyperparam_dtype"):
        inject_hyperparams(gradx.adam, hyperparam_dtype=int)


@pytest.mark.full
def test_numbers_are_as_wide_as_the_parameters() -> None:
    with jax.enable_x64(True):
        wide = params(np.float64)
        tx = inject_hyperparams(gradx.adam)(lambda count: 0.1)
        for p, dtype in ((params(), np.float32), (wide, np.float64)):
            state = tx.init(p)
            assert {x.dtype for x in state.hyperparams.values()} == {np.dtype(dtype)}
            assert types(tx.update(p, state)[1]) == types(state)
        g = gradients(np.float64, steps=3)
        expected = trajectory(gradx.adam(0.1), wide, g)
        assert_close(trajectory(tx, wide, g), expected, rtol=1e-12)
    complex_state = inject_hyperparams(gradx.adam)(0.1).init(params(np.complex64))
    assert complex_state.hyperparams["b1"].dtype == np.float32  # complex in Optax


@pytest.mark.parametrize("factory", [gradx.adamw, optax.adamw])
def test_a_mask_is_no_schedule(factory: Any) -> None:
    """Optax calls it with the count, gets False, and weight decay is off without a word."""
    mask = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    given = {"weight_decay": 0.5, "mask": mask, "mu_dtype": jnp.bfloat16}
    tx = inject_hyperparams(factory)(0.1, **given)
    state = tx.init(P)
    assert "mask" not in state.hyperparams
    updates, _ = jax.jit(tx.update)(P, state, P)
    plain = factory(0.1, **given)
    assert_close(updates, plain.update(P, plain.init(P), P)[0], rtol=1e-3)
    assert updates["w"][0, 0] < updates["b"][0] - 0.01


def test_what_is_annotated_as_int_is_an_option() -> None:
    """Optax makes it an array: its own adafactor cannot be jitted then."""
    tx = inject_hyperparams(optax.adafactor)(0.1)
    state = tx.init(P)
    assert "min_dim_size_to_factor" not in state.hyperparams
    jax.jit(tx.update)(P, state, P)


def test_an_int_for_a_float_is_a_float() -> None:
    """In Optax it is an int32, and a later 0.5 changes the type of the state."""
    for factory in (gradx.adamw, optax.adamw):
        state = inject_hyperparams(factory)(1, weight_decay=0).init(P)
        assert state.hyperparams["weight_decay"].dtype == jnp.float32
        assert state.hyperparams["learning_rate"].dtype == jnp.float32
        state = gradx.set_hyperparams(state, weight_decay=0.5)
        assert state.hyperparams["weight_decay"] == 0.5


def test_whole_numbers_stay_whole() -> None:
    def every(k: Any = 2) -> Any:
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            return jax.tree.map(lambda u: u * (state % k == 0), updates), state + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    tx = inject_hyperparams(every)()
    state = tx.init(P)
    assert state.hyperparams["k"].dtype == jnp.int32
    assert types(tx.update(P, state)[1]) == types(state)
    assert gradx.set_hyperparams(state, k=3).hyperparams["k"] == 3
    with pytest.raises(ValueError, match=r"k is a whole number, got 2\.5"):
        gradx.set_hyperparams(state, k=2.5)
    state.hyperparams["k"] = 2.5
    with pytest.raises(ValueError, match=r"k is a whole number; the state has 2\.5"):
        tx.update(P, state)


def test_none_numpy_and_arrays() -> None:
    tx = inject_hyperparams(gradx.sgd)(np.float32(0.1), momentum=None)
    assert set(tx.init(P).hyperparams) == {"learning_rate"}  # Optax leaves a np.float32 out

    def per_column(factors: Any, key: Any) -> Any:
        return optax.stateless(lambda u, p: jax.tree.map(lambda x: x * factors, u))

    tx = inject_hyperparams(per_column)(np.array([1.0, 2.0]), jax.random.key(0))
    state = tx.init(P)
    np.testing.assert_array_equal(tx.update(P, state)[0]["w"], [[1, 2], [1, 2]])
    state = gradx.set_hyperparams(state, factors=jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(tx.update(P, state)[0]["b"], [3, 4])
    assert types(tx.update(P, state)[1]) == types(state)


def test_other_sources_are_left_as_they_are() -> None:
    schedule = gradx.linear_schedule(0.1, 0.0, 10)
    tx = inject_hyperparams(gradx.adamw)(
        gradx.scaled(schedule, gradx.by_path({"b": 2.0}, default=1.0)),
        b1=gradx.tunable(0.8),
        weight_decay=gradx.by_path({"b": 0.0}, default=0.1),
        eps=gradx.from_call("eps"),
    )
    state = tx.init(P)
    assert sorted(state.hyperparams) == ["b2", "eps_root"]
    assert sorted(gradx.hyperparams(state)) == ["b1", "b2", "eps_root"]
    state = gradx.set_hyperparams(state, b1=0.5, b2=0.6)
    updates, _ = tx.update(P, state, P, eps=1e-8)
    again = gradx.adamw(
        gradx.scaled(schedule, gradx.by_path({"b": 2.0}, default=1.0)),
        b1=0.5,
        b2=0.6,
        weight_decay=gradx.by_path({"b": 0.0}, default=0.1),
    )
    assert_close(updates, again.update(P, again.init(P), P)[0], rtol=1e-6)


def test_a_factory_with_open_arguments() -> None:
    """Optax hands on `kwargs={"b1": 0.5}`, which nobody takes."""

    def factory(learning_rate: Any, /, *parts: Any, **kwargs: Any) -> Any:
        return gradx.chain(*parts, gradx.adam(learning_rate, **kwargs))

    tx = inject_hyperparams(factory, "eps")(0.1, gradx.clip(1.0), b1=0.5, eps=1e-6)
    assert set(tx.init(P).hyperparams) == {"learning_rate", "b1"}
    assert repr(tx).endswith("factory, static_args='eps')(0.1, clip(1.0), b1=0.5, eps=1e-06)")
    tx.update(P, tx.init(P), P)


def test_donating_the_state_leaves_the_given_arrays_alone() -> None:
    """In Optax the state holds the array itself, which the second `init` finds deleted."""
    tx = inject_hyperparams(gradx.sgd)(jnp.float32(0.1))
    step = jax.jit(lambda state: tx.update(P, state, P)[1], donate_argnums=0)
    for _ in range(2):
        step(tx.init(P))


# ---------------------------------------------------------------- reading and setting


def test_reading_and_setting_by_name() -> None:
    tx = gradx.chain(
        gradx.clip_by_global_norm(gradx.tunable(1.0)),
        inject_hyperparams(gradx.adam)(lambda count: 0.1, b2=0.9),
    )
    state = tx.init(P)
    assert set(gradx.hyperparams(state)) == {
        "max_norm", "learning_rate", "b1", "b2", "eps", "eps_root"
    }  # fmt: skip
    new = gradx.set_hyperparams(state, b2=0.5, max_norm=2.0)
    assert gradx.hyperparams(new)["b2"] == 0.5
    assert gradx.hyperparams(state)["b2"] == jnp.float32(0.9)
    assert types(new) == types(state)
    with pytest.raises(ValueError, match="learning_rate follows a schedule"):
        gradx.set_hyperparams(state, learning_rate=0.1)
    with pytest.raises(ValueError, match="Did you mean 'eps_root'"):
        gradx.set_hyperparams(state, eps_rot=0.1)
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\)"):
        gradx.set_hyperparams(state, tx=tx, b2=1.5)


def test_one_inside_the_other() -> None:
    inner = inject_hyperparams(gradx.sgd)
    tx = inject_hyperparams(inner)(0.1)
    state = gradx.set_hyperparams(tx.init(P), learning_rate=0.2)
    assert tx.update(P, state, P)[0]["b"][0] == jnp.float32(-0.2)

    def nested(max_norm: float) -> Any:
        return gradx.chain(gradx.clip_by_global_norm(max_norm), inner(0.1))

    state = inject_hyperparams(nested)(1.0).init(P)
    assert sorted(gradx.hyperparams(state)) == ["learning_rate", "max_norm"]
    state = gradx.set_hyperparams(state, learning_rate=0.3)
    assert learning_rate(state.inner_state[1]) == jnp.float32(0.3)


def test_a_state_of_old_checkpoints_can_be_read() -> None:
    state = gradx.InjectHyperparamsState(jnp.int32(3), {"learning_rate": jnp.float32(0.1)}, ())
    new = gradx.set_hyperparams({"opt": state}, learning_rate=0.2)
    assert gradx.hyperparams(new) == {"learning_rate": jnp.float32(0.2)}


# ---------------------------------------------------------------- bad input


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inject_hyperparams: inner_factory.*adam\(0.1\)"):
        inject_hyperparams(gradx.adam(0.1))
    with pytest.raises(ValueError, match=r"inject_hyperparams > adam.*b1 must be in \[0, 1\)"):
        inject_hyperparams(gradx.adam)(0.1, b1=1.0)  # not only when a number is traced
    with pytest.raises(ValueError, match=r"inject_hyperparams > sgd.*must return one real number"):
        inject_hyperparams(gradx.sgd)(lambda count: jnp.ones(2))
    with pytest.raises(ValueError, match="must return a transformation, got 3"):
        inject_hyperparams(lambda learning_rate: 3)(0.1)
    with pytest.raises(ValueError, match="schedule_fn must be a function"):
        gradx.WrappedSchedule(0.1)
    with pytest.raises(TypeError, match="momntum"):
        inject_hyperparams(gradx.sgd)(0.1, momntum=0.9)
    tx = inject_hyperparams(gradx.sgd)(0.1)
    state = tx.init(P)
    with pytest.raises(ValueError, match="InjectStatefulHyperparamsState"):
        tx.update(P, gradx.sgd(0.1).init(P), P)
    state.hyperparams["learning_rte"] = 0.2
    with pytest.raises(ValueError, match=r"'learning_rte'.*Did you mean 'learning_rate'"):
        tx.update(P, state, P)
    del state.hyperparams["learning_rte"], state.hyperparams["learning_rate"]
    with pytest.raises(ValueError, match=r"without the numbers \['learning_rate'\]"):
        tx.update(P, state, P)


# ---------------------------------------------------------------- a description of itself


@functools.partial(inject_hyperparams, static_args="every")
def decorated(learning_rate: float, every: int = 3) -> Any:
    return gradx.sgd(learning_rate / every)


@pytest.mark.parametrize(
    ("tx", "shown"),
    [
        (
            inject_hyperparams(gradx.adamw)(1e-3, mask=gradx.weights_only),
            "inject_hyperparams(adamw)(0.001, mask=weights_only)",
        ),
        (
            inject_hyperparams(gradx.adam, ["b1"], jnp.bfloat16)(
                gradx.linear_schedule(1.0, 0.0, 9)
            ),
            "inject_hyperparams(adam, static_args=['b1'], hyperparam_dtype=bfloat16)"
            "(linear_schedule(1.0, 0.0, 9))",
        ),
    ],
)
def test_repr_config_and_pickle_make_it_again(tx: Any, shown: str) -> None:
    assert repr(tx) == shown
    again = [
        eval(repr(tx), {**vars(gradx), "bfloat16": jnp.bfloat16}),
        gradx.from_config(json.loads(json.dumps(gradx.to_config(tx)))),
        pickle.loads(pickle.dumps(tx)),
    ]
    for other in again:
        assert other == tx
        assert hash(other) == hash(tx)
    assert tx != inject_hyperparams(gradx.adam)(1e-3)


def test_what_else_it_shows() -> None:
    tx = decorated(0.3)
    assert repr(tx) == "inject_hyperparams(decorated, static_args='every')(0.3)"
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert repr(inject_hyperparams(functools.partial(gradx.adam, b1=0.5))(0.1)) == (
        "inject_hyperparams(partial(adam, b1=0.5))(0.1)"
    )
    assert repr(inject_hyperparams(optax.adam)(0.1)) == "inject_hyperparams(adam)(0.1)"
    assert inject_hyperparams(gradx.adam).__name__ == "adam"
    with pytest.raises(ValueError, match="no plain data"):
        gradx.to_config(inject_hyperparams(optax.adam)(0.1))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ({"name": "adam", "arguments": {"learning_rate": 0.1}}, "which is no factory"),
        (
            {"name": "inject_hyperparams", "arguments": {"inner_factory": {"factory": "adm"}}},
            "no factory 'adm'.*'adam'",
        ),
        (
            {"name": "inject_hyperparams", "arguments": {"inner_factory": {"factory": "adam"}}},
            "no argument 'b3'",
        ),
    ],
)
def test_bad_configs_are_refused(name: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gradx.from_config({"name": name, "arguments": {"learning_rate": 0.1, "b3": 0.1}})


def test_a_schedule_may_reach_what_nobody_may_set() -> None:
    """With and without `jit`: at a bound of 0 nothing moves, as in Optax."""
    tx = inject_hyperparams(gradx.clip_by_global_norm)(gradx.linear_schedule(1.0, 0.0, 2))
    for update in (tx.update, jax.jit(tx.update)):
        state = tx.init(P)
        for _ in range(4):
            updates, state = update(P, state)
        assert all((u == 0).all() for u in jax.tree.leaves(updates))
    both = inject_hyperparams(gradx.adam)(gradx.linear_schedule(1.0, 0.0, 2), b1=0.9)
    state = both.init(P)
    state.hyperparams["b1"] = jnp.float32(1.5)
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\)"):
        both.update(P, state)


def test_describe_shows_live_and_scheduled_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    tx = inject_hyperparams(gradx.sgd)(gradx.linear_schedule(1.0, 0.0, 9), momentum=0.9)
    table = gradx.describe(gradx.chain(tx), P)
    assert "decay=tunable(0.9)" in str(table)
    assert "learning_rate=linear_schedule(1.0, 0.0, 9)" in str(table)
    assert table.rows[0].state.total() == gradx.state_bytes(tx.init(P))
    theirs = gradx.describe(inject_hyperparams(optax.sgd)(0.1), P)
    assert "inject_hyperparams(sgd)  learning_rate=0.1" in str(theirs)
