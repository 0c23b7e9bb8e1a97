"""Transformations by parameter: masks, labels, frozen leaves; Optax's results and state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_same

import gradx

LEAVES = r"'backbone/bias', 'backbone/kernel', 'head/kernel'"


def tree(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = {"backbone": {"bias": (2,), "kernel": (3, 2)}, "head": {"kernel": (2, 2)}}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def run(tx: Any, steps: int = 2) -> Any:
    """The updates of some steps, and the state after them."""
    params = tree()
    state, made = tx.init(params), []
    for i in range(steps):
        updates, state = tx.update(tree(i + 1), state, params)
        made.append(updates)
    return made, state


def paths(state: Any) -> list[Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), x.shape, x.dtype) for path, x in found]


def global_norm_clipped(updates: Any, bound: float) -> Any:
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(updates)))
    return jax.tree.map(lambda x: x * min(1.0, bound / norm), updates)


# One choice of leaves (the kernels), in every form that one can be given in.
KERNELS = {
    "tree": {"backbone": {"bias": False, "kernel": True}, "head": {"kernel": True}},
    "prefix": {"backbone": {"bias": False, "kernel": True}, "head": True},
    "numpy": {"backbone": {"bias": np.False_, "kernel": np.True_}, "head": np.True_},
    "array": {"backbone": {"bias": jnp.array(False), "kernel": True}, "head": True},
    "function": lambda params: jax.tree.map(lambda x: x.ndim == 2, params),
    "function of a prefix": lambda params: {
        "backbone": KERNELS["prefix"]["backbone"],
        "head": True,
    },
    "by_path": gradx.by_path({"kernel": True}, default=False),
    "weights_only": gradx.weights_only,
}
LABELS = {
    "tree": {"backbone": {"bias": "b", "kernel": "k"}, "head": {"kernel": "k"}},
    "prefix": {"backbone": {"bias": "b", "kernel": "k"}, "head": "k"},
    "function": lambda params: jax.tree.map(lambda x: "k" if x.ndim == 2 else "b", params),
    "by_path": gradx.by_path({"kernel": "k"}, default="b"),
}

# Work on single leaves, work on whole trees, both; and Optax's own, which gradx cannot look into.
INNER = {
    "adam": lambda library: library.adam(0.1),
    "norm": lambda library: library.clip_by_global_norm(0.5),
    "chain": lambda library: library.chain(
        library.clip_by_global_norm(0.5), library.adamw(0.1, weight_decay=0.1)
    ),
    "optax": lambda library: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    "mixed": lambda library: library.chain(library.trace(0.9), optax.scale_by_adam()),
}

every_mask = pytest.mark.parametrize("mask", KERNELS.values(), ids=KERNELS)
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)


# ---------------------------------------------------------------- as Optax does it


@every_inner
def test_masked_is_optaxs(inner: Any) -> None:
    ours = gradx.masked(inner(gradx), KERNELS["tree"])
    theirs = optax.masked(inner(optax), KERNELS["tree"])
    (updates, state), (expected, expected_state) = run(ours), run(theirs)
    assert_close(updates, expected, rtol=1e-5)
    assert paths(state) == paths(expected_state)
    for updated, raw in zip(updates, [tree(1), tree(2)], strict=True):
        assert_same(updated["backbone"]["bias"], raw["backbone"]["bias"])


@every_inner
def test_partition_is_optaxs(inner: Any) -> None:
    ours = gradx.partition({"k": inner(gradx), "b": gradx.sgd(0.1, 0.9)}, LABELS["tree"])
    theirs = optax.partition({"k": inner(optax), "b": optax.sgd(0.1, 0.9)}, LABELS["tree"])
    (updates, state), (expected, expected_state) = run(ours), run(theirs)
    assert_close(updates, expected, rtol=1e-5)
    assert paths(state) == paths(expected_state)


def test_frozen_leaves_are_those_of_optax() -> None:
    mask = {"backbone": True, "head": False}
    assert_same(run(gradx.freeze(mask))[0], run(optax.transforms.freeze(mask))[0])
    everything = gradx.freeze(True)
    assert_same(
        everything.update(tree(1), everything.init(tree()))[0], jax.tree.map(jnp.zeros_like, tree())
    )


@every_mask
def test_all_forms_of_a_mask_say_the_same(mask: Any) -> None:
    inner = gradx.chain(gradx.clip_by_global_norm(0.5), gradx.adam(0.1))
    assert_same(run(gradx.masked(inner, mask)), run(gradx.masked(inner, KERNELS["tree"])))
    decayed = gradx.add_decayed_weights(0.1, mask)
    assert_same(run(decayed), run(gradx.add_decayed_weights(0.1, KERNELS["tree"])))
    frozen = gradx.freeze(mask, inner)
    assert_same(run(frozen), run(gradx.freeze(KERNELS["tree"], inner)))
    if callable(mask):  # a gradx mask serves Optax too
        theirs = optax.masked(optax.sgd(0.1), mask)
        assert_close(run(theirs)[0], run(gradx.masked(gradx.sgd(0.1), mask))[0], rtol=1e-6)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_all_forms_of_labels_say_the_same(labels: Any) -> None:
    groups = {"k": gradx.adam(0.1), "b": gradx.clip_by_global_norm(0.1)}
    actual = run(gradx.partition(groups, labels))
    assert_same(actual, run(gradx.partition(groups, LABELS["tree"])))


def test_labels_may_be_numbers() -> None:
    groups = {1: gradx.sgd(1.0), 2: gradx.sgd(0.5), 10: gradx.set_to_zero()}
    labels = gradx.by_path({"bias": 1, "head": 2}, default=10)
    (updates,), state = run(gradx.partition(groups, labels), steps=1)
    rates = {"backbone": {"bias": 1.0, "kernel": 0.0}, "head": {"kernel": 0.5}}
    assert_close(updates, jax.tree.map(lambda r, g: -r * g, rates, tree(1)), rtol=1e-6)
    assert list(state.inner_states) == [1, 2, 10]


def test_groups_within_groups() -> None:
    """The inner labels see what the outer mask leaves; the other leaves do not exist for them."""
    slow = gradx.partition(
        {"s": gradx.sgd(0.1), "f": gradx.sgd(0.2)}, gradx.by_path({"^backbone": "s"}, default="f")
    )
    tx = gradx.partition({"k": slow, "b": gradx.sgd(1.0)}, LABELS["by_path"])
    (updates,), _ = run(tx, steps=1)
    rates = {"backbone": {"bias": 1.0, "kernel": 0.1}, "head": {"kernel": 0.2}}
    assert_close(updates, jax.tree.map(lambda r, g: -r * g, rates, tree(1)), rtol=1e-6)
    only_biases = gradx.masked(slow, gradx.by_path({"bias": True}, default=False))
    with pytest.raises(ValueError, match=r"no leaf has the label 'f'; the labels are \['s'\]"):
        only_biases.init(tree())


def test_extra_arguments_like_the_updates_are_masked_on_request() -> None:
    seen: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append(extra)
        return updates, state

    looks = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    g = tree()
    for wrap in (gradx.masked, optax.masked):
        tx = wrap(looks, KERNELS["tree"], mask_compatible_extra_args=True)
        tx.update(g, tx.init(g), g, curvature=g, loss=1.0)
    ours, theirs = seen
    assert_same(ours["curvature"], theirs["curvature"])
    assert isinstance(ours["curvature"]["backbone"]["bias"], optax.MaskedNode)
    assert ours["loss"] == 1.0


# ---------------------------------------------------------------- what freeze promises


BACKBONE = gradx.by_path({"^backbone/": True}, default=False)


@every_inner
def test_frozen_leaves_have_no_update_no_state_and_no_share_in_a_norm(inner: Any) -> None:
    """As if the tree had the other leaves only."""
    updates, state = run(gradx.freeze(BACKBONE, inner(gradx)))
    tx = inner(gradx)
    head = lambda t: {"head": t["head"]}
    alone_state = tx.init(head(tree()))
    for i, updated in enumerate(updates):
        alone, alone_state = tx.update(head(tree(i + 1)), alone_state, head(tree()))
        assert_same(updated["head"], alone["head"])
        assert all(not np.any(x) for x in jax.tree.leaves(updated["backbone"]))
    assert_same(jax.tree.leaves(state), jax.tree.leaves(alone_state))


@every_inner
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_frozen_gradients_that_are_not_finite_reach_nobody(inner: Any, bad: float) -> None:
    tx = gradx.freeze(BACKBONE, inner(gradx))
    g = tree(1)
    broken = g | {"backbone": jax.tree.map(lambda x: jnp.full_like(x, bad), g["backbone"])}
    state = tx.init(tree())
    assert_same(tx.update(broken, state, tree()), tx.update(g, state, tree()))


def test_masked_passes_raw_gradients_where_freeze_gives_zeros() -> None:
    g = tree(1)
    (raw,), _ = run(gradx.masked(gradx.sgd(0.1), gradx.by_path({"head": True}, default=False)), 1)
    assert_same(raw["backbone"], g["backbone"])
    (frozen,), _ = run(gradx.freeze(BACKBONE, gradx.sgd(0.1)), steps=1)
    assert_same(frozen["head"], raw["head"])
    assert_same(frozen["backbone"], jax.tree.map(jnp.zeros_like, g["backbone"]))


def test_freeze_without_inner_zeroes_before_what_follows() -> None:
    tx = gradx.chain(gradx.freeze(BACKBONE), gradx.clip_by_global_norm(0.5))
    g = tree(1)
    expected = global_norm_clipped({"head": g["head"]}, 0.5)["head"]
    assert_close(run(tx, 1)[0][0]["head"], expected, rtol=1e-6)


def test_frozen_and_trained_leaves_may_be_all_or_none() -> None:
    everything, state = run(gradx.freeze(True, gradx.adam(0.1)))
    assert not any(np.any(x) for x in jax.tree.leaves(everything))
    assert gradx.state_bytes(state) == 4  # the count
    nothing, _ = run(gradx.freeze(False, gradx.adam(0.1)))
    assert_same(nothing, run(gradx.adam(0.1))[0])


def test_each_group_has_a_norm_of_its_own() -> None:
    tx = gradx.partition(
        {"k": gradx.clip_by_global_norm(0.5), "b": gradx.clip_by_global_norm(0.1)},
        LABELS["by_path"],
    )
    g = tree(1)
    kernels = {"a": g["backbone"]["kernel"], "b": g["head"]["kernel"]}
    expected = global_norm_clipped(kernels, 0.5)
    (updates,), _ = run(tx, steps=1)
    assert_close(updates["backbone"]["kernel"], expected["a"], rtol=1e-6)
    assert_close(updates["head"]["kernel"], expected["b"], rtol=1e-6)
    bias = global_norm_clipped(g["backbone"]["bias"], 0.1)
    assert_close(updates["backbone"]["bias"], bias, rtol=1e-6)


def test_numbers_by_path_are_asked_for_the_chosen_leaves_only() -> None:
    """So a table without a default may cover just the group that it is for."""
    rates = gradx.by_path({"head/kernel": 0.1, "backbone/kernel": 0.2})
    for inner in (gradx.sgd(rates), gradx.chain(gradx.sgd(rates), optax.scale(1.0))):
        (updates,), _ = run(gradx.masked(inner, KERNELS["by_path"]), steps=1)
        assert_close(updates["head"]["kernel"], -0.1 * tree(1)["head"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("dense/kernel", (2, 2), True),
        ("dense/bias", (2,), False),
        ("stacked/bias", (4, 2), False),
        ("LayerNorm_0/scale", (2,), False),
        ("norm1/weight", (2, 2), False),
        ("ln_1/kernel", (2, 2), False),
        ("bn/kernel", (2, 2), False),
        ("normal/kernel", (2, 2), True),
        ("conv/w", (3, 3, 2, 2), True),
        ("embed/gamma", (2, 2), False),
        ("scalar", (), False),
    ],
)
def test_weights_only(path: str, shape: tuple[int, ...], expected: bool) -> None:
    outer, _, name = path.partition("/")
    params = {outer: {name: jnp.ones(shape)}} if name else {outer: jnp.ones(shape)}
    assert jax.tree.leaves(gradx.weights_only(params)) == [expected]


# ---------------------------------------------------------------- what claims nothing


@pytest.mark.parametrize("wrap", [gradx.masked, lambda tx, mask: gradx.freeze(mask, tx)])
def test_a_pattern_that_claims_no_leaf_lists_the_leaves(wrap: Any) -> None:
    idle = {"nope": True, "kernel": True}
    with pytest.raises(ValueError, match=rf"'nope' claims no leaf.* {LEAVES}.*optional=\['nope'\]"):
        wrap(gradx.sgd(0.1), gradx.by_path(idle, default=False)).init(tree())
    for optional in (True, ["nope"]):
        mask = gradx.by_path(idle, default=False, optional=optional)
        assert_same(run(wrap(gradx.sgd(0.1), mask)), run(wrap(gradx.sgd(0.1), KERNELS["tree"])))


def test_a_pattern_hidden_by_those_before_it_claims_nothing() -> None:
    mask = gradx.by_path({"kernel": True, "head/kernel": False}, default=False)
    with pytest.raises(ValueError, match=r"'head/kernel' claims no leaf.*first match wins"):
        gradx.masked(gradx.sgd(0.1), mask).init(tree())


def test_a_leaf_without_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"no pattern matches 'backbone/bias' and there is no def"):
        gradx.masked(gradx.sgd(0.1), gradx.by_path({"kernel": True})).init(tree())


def test_labels_and_transformations_must_meet() -> None:
    groups = {"k": gradx.sgd(0.1), "b": gradx.sgd(0.1), "idle": gradx.sgd(0.1)}
    with pytest.raises(
        ValueError, match=r"no leaf has the label 'idle'; the labels are \['b', 'k'"
    ):
        gradx.partition(groups, LABELS["tree"]).init(tree())
    for optional in (True, ["idle"]):
        tx = gradx.partition(groups, LABELS["tree"], optional=optional)
        assert_same(run(tx)[0], run(gradx.sgd(0.1))[0])
    with pytest.raises(ValueError, match=r"'backbone/bias' has the label 'b'.*there are \['k'\]"):
        gradx.partition({"k": gradx.sgd(0.1)}, LABELS["tree"]).init(tree())
    with pytest.raises(ValueError, match=r"partition: 'k' has no transformation, got 0.1"):
        gradx.partition({"k": 0.1}, "k")


# ---------------------------------------------------------------- masks that do not fit


MISFITS = {
    "too few": ({"backbone": True}, "head"),
    "too many": (
        {"backbone": True, "head": {"kernel": True, "bias": True}},
        "Unknown: 'head/bias'",
    ),
    "containers": ([True, False], "Missing: 'backbone/bias'.* Unknown: '0', '1'"),
    "number": (
        {"backbone": {"bias": True, "kernel": 1}, "head": True},
        "'backbone/kernel' it is 1",
    ),
    "text": ("yes", "'backbone/bias' it is 'yes'"),
    "none": ({"backbone": True, "head": None}, "'head/kernel' it is None"),
    "function": (lambda params: 3, "'backbone/bias' it is 3"),
    "floats": (lambda params: params, r"'backbone/bias' it is <float32\[2\]>"),
}


@pytest.mark.parametrize(("mask", "match"), MISFITS.values(), ids=MISFITS)
def test_masks_that_do_not_fit_are_refused_by_path(mask: Any, match: str) -> None:
    """Also where the inner transformation is Optax's."""
    for name, tx in {
        "masked": gradx.masked(gradx.scale(2.0), mask),
        "masked:optax": gradx.masked(optax.scale(2.0), mask),
        "freeze": gradx.freeze(mask, gradx.sgd(0.1)),
        "add_decayed_weights": gradx.add_decayed_weights(0.1, mask),
    }.items():
        with pytest.raises(ValueError, match=match) as raised:
            tx.init(tree())
        assert str(raised.value).startswith(name.partition(":")[0])


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"partition: param_labels must be a tree.*(\n.*)*head"):
        gradx.partition({"k": gradx.sgd(0.1)}, {"backbone": "k"}).init(tree())


