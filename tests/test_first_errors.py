"""The first errors that somebody sees who comes from elsewhere: who, what, and what to do."""

from __future__ import annotations

import inspect
import pickle
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES

import gradx
from gradx import core
from gradx.core import annotations

PARAMS = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
ONE = {"kernel": jnp.ones((2, 2))}


def updated(tx: Any, params: Any = ONE) -> Any:
    return tx.update(params, tx.init(params), params)


# ---------------------------------------------------------------- calls that do not fit


def generated() -> Any:
    yield from PARAMS.values()


CALLS: list[tuple[Callable[[], Any], str]] = [
    # PyTorch
    (lambda: gradx.adam(lr=1e-3), r"adam has no argument 'lr': did you mean learning_rate\? It"),
    (lambda: gradx.adam(generated(), lr=1e-3), r"learning_rate\? The parameters are no argument"),
    (lambda: gradx.adam(1e-3, betas=(0.8, 0.99)), r"'betas': give b1=0\.8, b2=0\.99\. It takes"),
    (lambda: gradx.adan(1e-3, betas=0.9), r"adan has no argument 'betas': give b1=…, b2=…, b3=…\."),
    (lambda: gradx.sgd(0.1, weight_decay=0.01), r"chain\(add_decayed_weights\(0\.01\), sgd\(…\)\)"),
    (lambda: gradx.lion(0.1, wd=0.01), r"lion has no argument 'wd': did you mean weight_decay\?"),
    (lambda: gradx.rmsprop(0.1, alpha=0.9), r"'alpha': did you mean decay\?"),
    (lambda: gradx.sgd(0.1, alpha=0.9), r"'alpha': did you mean learning_rate\?"),
    (lambda: gradx.adam(0.1, amsgrad=True), r"an optimizer of its own, amsgrad\(…\)\."),
    (lambda: gradx.adam(0.1, fused=True), r"leave it out"),
    (lambda: gradx.sgd(0.1, maximize=True), r"chain\(scale\(-1\.0\), sgd\(…\)\)"),
    (lambda: gradx.sgd(0.1, params=PARAMS), r"which sgd\(…\)\.init\(params\) is given"),
    (lambda: gradx.cosine_decay_schedule(0.1, T_max=9), r"did you mean decay_steps\?"),
    # Keras
    (lambda: gradx.adam(0.1, beta_1=0.9), r"'beta_1': did you mean b1\?"),
    (lambda: gradx.adam(0.1, epsilon=0.9), r"'epsilon': did you mean eps\?"),
    (
        lambda: gradx.adam(0.1, clipnorm=1.0),
        r"Keras clips .*clip_by_global_norm\(1\.0\), adam\(…\)",
    ),
    (
        lambda: gradx.adam(0.1, global_clipnorm=1.0),
        r"chain\(clip_by_global_norm\(1\.0\), adam\(…\)",
    ),
    (lambda: gradx.adam(0.1, clipvalue=1.0), r"chain\(clip\(1\.0\), adam\(…\)\)"),
    (lambda: gradx.adam(0.1, momentum=0.9), r"'momentum': did you mean b1\?"),
    (lambda: gradx.adam(0.1, decay=1e-4), r"give a schedule as learning_rate"),
    # DeepSpeed
    (lambda: gradx.adamw(0.1, gradient_clipping=1.0), r"clip_by_global_norm\(1\.0\), adamw\(…\)"),
    (lambda: gradx.adamw(0.1, gradient_accumulation_steps=4), r"every_k_schedule=4\)"),
    # pieces, combinations, factories of factories, what is no factory
    (
        lambda: gradx.scale_by_adam(lr=0.1),
        r"chain\(scale_by_adam\(…\), scale_by_learning_rate\(0\.1",
    ),
    (
        lambda: gradx.scale(learning_rate=0.1),
        r"scale has no argument 'learning_rate': did you mean",
    ),
    (
        lambda: gradx.chain(gradx.sgd(0.1), clipnorm=1),
        r"chain has no argument 'clipnorm': name it in",
    ),
    (lambda: gradx.MultiSteps(gradx.sgd(0.1), k=3), r"MultiSteps has no argument 'k'\."),
    (lambda: gradx.inject_hyperparams(gradx.adam)(lr=0.1), r"^inject_hyperparams\(adam\) has no"),
    (lambda: gradx.leafwise(need_params=True), r"^leafwise .*did you mean needs_params\?"),
    (lambda: gradx.describe(gradx.sgd(0.1), param=1), r"^describe .*did you mean params\?"),
    (lambda: gradx.adam(learning_rat=0.1), r"^adam .*did you mean learning_rate\?"),
    # what fits no place
    (lambda: gradx.adam(), r"^adam needs learning_rate\. It takes learning_rate, b1, b2"),
    (lambda: gradx.chain(gradx.sgd()), r"^sgd needs learning_rate"),
    (lambda: gradx.partition(), r"^partition needs transforms, param_labels\."),
    (lambda: gradx.adam(1, 2, 3, 4, 5, 6, 7), r"^adam takes 6 arguments by place and is given 7\."),
    (
        lambda: gradx.adam(0.1, learning_rate=0.2),
        r"given learning_rate twice, 0\.1 by place and 0\.2",
    ),
    (
        lambda: gradx.cosine_decay_schedule(0.3, 100, end_value=0.1),
        r"give alpha=0\.1 / init_value, the share",
    ),
    (
        lambda: gradx.inject_hyperparams(gradx.adam, learning_rate=0.1),
        r"second call, inject_hyperparams\(…\)\(learning_rate=0\.1\)",
    ),
    (lambda: gradx.soap(0.1, betas=(0.9, 0.95)), r"'betas': give b1=0\.9, b2=0\.95\. It"),
]


