"""What a transformation says of itself: its repr, its table, its config, its equality."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_same

import gradx
from gradx import core

PARAMS = {"bias": jnp.ones(8), "kernel": jnp.ones((4, 8))}
KERNELS = gradx.by_path({"kernel": True}, default=False)


def unregistered(count: Any) -> Any:
    return 0.1 * count


@gradx.registered
def halving(count: Any) -> Any:
    return 0.5**count


@gradx.recorded
def clipped_sgd(
    learning_rate: gradx.Hyper, max_norm: gradx.Hyper = 1.0, *, heavy: bool = False
) -> gradx.Transform:
    """A factory as a user would write one."""
    return gradx.chain(
        gradx.clip_by_global_norm(max_norm), gradx.sgd(learning_rate, 0.9 if heavy else None)
    )


# Written as their repr reads, so that each line is the code and the expectation in one.
WRITTEN = [
    "chain()",
    "identity()",
    "clip(inf)",
    "adam(0.001)",
    "adam(0.001, b2=0.95, nesterov=True)",
    "adamw(0.001, mask=weights_only, decay='independent')",
    "chain(clip_by_global_norm(1.0), adamw(warmup_cosine_decay_schedule(0.0, 0.001, 10, 100)))",
    "chain(chain(scale(2), trace(0.9, nesterov=True)), chain(scale(-0.1)))",
    "named_chain(('clip', clip(1.0)), ('step', sgd(0.1)))",
    "masked(adam(0.1), {'a': True, 'b': (False, True)})",
    "masked(adam(0.1), [True], mask_compatible_extra_args=True)",
    "partition({1: sgd(0.1), 2: chain()}, by_path({'kernel': 1}, default=2), optional=[2])",
    "freeze(by_path({'backbone': True}, default=False), inner=sgd(0.5))",
    "sgd(by_path({'bias': tunable(0.1), 'x|y': from_call('rate')}, default=0.2, optional=True))",
    "sgd(scaled(linear_schedule(1.0, 0.0, 10), tunable(0.1, name='peak'), 2))",
    "sgd(piecewise_constant_schedule(1.0, boundaries_and_scales={10: 0.5, 20: 0.1}), momentum=0.9)",
    "sgd(join_schedules([linear_schedule(0.0, 1.0, 5), constant_schedule(1.0)], [5]))",
    "tunable(chain(clip(1.0), adam(0.1)))",
    "adaptive_grad_clip(0.1, axis=(0, 1))",
    "adaptive_grad_clip(0.1, axis=(0,))",
    "pmean(('data', 'model'))",
    "scale_by_lion(mode='smooth', smooth_beta=2.0)",
]


def written(code: str) -> Any:
    return eval(code, dict(vars(gradx), inf=float("inf")))


def through_json(made: Any) -> Any:
    return gradx.from_config(json.loads(json.dumps(gradx.to_config(made))))


# ---------------------------------------------------------------- repr


@pytest.mark.parametrize("code", WRITTEN)
def test_a_repr_is_the_code_that_was_written(code: str) -> None:
    assert repr(written(code)) == code


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (gradx.adam(learning_rate=0.1, b1=0.9, mu_dtype=None), "adam(0.1)"),  # only what differs
        (gradx.sgd(0.1, 0.9, True), "sgd(0.1, momentum=0.9, nesterov=True)"),
        (gradx.adam(0.1, mu_dtype=jnp.bfloat16), "adam(0.1, mu_dtype=bfloat16)"),
        (gradx.adam(0.1, mu_dtype=np.dtype("float32")), "adam(0.1, mu_dtype=float32)"),
        (gradx.sgd(np.float64(0.1)), "sgd(0.1)"),
        (gradx.sgd(jnp.float32(0.5)), "sgd(0.5)"),
        (gradx.sgd(halving), "sgd(halving)"),
        (gradx.sgd(lambda count: 0.1), "sgd(<lambda>)"),
        (gradx.stateless(lambda u, p: u), "stateless(<lambda>)"),
        (gradx.masked(gradx.clip(1.0), {"a": jnp.array(True)}), "masked(clip(1.0), {'a': True})"),
        (gradx.chain(optax.adam(0.1), gradx.clip(1.0)), "chain(optax.chain(…), clip(1.0))"),
        (gradx.chain(optax.scale_by_adam()), "chain(optax.scale_by_adam(…))"),
        (
            gradx.add_noise(0.1, 0.5, key=jax.random.key(0)),
            "add_noise(0.1, 0.5, key=<key<fry>[]>)",
        ),
        (clipped_sgd(0.1, heavy=True), "clipped_sgd(0.1, heavy=True)"),
    ],
)
def test_how_arguments_read(tx: Any, expected: str) -> None:
    assert repr(tx) == expected


def test_a_description_stays_true_when_its_arguments_change() -> None:
    rules = {"bias": 0.1}
    factors = [True]
    tx = gradx.chain(
        gradx.sgd(gradx.by_path(rules, default=0.2)), gradx.masked(gradx.clip(1.0), factors)
    )
    before = repr(tx)
    rules["bias"] = 7.0
    factors.append(False)
    assert repr(tx) == before


# ---------------------------------------------------------------- describe


def test_why_a_leaf_is_a_matrix_or_is_none() -> None:
    shapes = {
        "Conv_0": {"kernel": (3, 3, 2, 4), "bias": (4,)},
        "attn": {"query": {"kernel": (8, 2, 4)}, "qkv": (8, 24)},
        "layers": (5, 8, 8),
        "lm_head": (8, 9),
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))

    def said(tx: Any) -> dict[str, str]:
        """The rows without branches of the two groups, path to text."""
        texts = {}
        for row in gradx.describe(tx, params).rows:
            if row.branch.endswith("│    "):
                texts |= dict.fromkeys(row.paths, row.name)
        return texts

    assert said(gradx.soap(0.1)) == {
        "Conv_0/kernel": "a convolution: 18×4",
        "attn/query/kernel": "heads side by side in the columns: 8×8",
        "attn/qkv": "two axes: 8×24",
        "layers": "a stack of matrices: 5 of 8×8",
        "Conv_0/bias": "fewer than two axes",
        "lm_head": "a head",
    }
    qkv = gradx.by_path({"qkv": gradx.MatrixAxes(parts=3)}, default=None)
    chosen = said(gradx.soap(0.1, axes=qkv))
    assert chosen.pop("attn/qkv") == "by axes: 3 of 8×8"
    assert set(chosen.values()) == {"by axes"}


def test_the_table_of_a_small_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    tx = gradx.chain(
        gradx.clip_by_global_norm(gradx.tunable(1.0)),
        gradx.masked(gradx.trace(0.9, nesterov=True), KERNELS),
        optax.scale_by_adam(),
        gradx.scale_by_learning_rate(gradx.by_path({"bias": 0.1}, default=halving)),
    )
    assert str(gradx.describe(tx, PARAMS)) == TABLE.strip("\n")
    assert repr(gradx.describe(tx, PARAMS)) == TABLE.strip("\n")


TABLE = """
transformation              numbers                   leaves      state
──────────────────────────  ────────────────────────  ──────────  ────────────────────────
chain                                                 all         float32 452 B, int32 8 B
├─ clip_by_global_norm      max_norm=tunable(1.0)     all         float32 4 B
├─ masked                                             all         float32 128 B
│  └─ trace                 decay=0.9 nesterov=True   1/2 kernel  float32 128 B
├─ optax.scale_by_adam(…)                             all         int32 4 B, float32 320 B
└─ scale_by_learning_rate   learning_rate=by_path(…)  all         int32 4 B
     learning_rate=0.1                                1/2 bias
     learning_rate=halving                            1/2 kernel