def test_a_traced_mask_is_refused() -> None:
    def init(mask: Any) -> Any:
        return gradx.masked(gradx.trace(0.9), {"backbone": mask, "head": True}).init(tree())

    with pytest.raises(ValueError, match=r"known before the run.*'backbone/bias'.*traced bool"):
        jax.jit(init)(True)


@pytest.mark.parametrize("bad", [3, None, gradx.adam])
def test_what_is_masked_must_be_a_transformation(bad: Any) -> None:
    with pytest.raises(ValueError, match="masked: inner must be a transformation"):
        gradx.masked(bad, True)


# ---------------------------------------------------------------- in Optax's hands


CHAINS = {
    "adamw": gradx.adamw(0.1, mask=gradx.weights_only),
    "masked": gradx.chain(
        gradx.clip_by_global_norm(1.0), gradx.masked(gradx.adam(0.1), KERNELS["by_path"])
    ),
    "masked optax": gradx.masked(optax.adam(0.1), KERNELS["by_path"]),
    "partition": gradx.partition({"k": gradx.lion(0.1), "b": optax.adam(0.1)}, LABELS["by_path"]),
    "freeze": gradx.freeze(BACKBONE, gradx.adam(0.1)),
    "live": gradx.sgd(gradx.tunable(0.1), 0.9),
}


