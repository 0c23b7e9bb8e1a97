"""What once went wrong, and things that people do which laws over a table do not think of."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from cases import row
from flax import nnx
from problems import STEPS, distance, gradients, params, trajectory

import gradx

PARAMS = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}


def labels_by_key(tree: Any) -> Any:
    """Fails for keys that it should not see."""
    names = {"head": "x", "mlp": "y"}
    return jax.tree_util.tree_map_with_path(lambda path, _: names[path[0].key], tree)


NESTED: list[Callable[[], Any]] = [
    lambda: gradx.by_path({"mlp": "y", "head": "x"}),
    lambda: labels_by_key,
    lambda: {"embed": optax.MaskedNode(), "head": "x", "mlp": "y"},
]


@pytest.mark.parametrize("labels", NESTED)
@pytest.mark.parametrize("whole", [False, True])
def test_a_group_inside_a_group_sees_its_own_leaves(labels: Any, whole: bool) -> None:
    """The same whether the parts run in one pass or, because of the norm, in several."""
    rate = {"x": gradx.sgd(0.1), "y": gradx.sgd(0.2)}
    if whole:
        rate["x"] = gradx.chain(gradx.trace(0.0), gradx.clip_by_global_norm(9.0), rate["x"])
    tree = {"embed": jnp.ones(1), "head": jnp.ones(1), "mlp": jnp.ones(1)}
    tx = gradx.freeze(
        gradx.by_path({"embed": True}, default=False), gradx.partition(rate, labels())
    )
    updates, _ = jax.jit(tx.update)(tree, tx.init(tree), tree)
    assert [float(updates[k][0]) for k in tree] == pytest.approx([0.0, -0.1, -0.2])


@pytest.mark.parametrize(
    "tx",
    [
        gradx.sgd(gradx.tunable(jnp.float32(0.1))),
        gradx.add_noise(0.1, 0.5, jax.random.key(0)),
        gradx.add_noise(0.1, 0.5, jax.random.PRNGKey(0)),
        gradx.add_noise(0.1, 0.5, jnp.int32(0)),
    ],
)
def test_donating_the_state_leaves_the_transform_alone(tx: Any) -> None:
    step = jax.jit(lambda state: tx.update(PARAMS, state)[1], donate_argnums=0)
    for _ in range(2):
        assert jax.tree.leaves(step(tx.init(PARAMS)))


def test_one_array_for_two_live_values() -> None:
    tx = gradx.adam(0.1, b1=gradx.tunable(0.5), b2=gradx.tunable(0.5))
    value = jnp.float32(0.9)
    state = gradx.set_hyperparams(tx.init(PARAMS), b1=value, b2=value)
    jax.jit(lambda s: tx.update(PARAMS, s)[1], donate_argnums=0)(state)
    assert float(value) == pytest.approx(0.9)


def test_a_state_held_twice_is_set_once() -> None:
    state = gradx.sgd(gradx.tunable(0.1)).init(PARAMS)
    both = gradx.set_hyperparams({"live": state, "saved": state}, **{"live/learning_rate": 0.5})
    assert [float(v) for v in gradx.hyperparams(both).values()] == pytest.approx([0.5, 0.1])


def test_live_values_in_an_nnx_optimizer() -> None:
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gradx.sgd(gradx.tunable(0.1)), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        traces.append(1)
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))

    step(model, optimizer)
    before = jax.tree.structure(optimizer.opt_state)
    optimizer.opt_state = gradx.set_hyperparams(optimizer.opt_state, learning_rate=0.0)
    assert jax.tree.structure(optimizer.opt_state) == before
    kernel = np.asarray(model.kernel[...])
    step(model, optimizer)
    assert len(traces) == 1
    np.testing.assert_array_equal(model.kernel[...], kernel)
    assert gradx.hyperparams(optimizer.opt_state)["learning_rate"] == 0.0


def test_arrays_as_constants_compile_once() -> None:
    grads = jnp.ones((3, 5))
    sizes = []
    for rate in (0.1, 0.2, 0.3):
        tx = gradx.sgd(jnp.float32(rate))
        assert float(tx.update(grads, tx.init(grads))[0][0, 0]) == pytest.approx(-rate)
        sizes.append(gradx.lift.passes._apply._cache_size())
    assert sizes[0] == sizes[2]


@pytest.mark.parametrize("value", [(0.9, 0.999), (-5.0, "(-inf, inf)"), (0.1, 0.2, 0.3)])
def test_a_tuple_is_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match="b1 must be one real number"):
        gradx.adam(1e-3, value)


@pytest.mark.parametrize(
    "schedule",
    [lambda c: None, lambda c: True, lambda c: 1j, lambda c: "0.1", gradx.constant_schedule],
)
def test_what_is_no_schedule(schedule: Any) -> None:
    with pytest.raises(ValueError, match=r"learning_rate is the (function|schedule)"):
        gradx.sgd(schedule)


def test_a_schedule_of_numpy_works_outside_jit() -> None:
    tx = gradx.sgd(lambda count: np.interp(count, [0, 10], [0.1, 0.0]))
    assert float(tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0][0]) == pytest.approx(-0.1)


def test_not_equal_is_the_opposite_of_equal() -> None:
    one, other = gradx.sgd(0.1), gradx.sgd(0.1)
    assert one == other
    assert not one != other  # noqa: SIM202  (`!=` is what is tested)
    assert copy.deepcopy(gradx.leafwise(lambda g, s, p, h: (g, s)))


def by_type(g: Any, s: Any, p: Any, h: Any) -> Any:
    return (g if isinstance(h.flag, bool) else -g), s


def test_equal_constants_of_other_kinds_are_other_programs() -> None:
    for flag, sign in ((True, 1.0), (1, -1.0), (1.0, -1.0)):
        tx = gradx.leafwise(by_type, flags={"flag": flag})
        assert tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0][0] == sign
    for zero in (0.0, -0.0):
        tx = gradx.scale(zero)
        made = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0]
        assert np.signbit(made[0]) == np.signbit(zero)


def test_a_local_factory_is_not_for_configs() -> None:
    @gradx.recorded
    def local() -> gradx.Transform:
        return gradx.scale(2.0)

    assert repr(local()) == "local()"
    with pytest.raises(ValueError, match="local to a function"):
        gradx.to_config(gradx.chain(local()))
    with pytest.raises(ValueError, match="no name of its own"):
        gradx.registered(lambda count: 0.1)


def test_pickled_for_another_process(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "import gradx\n@gradx.recorded\ndef halved(rate: float) -> gradx.Transform:\n"
        "    return gradx.chain(gradx.scale(0.5), gradx.sgd(rate))\n"
    )
    dump = "import mine, pickle, sys; sys.stdout.buffer.write(pickle.dumps(mine.halved(0.1)))"
    run = {"cwd": tmp_path, "check": True, "capture_output": True}
    data = subprocess.run([sys.executable, "-c", dump], **run).stdout
    load = f"import pickle; print(pickle.loads({data!r}))"
    again = subprocess.run([sys.executable, "-c", load], **run).stdout
    assert again.decode().strip() == "halved(0.1)"


@pytest.mark.full
def test_radam_is_finite_where_its_range_begins() -> None:
    tx = gradx.radam(0.1, b2=0.6, threshold=4.0 + 1e-6)
    state = tx.init(jnp.ones(1))
    for _ in range(60):
        updates, state = tx.update(jnp.ones(1), state)
        assert np.isfinite(updates).all()


def test_a_factor_under_a_pattern_can_be_set() -> None:
    factor = gradx.scaled(gradx.tunable(2.0), 0.4)
    state = gradx.trace(gradx.by_path({"bias": factor}, default=0.1)).init(PARAMS)
    (name,) = gradx.hyperparams(state)
    assert name == "decay[bias].factor0"
    assert gradx.set_hyperparams(state, **{name: 2.0})


def test_weights_only_reads_words() -> None:
    one = jnp.ones((2, 2))
    weights = ["normalizing_flow", "unnormalized_head", "normal_proj", "vuln_head", "Dense_0"]
    norms = ["bn1", "ln1", "ln_f", "LayerNorm_0", "layer_norm", "norms", "RMSNorm_0", "norm2"]
    made = gradx.weights_only({name: {"kernel": one} for name in weights + norms})
    assert {name for name, leaf in made.items() if leaf["kernel"]} == set(weights)


def test_a_pattern_inside_a_pattern() -> None:
    inner = gradx.by_path({"a": 0.1, "b": 0.2})
    tx = gradx.sgd(gradx.by_path({"enc": inner}, default=0.3))
    tree = {"dec": jnp.ones(()), "enc": {"a": jnp.ones(()), "b": jnp.ones(())}}
    updates, _ = tx.update(tree, tx.init(tree))
    assert [float(u) for u in jax.tree.leaves(updates)] == pytest.approx([-0.3, -0.1, -0.2])


class Gate(NamedTuple):
    value: Any
    bias: Any


def test_paths_of_a_field_called_value() -> None:
    assert gradx.core.trees.paths({"gate": Gate(1.0, 2.0)}) == ["gate/value", "gate/bias"]
    state = nnx.state(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    assert gradx.core.trees.paths(state) == ["bias", "kernel"]


def test_options_that_would_be_ignored() -> None:
    for make in (
        lambda: gradx.sgd(0.1, nesterov=True),
        lambda: gradx.sgd(0.1, dampening=0.5),
        lambda: gradx.rmsprop(0.1, nesterov=True),
    ):
        with pytest.raises(ValueError, match="momentum"):
            make()
    for dtype in (jnp.int8, "float99", bool):
        with pytest.raises(ValueError, match="mu_dtype must be a floating-point dtype"):
            gradx.adam(0.1, mu_dtype=dtype)
    complex_mu = gradx.scale_by_adam(mu_dtype=jnp.bfloat16).init(jnp.ones(1, jnp.complex64)).mu
    assert complex_mu.dtype == jnp.complex64


def test_half_none_trees_name_the_path() -> None:
    tx = gradx.adamw(0.1)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="'bias' there is a gradient, but the parameter is None"):
        tx.update(PARAMS, state, {**PARAMS, "bias": None})
    with pytest.raises(ValueError, match="'bias' there is a gradient, but the state is None"):
        tx.update(PARAMS, tx.init({**PARAMS, "bias": None}), PARAMS)
    with pytest.raises(ValueError, match="Only in the gradients: 'kernel'"):
        gradx.stateless_with_tree_map(lambda u, p: u).update(PARAMS, (), {"bias": jnp.ones(2)})
    with pytest.raises(ValueError, match="no mapped axis 'd'"):
        gradx.clip_by_global_norm(1.0, axis_name="d").update(PARAMS, optax.EmptyState())
    noise = gradx.add_noise(0.1, 0.5, 0)
    with pytest.raises(ValueError, match="'bias' is of type int32"):
        noise.update({"bias": jnp.arange(2)}, noise.init(PARAMS))


def test_describe_a_product_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rate = gradx.scaled(
        gradx.linear_schedule(1.0, 0.0, 9), gradx.by_path({"bias": 2.0}, default=1.0)
    )
    rows = str(gradx.describe(gradx.sgd(rate), PARAMS)).splitlines()
    assert "learning_rate=scaled(…)" in rows[4]
    assert "learning_rate=scaled(linear_schedule(1.0, 0.0, 9), 2.0)" in rows[5]
    assert rows[5].endswith("1/2 bias")
    with pytest.raises(ValueError, match="'act' is of type function"):
        gradx.describe(gradx.sgd(0.1), {"act": test_describe_a_product_by_path})


def test_a_star_import_brings_the_public_names_only() -> None:
    brought: dict[str, Any] = {}
    exec("from gradx import *", brought)
    modules = [name for name, value in brought.items() if isinstance(value, type(sys))]
    assert modules
    assert not [name for name in modules if not hasattr(optax, name)]  # Optax's namespaces alone
    assert {"adamw", "chain", "by_path", "l2_loss"} < set(brought)


def test_bias_corrections_keep_their_digits() -> None:
    """1 - b2**t loses four of them in float32; that is what separates Adam from Optax's here."""
    case = row("adam", learning_rate=0.05)
    flat, treedef = jax.tree.flatten(params())
    sequence = [
        jax.tree.leaves(jax.tree.map(lambda g, i=i: g[i], gradients())) for i in range(STEPS)
    ]
    exact = treedef.unflatten(references.run(case.make(references), flat, sequence)[-1])

    def error(library: Any) -> float:
        after = trajectory(case.make(library), params(), gradients())
        return distance(jax.tree.map(lambda x: x[-1], after), exact)

    assert 5 * error(gradx) < error(optax)


def test_a_pickled_transform_is_the_same() -> None:
    tx = gradx.chain(gradx.clip(1.0), gradx.adamw(gradx.linear_schedule(1.0, 0.0, 9)))
    assert pickle.loads(pickle.dumps(tx)) == tx