"""


def test_the_table_of_groups() -> None:
    tx = gradx.partition(
        {"a": gradx.freeze(True), "b": gradx.sgd(halving, 0.9)}, {"bias": "a", "kernel": "b"}
    )
    rows = gradx.describe(tx, PARAMS).rows
    assert [(row.branch + row.name, row.numbers, row.paths) for row in rows] == [
        ("partition", "", ("bias", "kernel")),
        ("├─ a: freeze", "", ("bias",)),
        ("│  └─ set_to_zero", "", ("bias",)),
        ("└─ b: sgd", "", ("kernel",)),
        ("   ├─ trace", "decay=0.9", ("kernel",)),
        ("   └─ scale_by_learning_rate", "learning_rate=halving", ("kernel",)),
    ]


def test_many_leaves_are_counted_and_large_states_rounded() -> None:
    shapes = {f"l{i}": jax.ShapeDtypeStruct((1000, 1000), jnp.float32) for i in range(4)}
    tx = gradx.masked(gradx.trace(0.9), gradx.by_path({"l3": False}, default=True))
    cells = list(gradx.describe(tx, shapes).cells())
    assert cells[1] == ("masked", "", "all", "float32 12.0 MB")
    assert cells[2] == ("└─ trace", "decay=0.9", "3/4 l0, l1 and 1 more", "float32 12.0 MB")


def test_describing_shapes_computes_nothing() -> None:
    """Parameters of a petabyte: nothing of their size is ever made."""
    huge = {"kernel": jax.ShapeDtypeStruct((1 << 24, 1 << 24), jnp.float32)}
    table = gradx.describe(gradx.chain(gradx.adam(gradx.tunable(0.1)), optax.trace(0.9)), huge)
    assert table.rows[0].state == {"int32": 4, "float32": 3 * 4 * (1 << 48) + 4}
    assert "GB" in str(table)
    small = jax.eval_shape(lambda: PARAMS)
    tx = gradx.adamw(0.1)
    assert str(gradx.describe(tx, small)) == str(gradx.describe(tx, PARAMS))


def test_none_leaves_and_empty_trees_are_not_counted() -> None:
    table = gradx.describe(gradx.sgd(0.1), {"a": jnp.ones(1), "b": None})
    assert table.total == 1
    assert table.rows[0].paths == ("a",)
    assert gradx.describe(gradx.sgd(0.1), {}).total == 0


def test_the_html_is_escaped() -> None:
    tx = gradx.chain(
        gradx.sgd(gradx.by_path({"<b>": 0.1}, default=gradx.from_call("a"))),
        gradx.sgd(lambda count: 0.1),
    )
    params = {"<b>": jnp.ones(1), "c&d": jnp.ones(1)}
    html = gradx.describe(tx, params)._repr_html_()
    assert html.startswith("<table><tr><th>transformation</th>")
    assert html.endswith("</tr></table>")
    assert "<b>" not in html
    assert "<lambda>" not in html
    assert "1/2 &lt;b&gt;" in html
    assert "1/2 c&amp;d" in html
    assert html.count("<tr>") == html.count("</tr>") == len(gradx.describe(tx, params).rows) + 1


def test_describe_says_what_init_says() -> None:
    with pytest.raises(ValueError, match="'nope' claims no leaf"):
        gradx.describe(gradx.sgd(gradx.by_path({"nope": 0.1}, default=0.2)), PARAMS)


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize("code", WRITTEN)
def test_a_config_makes_it_again(code: str) -> None:
    tx = written(code)
    again = through_json(tx)
    assert repr(again) == code
    assert gradx.to_config(again) == gradx.to_config(tx)


def test_a_config_is_plain_data() -> None:
    tx = gradx.partition(
        {
            1: gradx.chain(gradx.clip(1.0), gradx.sgd(halving)),
            2: gradx.adam(gradx.linear_schedule(1e-3, 0.0, 10), mu_dtype=jnp.bfloat16),
        },
        gradx.by_path({"kernel": 1}, default=2),
    )
    rate = {"init_value": 0.001, "end_value": 0.0, "transition_steps": 10}
    first = [
        {"name": "clip", "arguments": {"max_delta": 1.0}},
        {
            "name": "sgd",
            "arguments": {"learning_rate": {"function": f"{__name__}:halving"}},
        },
    ]
    second = {
        "learning_rate": {"name": "linear_schedule", "arguments": rate},
        "mu_dtype": {"dtype": "bfloat16"},
    }
    groups = [
        [1, {"name": "chain", "arguments": {"args": {"tuple": first}}}],
        [2, {"name": "adam", "arguments": second}],
    ]
    rules = {"dict": [["kernel", 1]]}
    labels = {"name": "by_path", "arguments": {"rules": rules, "default": 2}}
    expected = {
        "name": "partition",
        "arguments": {"transforms": {"dict": groups}, "param_labels": labels},
    }
    assert gradx.to_config(tx) == expected
    again = through_json(tx)
    assert repr(again) == repr(tx)
    assert_same(again.init(PARAMS), tx.init(PARAMS))
    state = tx.init(PARAMS)
    assert_same(again.update(PARAMS, state, PARAMS), tx.update(PARAMS, state, PARAMS))


def test_a_precision_has_a_config() -> None:
    tx = gradx.muon(1e-3, dtype=jax.lax.Precision.HIGH)
    assert repr(through_json(tx)) == repr(tx)
    with pytest.raises(ValueError, match=r"no precision 'WIDE'.*HIGHEST"):
        gradx.from_config({"name": "muon", "arguments": {"dtype": {"precision": "WIDE"}}})


def test_schedules_and_sources_have_configs_of_their_own() -> None:
    schedule = gradx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)
    assert through_json(schedule) == schedule
    source = gradx.scaled(schedule, gradx.by_path({"a": 0.1}, default=gradx.tunable(1.0)))
    assert repr(through_json(source)) == repr(source)
    assert through_json(gradx.from_call("rate")) == gradx.from_call("rate")


def test_numbers_of_numpy_and_jax_become_plain() -> None:
    for value in (np.float64(0.5), np.float32(0.5), jnp.float32(0.5), np.array(0.5)):
        assert gradx.to_config(gradx.sgd(value))["arguments"] == {"learning_rate": 0.5}


@pytest.mark.parametrize(
    ("made", "where"),
    [
        (lambda: gradx.sgd(unregistered), "sgd.learning_rate is unregistered"),
        (
            lambda: gradx.chain(gradx.clip(1.0), gradx.sgd(unregistered)),
            r"chain.args\[1\].learning_rate is unregistered",
        ),
        (
            lambda: gradx.sgd(gradx.by_path({"a": unregistered}, default=0.1)),
            r"sgd.learning_rate.rules\['a'\] is unregistered",
        ),
        (
            lambda: gradx.named_chain(("x", gradx.clip(1.0)), ("y", optax.adam(0.1))),
            r"named_chain.args\[1\]\[1\] is optax.chain\(…\)",
        ),
        (
            lambda: gradx.partition({"a": optax.sgd(0.1)}, "a"),
            r"partition.transforms\['a'\] is optax.chain\(…\)",
        ),
        (
            lambda: gradx.masked(gradx.clip(1.0), lambda params: True),
            "masked.mask is .*<lambda>",
        ),
        (
            lambda: gradx.add_noise(0.1, 0.5, key=jax.random.key(0)),
            r"add_noise.key is <key<fry>\[\]>",
        ),
        (
            lambda: gradx.stateless(jnp.sign),
            "stateless.f is",
        ),
    ],
)
def test_what_is_no_data_is_refused_by_its_place(made: Any, where: str) -> None:
    with pytest.raises(ValueError, match=rf"to_config: {where}.*which is no plain data"):
        gradx.to_config(made())


@pytest.mark.parametrize("made", [optax.adam(0.1), 3, None, unregistered])
def test_what_no_factory_made_has_no_config(made: Any) -> None:
    with pytest.raises(ValueError, match="was not made by a recorded factory"):
        gradx.to_config(made)


def test_an_array_is_no_data() -> None:
    tx = gradx.masked(gradx.clip(1.0), {"a": np.ones(2, bool)})
    with pytest.raises(ValueError, match=r"masked.mask\['a'\] is <bool\[2\]>"):
        gradx.to_config(tx)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            {"name": "adm", "arguments": {}},
            r"no factory 'adm'. Did you mean 'adam'\? There are: .*adamw",
        ),
        ({"name": "Transform", "arguments": {}}, "no factory 'Transform'"),
        (
            {"name": "adam", "arguments": {"learning_rat": 0.1}},
            r"adam has no argument 'learning_rat'; it has \['learning_rate', 'b1'.*mean 'learn",
        ),
        (
            {"name": "sgd", "arguments": {"learning_rate": {"function": "halvin"}}},
            "no function 'halvin'.* There are: .*weights_only",
        ),
        (
            {"name": "sgd", "arguments": {"learning_rate": -1.0}},
            r"learning_rate must be in \[0, inf",
        ),
        ({"name": "sgd", "arguments": {"learning_rate": {"x": 1}}}, "cannot read {'x': 1}"),
        ({"name": "scale", "arguments": {"step_size": None}}, "must be one real number, got None"),
        (
            {"name": "chain", "arguments": {"args": {"tuple": [3]}}},
            "element 0 must be a gradient tr",
        ),
        ({"name": "adam"}, "wants {'name': …, 'arguments': {…}}"),
        ({"name": "adam", "arguments": {}, "more": 1}, "wants {'name': …, 'arguments': {…}}"),
        ([], "wants {'name': …, 'arguments': {…}}"),
        ("adam(0.1)", "wants {'name': …, 'arguments': {…}}"),
        (None, "wants {'name': …, 'arguments': {…}}"),
    ],
)
def test_a_config_that_cannot_be_read(config: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gradx.from_config(config)


class Renewing(Mapping[str, Any]):
    """A mapping that makes its values anew each time they are asked for, as that of Flax does."""

    def __init__(self, of: dict[str, Any]) -> None:
        self.of = of

    def __getitem__(self, key: str) -> Any:
        value = self.of[key]
        return Renewing(value) if isinstance(value, dict) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


def test_a_config_in_mappings_of_another_kind() -> None:
    tx = gradx.adam(gradx.cosine_decay_schedule(0.1, 10))
    assert gradx.from_config(Renewing(gradx.to_config(tx))) == tx


HOSTILE = [
    {"name": "os.system", "arguments": {"command": "true"}},
    {"name": "os:system", "arguments": {"command": "true"}},
    {"name": "builtins:eval", "arguments": {"source": "1"}},
    {"name": "__import__", "arguments": {"name": "antigravity"}},
    {"name": "gradx.core:Transform", "arguments": {"init": None, "update": None}},
    {"name": "leafwise", "arguments": {"update": {"function": "eval"}}},
    {"name": "stateless", "arguments": {"f": {"function": "os.system"}}},
    {"name": "stateless", "arguments": {"f": {"function": "builtins:eval"}}},
    {"name": "stateless", "arguments": {"f": {"name": "eval", "arguments": {}}}},
    {"name": "sgd", "arguments": {"learning_rate": {"py/object": "os.system"}}},
    {"name": "sgd", "arguments": {"learning_rate": "__import__('antigravity')"}},
    {"name": "chain", "arguments": {"__class__": 1}},
]


@pytest.mark.parametrize("config", HOSTILE, ids=json.dumps)
def test_a_config_is_never_code(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names are refused; nothing is imported, evaluated or called on the way."""
    called: list[Any] = []
    monkeypatch.setattr(os, "system", called.append)
    monkeypatch.setattr("builtins.eval", called.append)
    nested = {"name": "chain", "arguments": {"args": {"tuple": [config]}}}
    before = set(sys.modules)
    for form in (config, nested):
        with pytest.raises(
            ValueError, match=r"no factory|no function|cannot read|no argument|number"
        ):
            gradx.from_config(form)
    assert called == []
    assert set(sys.modules) == before