@pytest.mark.parametrize("tx", CHAINS.values(), ids=CHAINS)
def test_optax_finds_the_parts_of_the_state_that_are_like_parameters(tx: Any) -> None:
    """`tree_map_params` asks `init` with a placeholder; people shard and cast states with it."""
    state = tx.init(tree())
    shapes = {leaf.shape for leaf in jax.tree.leaves(tree())}
    marked = optax.tree_utils.tree_map_params(
        tx, lambda x: "like a parameter", state, transform_non_params=lambda x: "other"
    )
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    marks = jax.tree.leaves(marked)
    assert "like a parameter" in marks
    for mark, leaf in zip(marks, jax.tree.leaves(state), strict=True):
        assert mark == ("like a parameter" if leaf.shape in shapes else "other")


def test_optax_pairs_the_state_with_trees_like_the_parameters() -> None:
    tx = CHAINS["masked"]
    state = tx.init(tree())
    paired = optax.tree_utils.tree_map_params(
        tx,
        lambda x, path: x if isinstance(x, optax.MaskedNode) else path,
        state,
        gradx.core.trees.map_with_path(lambda path, x: path, tree()),
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    adam, _ = paired[1].inner_state
    assert jax.tree.leaves(adam.mu) == ["backbone/kernel", "head/kernel"]
    assert adam.count is state[1].inner_state[0].count


@pytest.mark.parametrize(
    "make",
    [
        lambda library: library.adam(0.1),
        lambda library: library.sgd(lambda count: 0.1 / (1 + count), 0.9),
        lambda library: library.adamw(0.1, mask=KERNELS["tree"]),
        lambda library: library.chain(library.clip_by_global_norm(1.0), library.lion(0.1)),
        lambda library: library.masked(library.rmsprop(0.1), KERNELS["tree"]),
        lambda library: library.partition(
            {"k": library.adam(0.1), "b": library.trace(0.9)}, LABELS["tree"]
        ),
    ],
)
def test_a_state_that_optax_made_continues(make: Any) -> None:
    """Its classes stay, so that Optax can take the state back."""
    ours, theirs = make(gradx), make(optax)
    params = tree()
    _, state = theirs.update(tree(1), theirs.init(params), params)
    updates, new = ours.update(tree(2), state, params)
    expected, expected_state = theirs.update(tree(2), state, params)
    assert_close(updates, expected, rtol=2e-5)
    assert jax.tree.structure(new) == jax.tree.structure(expected_state)
    # And gradx's own continues what gradx began, equally.
    _, own = ours.update(tree(1), ours.init(params), params)
    assert_close(ours.update(tree(2), own, params)[0], expected, rtol=2e-5)


# ---------------------------------------------------------------- Optax's other names


@pytest.mark.parametrize("mask", [{"backbone": True, "head": False}, False, True])
def test_selective_transform_is_freeze_with_an_optimizer(mask: Any) -> None:
    ours, state = run(gradx.selective_transform(gradx.adam(0.1), freeze_mask=mask))
    theirs, their_state = run(optax.selective_transform(optax.adam(0.1), freeze_mask=mask))
    assert_close(ours, theirs, rtol=1e-5)
    assert paths(state) == paths(their_state)


def test_selective_transform_refuses_what_is_no_optimizer_or_mask() -> None:
    with pytest.raises(ValueError, match="selective_transform: optimizer must be a transf"):
        gradx.selective_transform(None, freeze_mask=True)
    with pytest.raises(ValueError, match=r"selective_transform.*mask must be True or False"):
        gradx.selective_transform(gradx.adam(0.1), freeze_mask=1.0).init(tree())


def test_older_names() -> None:
    assert gradx.multi_transform is gradx.partition
    assert gradx.MultiTransformState is gradx.PartitionState