@pytest.mark.parametrize(("call", "told"), CALLS, ids=[told for _, told in CALLS])
def test_a_call_that_does_not_fit(call: Callable[[], Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        call()


def test_several_numbers_are_no_parameters() -> None:
    with pytest.raises(ValueError, match=r"b1 must be one real number, got \(0\.9, 0\.99\)\. Give"):
        gradx.adam(0.1, (0.9, 0.99))  # type: ignore[arg-type]


def test_every_public_function_names_itself_and_the_argument() -> None:
    public = [getattr(gradx, name) for name in gradx.__all__]
    ours = [f for f in public if inspect.isfunction(f) and f.__module__.startswith("gradx.")]
    assert len(ours) > 200
    for function in ours:
        name = function.__name__
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            with pytest.raises(TypeError, match=rf"^{name}\b.*\bno_such_argument\b"):
                function(no_such_argument=1)


def test_every_optimizer_knows_the_words_of_others() -> None:
    for factory in {case.make().spec.factory for case in CASES}:
        names = inspect.signature(factory).parameters
        for word, name in (("lr", "learning_rate"), ("epsilon", "eps"), ("beta_2", "b2")):
            if name in names and word not in names:
                with pytest.raises(
                    TypeError, match=f"has no argument {word!r}: did you mean {name}"
                ):
                    factory(**{word: 0.1})


def test_the_parameters_in_the_place_of_the_learning_rate() -> None:
    for given in (PARAMS, list(PARAMS.values()), generated()):
        with pytest.raises(ValueError, match=r"learning_rate must be .*which tx.init\(params\) is"):
            gradx.adam(given, 1e-3)


def test_a_list_in_a_chain() -> None:
    with pytest.raises(ValueError, match=r"Give those one by one, \*\[…\]"):
        gradx.chain([gradx.sgd(0.1), gradx.clip(1.0)])


# ---------------------------------------------------------------- rules


def reads_rate(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g * h.rate, s


def reads_params(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g + jnp.sum(p), s


def same(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g, s


def of_step(h: Any, t: Any) -> Any:
    return {"x": h.rate}


def of_leaf(g: Any, s: Any, p: Any, h: Any) -> Any:
    return {"x": h.rate}


def params_of_leaf(g: Any, s: Any, p: Any, h: Any) -> Any:
    return {"x": jnp.sum(p())}


def of_tree(h: Any, sums: Any) -> Any:
    return {"x": h.rate}, {}


def decides(h: Any, sums: Any) -> Any:
    return sums, {}


def sums(g: Any, s: Any, p: Any, h: Any) -> Any:
    return {"x": jnp.sum(p)}


WITHOUT_NUMBER: list[Callable[[], Any]] = [
    lambda: gradx.leafwise(reads_rate, hypers={"rates": 0.1}),
    lambda: gradx.matrixwise(reads_rate, hypers={"rates": 0.1}),
    lambda: gradx.leafwise(same, hypers={"rates": 0.1}, per_step=of_step),
    lambda: gradx.leafwise(same, hypers={"rates": 0.1}, per_leaf=of_leaf),
    lambda: gradx.leafwise(same, hypers={"rates": 0.1}, measure=of_leaf, per_tree=decides),
    lambda: gradx.leafwise(same, hypers={"rates": 0.1}, per_tree=of_tree),
]


@pytest.mark.parametrize("make", WITHOUT_NUMBER)
def test_a_number_that_a_rule_was_not_given(make: Callable[[], Any]) -> None:
    told = r"the function (reads_rate|of_\w+) of a rule reads h\.rate.*mean 'rates'\?.*hypers="
    with jax.disable_jit(), pytest.raises(AttributeError, match=told):
        updated(make())


WITHOUT_PARAMS: list[Callable[[], Any]] = [
    lambda: gradx.leafwise(reads_params),
    lambda: gradx.matrixwise(reads_params),
    lambda: gradx.leafwise(same, measure=sums, per_tree=decides),
    lambda: gradx.leafwise(same, per_leaf=params_of_leaf),
    # The parameters that its neighbour asked for are not for it.
    lambda: gradx.chain(gradx.leafwise(reads_params), gradx.add_decayed_weights(0.1)),
]


@pytest.mark.parametrize("make", WITHOUT_PARAMS)
def test_a_rule_that_has_not_asked_for_the_parameters(make: Callable[[], Any]) -> None:
    told = r"the function (reads_params|sums|params_of_leaf) of a rule .*give needs_params=True"
    with jax.disable_jit(), pytest.raises(TypeError, match=told):
        updated(make())


# ---------------------------------------------------------------- patterns and trees


def test_a_pattern_whose_leaves_another_one_has() -> None:
    with pytest.raises(
        ValueError, match=r"'ker' claims no leaf: .*'k|b' claims 'kernel'\. Put 'ker"
    ):
        gradx.sgd(gradx.by_path({"k|b": 0.1, "ker": 0.2})).init(PARAMS)
    with pytest.raises(ValueError, match=r"'x' claims no leaf: it is found in none of .*'kernel'"):
        gradx.sgd(gradx.by_path({"x": 0.1}, default=0.2)).init(PARAMS)


class Layer(NamedTuple):
    bias: Any
    kernel: Any


def test_trees_that_do_not_match() -> None:
    tx = gradx.adamw(0.1)
    state = tx.init(PARAMS)
    both = "the gradients and the parameters"
    with pytest.raises(ValueError, match=rf"{both} must .* Only in the gradients: 'bias'\."):
        tx.update(PARAMS, state, ONE)
    with pytest.raises(ValueError, match=rf"{both} must .* Only in the parameters: 'bias'\."):
        tx.update(ONE, state, PARAMS)
    with pytest.raises(
        ValueError, match=r"the state's mu must .* Only in the state's mu: 'bias'\."
    ):
        tx.update(ONE, state, ONE)
    with pytest.raises(ValueError, match=r"are a tree, a dict, but the parameters a float"):
        tx.update(ONE, state, 1.0)
    inner, other = {"a": PARAMS, "z": [1.0]}, {"a": Layer(**PARAMS), "z": [1.0]}
    with pytest.raises(ValueError, match=r"containers: dict and Layer, first around 'a/bias'"):
        tx.update(inner, tx.init(inner), other)
    with pytest.raises(ValueError, match=r"Only in the parameters: 'bias'\."):
        gradx.apply_updates(PARAMS, ONE)


def test_a_masked_state_lacks_only_what_no_mask_hides() -> None:
    tx = gradx.masked(gradx.trace(0.9), {"bias": False, "kernel": True, "scale": True})
    more = {**PARAMS, "scale": jnp.ones(2)}
    state = gradx.masked(gradx.trace(0.9), {"bias": False, "kernel": True}).init(PARAMS)
    with pytest.raises(ValueError, match=r"leaves\. Only in the gradients: 'scale'\.$"):
        tx.update(more, state, more)


def test_a_state_of_other_shapes() -> None:
    tx = gradx.trace(0.9)
    with pytest.raises(TypeError) as raised:
        tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(2)}))
    assert "the state has '(2,)'. Is it that of other parameters?" in raised.value.__notes__[-1]


# ---------------------------------------------------------------- live values and traced options


def test_a_number_for_all_devices() -> None:
    tx = gradx.sgd(gradx.tunable(0.1))
    each = jax.tree.map(lambda x: jnp.stack([x] * 8), PARAMS)
    state = gradx.set_hyperparams(jax.pmap(tx.init)(each), tx=tx, learning_rate=0.5)
    np.testing.assert_array_equal(gradx.hyperparams(state)["learning_rate"], [0.5] * 8)
    traced = jax.jit(lambda x: gradx.set_hyperparams(state, learning_rate=x))(0.25)
    np.testing.assert_array_equal(gradx.hyperparams(traced)["learning_rate"], [0.25] * 8)
    with pytest.raises(ValueError, match=r"has shape \(8,\), .*one number for all"):
        gradx.set_hyperparams(state, learning_rate=jnp.ones(3))


def test_options_are_known_before_the_run() -> None:
    """Every bool, word and whole number of every row, traced."""
    asked = 0
    for spec in {case.make().spec.factory: case.make().spec for case in CASES}.values():
        for name in annotations.known_before(spec.factory):

            def make(traced: Any, spec: core.Spec = spec, name: str = name) -> Any:
                return spec.call({**dict(spec.arguments), name: traced}) and traced

            told = rf"{name} must be known before the run.*static_argnames='{name}'"
            with pytest.raises(ValueError, match=told):
                jax.eval_shape(make, True)
            asked += 1
    assert asked > 100


# ---------------------------------------------------------------- a chain that grew in a loop


def grown(depth: int) -> Any:
    tx = gradx.identity()
    for _ in range(depth):
        tx = gradx.chain(tx, gradx.clip(1.0))
    return tx


def test_a_chain_that_grew_in_a_loop() -> None:
    """As deep as JAX lets a state be, where Python lets a function call itself 1,000 times."""
    tx = grown(400)
    assert updated(tx)[0]["kernel"].shape == (2, 2)
    assert str(gradx.describe(tx, ONE)).count("clip") == 400
    for _ in range(600):  # at its other end, of which each step asks whether it may share a pass
        tx = gradx.chain(gradx.clip(1.0), tx)
    assert repr(tx).count("clip") == 1000


def test_descriptions_have_no_depth() -> None:
    tx, other = grown(1200), grown(1200)
    assert repr(tx).count("chain(") == 1200
    assert tx == other
    assert hash(tx) == hash(other)
    assert tx != gradx.chain(tx, gradx.clip(1.0))
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert gradx.from_config(gradx.to_config(tx)) == tx


def test_parts_that_are_shared_count_as_equal_ones() -> None:
    part = gradx.clip(1.0)
    assert gradx.chain(part, part) == gradx.chain(gradx.clip(1.0), gradx.clip(1.0))
    assert gradx.chain(part, gradx.clip(2.0)) != gradx.chain(gradx.clip(2.0), part)
    assert gradx.chain(part, gradx.chain(part)) != gradx.chain(gradx.chain(part), part)


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_describe_fits_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    rate = gradx.scaled(gradx.tunable(1.0), gradx.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100))
    decay = gradx.by_path({"b": 0.1}, default=0.2)
    params = {"a" * 50: {"b": jnp.ones(2), "c" * 90: jnp.ones(2)}}
    table = gradx.describe(
        gradx.chain(gradx.clip(1.0), gradx.adamw(rate, weight_decay=decay)), params
    )
    text = str(table)
    assert max(map(len, text.splitlines())) <= max(int(columns), 80)
    # Nothing is cut off: every letter is there, in whichever line.
    letters = Counter(re.sub(r"[\s│├└─]", "", text))
    assert letters == Counter(re.sub(r"[\s│├└─]", "", "".join(map("".join, table.cells()))))