# ---------------------------------------------------------------- equal, hashed, passed along


@pytest.mark.parametrize("code", WRITTEN)
def test_equal_arguments_make_equal_transformations(code: str) -> None:
    one, two = written(code), written(code)
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert len({one, two, through_json(one)}) == 1


def test_different_arguments_make_different_ones() -> None:
    different = [written(code) for code in WRITTEN]
    different += [
        gradx.adam(0.002),
        gradx.adam(0.001, eps=1e-7),
        gradx.nadam(0.001),
        optax.adam(0.001),
    ]
    different += [gradx.sgd(halving), gradx.sgd(unregistered), gradx.sgd(lambda count: 0.1)]
    for i, one in enumerate(different):
        assert one == one
        assert all(one != other for other in different[i + 1 :])


def test_how_it_is_called_makes_no_difference() -> None:
    assert gradx.adam(0.1, 0.9) == gradx.adam(learning_rate=0.1)
    assert gradx.sgd(0.1, momentum=None) == gradx.sgd(0.1)
    assert gradx.adam(0.1) != gradx.chain(gradx.scale_by_adam(), gradx.scale_by_learning_rate(0.1))


def test_a_transformation_is_a_static_argument() -> None:
    traces = []

    def update(tx: Any, g: Any) -> Any:
        traces.append(tx)
        return tx.update(g, tx.init(g), g)[0]

    jitted = jax.jit(update, static_argnums=0)
    for _ in range(2):
        made = gradx.chain(gradx.clip(1.0), gradx.adam(gradx.linear_schedule(0.1, 0.0, 10)))
        jitted(made, PARAMS)
    assert len(traces) == 1
    jitted(gradx.chain(gradx.clip(1.0), gradx.adam(0.1)), PARAMS)
    assert len(traces) == 2


# ---------------------------------------------------------------- factories of one's own


def test_a_users_factory_is_registered_with_its_module() -> None:
    """So that it cannot take a name of gradx, nor of another package."""
    name = f"{__name__}:clipped_sgd"
    assert core.REGISTRY[name] is clipped_sgd
    assert "clipped_sgd" not in core.REGISTRY
    tx = clipped_sgd(0.1, max_norm=2.0)
    config = {"name": name, "arguments": {"learning_rate": 0.1, "max_norm": 2.0}}
    assert gradx.to_config(tx) == config
    assert through_json(tx) == tx == pickle.loads(pickle.dumps(tx))
    assert gradx.to_config(gradx.chain(tx))["arguments"]["args"] == {"tuple": [config]}

    before = core.REGISTRY["adam"]

    @gradx.recorded
    def adam(learning_rate: float) -> gradx.Transform:
        return gradx.sgd(learning_rate)

    assert core.REGISTRY["adam"] is before
    assert gradx.from_config({"name": "adam", "arguments": {"learning_rate": 0.1}}) == gradx.adam(
        0.1
    )
    assert adam(0.1) != gradx.adam(0.1)


def test_a_users_factory_keeps_its_signature_and_names_its_errors() -> None:
    with pytest.raises(TypeError, match=r"^clipped_sgd needs learning_rate\. It takes"):
        clipped_sgd()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"clipped_sgd > clip_by_global_norm: max_norm must be in"):
        clipped_sgd(0.1, -1.0)
    assert clipped_sgd.__doc__ == "A factory as a user would write one."
    live = gradx.tunable(clipped_sgd(0.1))
    assert sorted(gradx.hyperparams(live.init(PARAMS))) == ["learning_rate", "max_norm"]
    table = str(gradx.describe(clipped_sgd(0.1), PARAMS)).splitlines()
    assert [line.split("  ")[0] for line in table[2:5]] == [
        "clipped_sgd",
        "├─ clip_by_global_norm",
        "└─ sgd",
    ]


def test_what_no_factory_made_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="was not made by a recorded factory"):
        pickle.dumps(gradx.leafwise(lambda g, s, p, h: (g, s)))
