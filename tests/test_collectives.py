"""What is cut along a mapped axis does as a whole would: norms, means, all with an axis name.

One leaf is cut among eight devices, another one all of them have alike.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import step

import gradx
from gradx import core
from gradx.lift import mapped
from gradx.lowering.varying import vary

N, STEPS = 8, 3


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


PARAMS = {"cut": numbers(0, N, 2), "alike": numbers(1, 3)}
SPECS = {"cut": P("d"), "alike": P()}
EVERYWHERE = P()
CUT = gradx.sharded("d", {"cut": True, "alike": False})

# A batch of examples for each step, and gradients for those who want no loss.
DATA = {
    "grads": {"cut": numbers(2, STEPS, N, 2), "alike": numbers(3, STEPS, 3)},
    "batch": numbers(4, STEPS, 2 * N, 3),
}
DATA_SPECS = {"grads": {"cut": P(None, "d"), "alike": P()}, "batch": P(None, "d")}


# ---------------------------------------------------------------- the ways to run


def mesh(*shape: int, names: Any = ("d",)) -> jax.sharding.Mesh:
    assert jax.device_count() >= N, "conftest.py asks for eight virtual devices"
    return jax.make_mesh(shape or (N,), names, axis_types=(AxisType.Auto,) * len(names))


def by_shard_map(run: Any, out: Any, *given: Any, check_vma: bool) -> Any:
    options = {"mesh": mesh(), "in_specs": (SPECS, DATA_SPECS), "out_specs": out}
    return jax.jit(jax.shard_map(run, **options, check_vma=check_vma))(*given)


def by_pmap(run: Any, out: Any, *given: Any) -> Any:
    """With an axis in front that counts the devices; what they have alike must come out alike."""

    def spread(x: Any, spec: Any) -> Any:
        cut = [axis for axis, name in enumerate(spec) if name == "d"]
        return np.stack(np.split(x, N, *cut) if cut else [x] * N)

    def together(x: Any, spec: Any) -> Any:
        if "d" not in spec:
            np.testing.assert_array_equal(x, np.stack([x[0]] * N))
        return np.concatenate(x) if "d" in spec else x[0]

    made = jax.pmap(run, axis_name="d")(*jax.tree.map(spread, given, (SPECS, DATA_SPECS)))
    return jax.tree.map(together, jax.device_get(made), out)


def by_jit(run: Any, out: Any, *given: Any) -> Any:
    placed = lambda x, spec: jax.device_put(x, NamedSharding(mesh(), spec))
    return jax.jit(run)(*jax.tree.map(placed, given, (SPECS, DATA_SPECS)))


# With what the transformations are told of the axis. Under jit arrays are whole.
WAYS: dict[str, tuple[Callable[..., Any], Any]] = {
    "pmap": (by_pmap, CUT),
    "types": (functools.partial(by_shard_map, check_vma=True), "d"),
    "no types": (functools.partial(by_shard_map, check_vma=False), CUT),
    "jit": (by_jit, None),
}


# ---------------------------------------------------------------- the transformations


def loss(params: Any, batch: Any, reduce: Any = jnp.mean) -> Any:
    """Examples are fitted with what all have alike; the rest each device can do by itself."""
    residuals = batch @ params["alike"] + jnp.sum(params["alike"] ** 3) / 10 - 1
    return reduce(residuals**2) + jnp.sum((params["cut"] - 1) ** 2)


def of_the_loss(params: Any, data: Any, reduce: Any = jnp.mean) -> Any:
    return jax.grad(loss)(params, data["batch"], reduce)


def of_examples(params: Any, data: Any) -> Any:
    """The gradients of single examples, where the examples count."""
    every = jax.vmap(jax.grad(loss), (None, 0))(params, data["batch"][:, None])
    return {"alike": every["alike"], "cut": every["cut"][0]}


@dataclass(frozen=True)
class Row:
    """A transformation, told an axis, and the gradients that it is given."""

    make: Callable[[Any], Any]
    gradients: Callable[[Any, Any], Any] = lambda params, data: data["grads"]


def descending(tx: Any) -> Any:
    return gradx.chain(tx, gradx.scale(-0.1))


def private(tx: Any) -> Any:
    """No leaf may be cut along the axis that the examples are on."""
    return gradx.partition({"cut": gradx.sgd(0.1), "alike": tx}, {"cut": "cut", "alike": "alike"})


def examples_on(axis: Any) -> Any:
    return None if axis is None else "d"


def adversary(axis: Any) -> Any:
    return gradx.chain(gradx.normalize(axis_name=axis), gradx.sgd(0.5))


def clipped_by_history(axis: Any) -> Any:
    """Both clips bind from the second good step on."""
    clips = gradx.zclip(0.01, warmup=1, axis_name=axis), gradx.adagc(0.5, warmup=1, axis_name=axis)
    return gradx.chain(*clips, gradx.sgd(0.1))


def steady(params: Any, data: Any) -> Any:
    """Always one way, so that estimates of the distance grow."""
    return jax.tree.map(jnp.abs, data["grads"])


def broken_once(params: Any, data: Any) -> Any:
    """Not finite in one step, and there only on one device."""
    far = jnp.abs(data["grads"]["cut"]) == np.abs(DATA["grads"]["cut"]).max()
    return {**data["grads"], "cut": jnp.where(far, jnp.nan, data["grads"]["cut"])}


def spike_at_the_end(params: Any, data: Any) -> Any:
    """A hundred times as large in the last step, and there only on one device."""
    far = jnp.abs(data["grads"]["cut"]) == np.abs(DATA["grads"]["cut"][-1]).max()
    factor = jnp.where(far, 100.0, 1.0)
    return {**data["grads"], "cut": factor * data["grads"]["cut"]}


VALUE = gradx.from_call("value")

ROWS = {
    # norms of the whole tree
    "clip_by_global_norm": Row(lambda axis: gradx.clip_by_global_norm(0.5, axis_name=axis)),
    "normalize": Row(lambda axis: gradx.normalize(axis_name=axis)),
    "normalize_by_update_norm": Row(lambda axis: gradx.normalize_by_update_norm(axis_name=axis)),
    "polyak_sgd": Row(lambda axis: gradx.polyak_sgd(axis_name=axis)),
    "momo": Row(lambda axis: gradx.momo(adapt_lower_bound=True, axis_name=axis)),
    "momo_adam": Row(lambda axis: gradx.momo_adam(10.0, lower_bound=2.9, axis_name=axis)),
    "dog": Row(lambda axis: gradx.dog(init_step=("distance", 0.1), axis_name=axis)),
    "dowg": Row(lambda axis: gradx.dowg(init_estim_sq_dist=0.1, axis_name=axis)),
    "dadapt_adamw": Row(lambda axis: gradx.dadapt_adamw(estim_lr0=0.1, axis_name=axis)),
    "prodigy": Row(
        lambda axis: gradx.prodigy(estim_lr0=0.1, estim_lr_coef=9.0, axis_name=axis), steady
    ),
    "mechanize": Row(
        lambda axis: gradx.mechanize(gradx.lamb(1.0, axis_name=axis), s_init=0.1, axis_name=axis)
    ),
    # norms of a leaf
    "scale_by_distance_over_gradients": Row(
        lambda axis: descending(
            gradx.scale_by_distance_over_gradients(0.1, param_dtype=None, axis_name=axis)
        )
    ),
    "scale_by_param_block_norm": Row(lambda axis: gradx.scale_by_param_block_norm(axis_name=axis)),
    "scale_by_param_block_rms": Row(lambda axis: gradx.scale_by_param_block_rms(axis_name=axis)),
    "clip_by_block_rms": Row(lambda axis: gradx.clip_by_block_rms(0.5, axis_name=axis)),
    "lars": Row(lambda axis: gradx.lars(10.0, 0.1, axis_name=axis)),
    "lamb": Row(lambda axis: gradx.lamb(0.1, weight_decay=0.1, axis_name=axis)),
    "fromage": Row(lambda axis: gradx.fromage(0.1, axis_name=axis)),
    "novograd": Row(lambda axis: gradx.novograd(0.1, weight_decay=0.1, axis_name=axis)),
    "correct_by_mars": Row(lambda axis: descending(gradx.correct_by_mars(axis_name=axis))),
    "mars": Row(lambda axis: gradx.mars(0.1, axis_name=axis)),
    # examples on the devices
    "pmean": Row(
        lambda axis: (
            gradx.sgd(0.1) if axis is None else gradx.chain(gradx.pmean(axis), gradx.sgd(0.1))
        ),
        of_the_loss,
    ),
    "psum": Row(
        lambda axis: (
            gradx.sgd(0.01) if axis is None else gradx.chain(gradx.psum(axis), gradx.sgd(0.01))
        ),
        functools.partial(of_the_loss, reduce=jnp.sum),
    ),
    "hutchinson_estimator_diag_hessian": Row(
        lambda axis: descending(gradx.hutchinson_estimator_diag_hessian(axis_name=axis))
    ),
    "asam": Row(
        lambda axis: gradx.asam(
            gradx.sgd(0.1), opaque_mode=True, batch_axis_name=axis, axis_name=axis
        ),
    ),
    "look_sam": Row(
        lambda axis: gradx.look_sam(
            gradx.sgd(0.1),
            adversary(axis),
            period=2,
            opaque_mode=True,
            batch_axis_name=axis,
            axis_name=axis,
        ),
    ),
    "dpsgd": Row(
        lambda axis: private(gradx.dpsgd(0.1, 0.5, 0.1, 0, axis_name=examples_on(axis))),
        of_examples,
    ),
    # what all devices must agree about
    "apply_if_finite": Row(
        lambda axis: gradx.watch(
            gradx.apply_if_finite(gradx.adam(0.1), 5, axis_name=axis), axis_name=axis
        ),
        broken_once,
    ),
    "skip_nonfinite": Row(
        lambda axis: gradx.skip_nonfinite(clipped_by_history(axis), loss=VALUE, axis_name=axis),
        broken_once,
    ),
    "skip_spikes": Row(
        lambda axis: gradx.skip_spikes(
            gradx.sgd(0.1), window=2, restore_after=1, snapshot_every=1, axis_name=axis
        ),
        spike_at_the_end,
    ),
}


def test_every_transformation_that_takes_an_axis_has_a_row(monkeypatch: Any) -> None:
    """Its own, or that of one which hands the axis on to it."""
    told: set[str] = set()
    axes = mapped.axes

    def heard(axis_name: Any, *more: Any) -> Any:
        told.update([] if axis_name is None else core.where().split(" > "))
        return axes(axis_name, *more)

    monkeypatch.setattr(mapped, "axes", heard)
    for row in ROWS.values():
        row.make("d")
    takes = {
        name
        for name, made in core.REGISTRY.items()
        if ":" not in name and any("axis_name" in p for p in inspect.signature(made).parameters)
    }
    assert takes - {"sharded"} == told & takes


def trained(axis: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """The parameters after some steps of every row: all in one program, to compile once."""

    def by_row(row: Row, params: Any, data: Any) -> Any:
        tx = row.make(axis)
        # Where types are tracked, a gradient varies if what it is derived for does.
        names = frozenset({"d"} if axis is not None and mapped.tracked("d") else ())
        parts = lambda p: jax.tree.map(lambda x: vary(x, names), p)

        def one(carry: Any, now: Any) -> Any:
            more = {
                "value": 3.0,
                "obj_fn": lambda p: loss(p, now["batch"]),
                "grad_fn": lambda p, i: of_the_loss(parts(p), now),
            }
            return step(tx, *carry, row.gradients(parts(carry[0]), now), **more), None

        return jax.lax.scan(one, (params, tx.init(params)), data)[0][0]

    return lambda params, data: {name: by_row(row, params, data) for name, row in ROWS.items()}


@functools.cache
def alone() -> Any:
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(trained(None))(PARAMS, DATA))


def gap(actual: Any, expected: Any) -> float:
    """The largest difference, relative to the largest element; NaN if there is one."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    largest = np.max([np.max(np.abs(e)) for _, e in pairs])
    return float(np.max([np.max(np.abs(a - e)) for a, e in pairs]) / largest)


def apart(made: Any) -> dict[str, float]:
    """The rows that are not what one device does, and how far from it."""
    gaps = {name: gap(made[name], expected) for name, expected in alone().items()}
    return {name: found for name, found in gaps.items() if not found <= 1e-12}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.full] * (way == "no types")) for way in WAYS]
)
def test_devices_do_together_what_one_does_alone(way: str) -> None:
    run, axis = WAYS[way]
    with jax.enable_x64(True):
        made = jax.device_get(run(trained(axis), dict.fromkeys(ROWS, SPECS), PARAMS, DATA))
    assert apart(made) == {}


# ---------------------------------------------------------------- which leaves are cut


def in_map(run: Any, *given: Any, check_vma: bool = True, out: Any = EVERYWHERE) -> Any:
    """`run` on one step's parameters (or gradients) and batch, under `shard_map`."""
    specs = (SPECS, P("d"))[: len(given)]
    options = {"mesh": mesh(), "in_specs": specs, "out_specs": out, "check_vma": check_vma}
    return jax.jit(jax.shard_map(run, **options))(*given)


ONES = {"cut": np.ones((N, 4), np.float32), "alike": np.ones(4, np.float32)}
NOW = DATA["batch"][0].astype(np.float32)
P32 = jax.tree.map(np.float32, PARAMS)


def test_what_all_devices_have_alike_counts_once() -> None:
    for said, types in (("d", True), (CUT, True), (gradx.sharded("d"), True), (CUT, False)):
        tx = gradx.clip_by_global_norm(1.0, axis_name=said)

        def clipped(g: Any, tx: Any = tx, said: Any = said) -> Any:
            made, _ = tx.update(g, tx.init(g), g)
            return made, gradx.global_norm(g, axis_name=said)

        made, norm = in_map(clipped, ONES, check_vma=types, out=(SPECS, P()))
        assert norm == 6.0
        np.testing.assert_allclose(gradx.global_norm(made), 1.0, rtol=1e-6)


def test_without_types_a_bare_name_says_that_all_leaves_are_cut() -> None:
    """So that the mask makes a difference, and the law above can fail."""
    norm = lambda g: gradx.global_norm(g, axis_name="d")
    assert in_map(norm, ONES, check_vma=False) == 8.0


def test_monitors_measure_the_whole() -> None:
    norm = functools.partial(gradx.global_norm, axis_name="d")
    tx = gradx.chain(gradx.monitor({"norm": norm}), gradx.snapshot("norm", norm))

    def measured(g: Any) -> Any:
        first, second = tx.update(g, tx.init(g))[1]
        return first.measurements["norm"], second.measurement["norm"]

    assert in_map(measured, ONES) == (6.0, 6.0)


@pytest.mark.parametrize(
    ("leaves", "path"),
    [({"cut": True, "alike": True}, "alike"), (True, "alike"), (lambda tree: False, "cut")],
)
def test_a_mask_must_agree_with_the_types(leaves: Any, path: str) -> None:
    tx = gradx.clip_by_global_norm(1.0, axis_name=gradx.sharded("d", leaves))
    with pytest.raises(ValueError, match=f"clip_by_global_norm: the leaf '{path}'.*axis 'd'"):
        in_map(lambda g: tx.update(g, tx.init(g), g)[0], ONES, out=SPECS)


def test_a_mask_must_fit_the_leaves() -> None:
    tx = gradx.clip_by_global_norm(1.0, axis_name=gradx.sharded("d", {"cut": 1, "alike": False}))
    with pytest.raises(ValueError, match=r"clip_by_global_norm: the mask.*'cut' it is 1"):
        in_map(lambda g: tx.update(g, tx.init(g), g)[0], ONES, out=SPECS, check_vma=False)


def test_a_mask_is_asked_about_the_leaves_that_are_seen() -> None:
    by_path = gradx.sharded("d", gradx.by_path({"cut": True}, default=False))
    inner = gradx.clip_by_global_norm(1.0, axis_name=by_path)
    tx = gradx.masked(inner, {"cut": True, "alike": False})
    made = in_map(lambda g: tx.update(g, tx.init(g))[0], ONES, out=SPECS, check_vma=False)
    np.testing.assert_allclose(gradx.global_norm(made["cut"]), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(made["alike"], 1.0)


@pytest.mark.parametrize("types", [True, False])
def test_each_leaf_is_cut_along_axes_of_its_own(types: bool) -> None:
    specs = {"both": P("a", "b"), "first": P("a"), "none": P()}
    tree = {"both": np.ones((2, 4)), "first": np.ones(2), "none": np.ones(2)}
    first = gradx.sharded("a", {"both": True, "first": True, "none": False})
    second = gradx.sharded("b", gradx.by_path({"both": True}, default=False))

    def norm(tree: Any) -> Any:
        return gradx.global_norm(tree, axis_name=("a", "b") if types else (first, second))

    options = {"mesh": mesh(2, 4, names=("a", "b")), "in_specs": (specs,), "out_specs": P()}
    mapped_norm = jax.shard_map(norm, **options, check_vma=types)
    np.testing.assert_allclose(jax.jit(mapped_norm)(tree), 12**0.5, rtol=1e-6)


def test_leaves_are_added_up_before_devices_are() -> None:
    tree = {"a": ONES["cut"], "b": ONES["cut"], "c": ONES["alike"]}
    specs = {"a": P("d"), "b": P("d"), "c": P()}
    tx = gradx.clip_by_global_norm(1.0, axis_name="d")

    def update(g: Any) -> Any:
        return tx.update(g, tx.init(g))[0]

    mapped_update = jax.shard_map(update, mesh=mesh(), in_specs=(specs,), out_specs=specs)
    assert str(jax.make_jaxpr(mapped_update)(tree)).count("psum") == 1


@pytest.mark.parametrize("wrong", [("d", "d"), (), True, 0.5, len, ("d", None), [["d"]]])
def test_what_is_no_axis_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="clip_by_global_norm: axis_name must be"):
        gradx.clip_by_global_norm(1.0, axis_name=wrong)
    with pytest.raises(ValueError, match="sam: batch_axis_name must be"):
        gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1), opaque_mode=True, batch_axis_name=wrong)


def test_sharded_says_what_it_is() -> None:
    assert repr(gradx.sharded("d", True)) == "sharded('d', leaves=True)"
    tx = gradx.lamb(0.1, axis_name=("a", gradx.sharded("d", gradx.by_path({"w": True}))))
    assert tx == gradx.lamb(0.1, axis_name=("a", gradx.sharded("d", gradx.by_path({"w": True}))))
    assert tx != gradx.lamb(0.1, axis_name=("a", gradx.sharded("d", gradx.by_path({"b": True}))))
    assert len({tx, gradx.from_config(gradx.to_config(tx))}) == 1
    for wrong in (None, gradx.sharded("d"), ("d", gradx.sharded("e"))):
        with pytest.raises(
            ValueError, match="sharded: axis_name must be the name of a mapped axis"
        ):
            gradx.sharded(wrong)


# ---------------------------------------------------------------- replicas


def gradient(reduce: Any = None, cast: bool = False) -> Any:
    """The gradient by types: of the devices' losses, of their mean, or with parameters cast."""

    def of(params: Any, batch: Any) -> Any:
        to_vary = frozenset({"d"} if cast else ())
        here = jax.tree.map(lambda x: vary(x, to_vary), params)
        total = (lambda p: loss(p, batch)) if reduce is None else (lambda p: reduce(loss(p, batch)))
        return jax.grad(total)(here)

    return of


REPLICATED = {"alike": P32["alike"], "cut": np.float32([[0.5, 2.0]])}  # nothing is cut here
MEAN = functools.partial(jax.lax.pmean, axis_name="d")


def replicas(tx: Any, of: Any, *, with_params: bool = True) -> Any:
    def update(params: Any, batch: Any) -> Any:
        given = (params,) if with_params else ()
        return tx.update(of(params, batch), tx.init(params), *given)[0]

    options = {"mesh": mesh(), "in_specs": (P(), P("d")), "out_specs": P()}
    return jax.jit(jax.shard_map(update, **options))(REPLICATED, NOW)


def test_a_mean_of_what_jax_has_summed_is_refused() -> None:
    said = r"at 'alike' neither the gradient nor the parameter varies over the mapped axis 'd'"
    remedy = r"already_reduced=True.*jax.lax.pcast\(params, axis, to=.varying.\)"
    with pytest.raises(ValueError, match=rf"pmean: {said}.*{remedy}"):
        replicas(gradx.chain(gradx.pmean("d"), gradx.sgd(0.1)), gradient())
    with pytest.raises(ValueError, match=rf"psum: {said}.*Leave psum out.*already_reduced=True"):
        replicas(gradx.psum("d"), gradient())
    tx = gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1), opaque_mode=True, batch_axis_name="d")

    def opaque(params: Any, batch: Any) -> Any:
        grads = lambda p, i=0: gradient()(p, batch)
        return tx.update(grads(params), tx.init(params), params, grad_fn=grads)[0]

    options = {"mesh": mesh(), "in_specs": (P(), P("d")), "out_specs": P()}
    with pytest.raises(ValueError, match=rf"sam: {said}.*leave batch_axis_name out"):
        jax.jit(jax.shard_map(opaque, **options))(REPLICATED, NOW)


@pytest.mark.parametrize("factory", [gradx.pmean, gradx.psum])
def test_gradients_are_combined_once(factory: Any) -> None:
    """By the chain, or by the loss and JAX, which is to be said."""
    whole = jax.grad(loss)(REPLICATED, NOW)
    times = {gradx.pmean: 1.0, gradx.psum: float(N)}[factory]
    combined = replicas(factory("d"), gradient(cast=True))
    assert gap(jax.tree.map(lambda x: times * x, whole), combined) < 1e-6
    passed = replicas(factory("d", already_reduced=True), gradient(MEAN))
    assert gap(whole, passed) < 1e-6
    # What varies is combined whatever was said: the two may be in one tree.
    both = replicas(factory("d", already_reduced=True), gradient(cast=True))
    assert gap(combined, both) == 0.0


def test_only_the_parameters_tell_what_a_gradient_belongs_to() -> None:
    with pytest.raises(
        ValueError, match=r"pmean: needs the parameters: call update\(updates, state"
    ):
        replicas(gradx.pmean("d"), gradient(cast=True), with_params=False)
    # Unless a mask does.
    none = gradx.pmean(gradx.sharded("d", False))
    whole = jax.grad(loss)(REPLICATED, NOW)
    assert gap(whole, replicas(none, gradient(cast=True), with_params=False)) < 1e-6


def test_already_reduced_is_yes_or_no() -> None:
    with pytest.raises(ValueError, match="pmean: already_reduced must be True or False, got 'no'"):
        gradx.pmean("d", already_reduced="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pmean: axis_name must name an axis"):
        gradx.pmean(None)
    with pytest.raises(ValueError, match="without them none would be combined"):
        gradx.pmean(gradx.sharded("d"))


@pytest.mark.parametrize("reduce", [lambda x: x, MEAN])
def test_estimates_are_of_the_devices_losses_or_of_their_mean(reduce: Any) -> None:
    tx = gradx.hutchinson_estimator_diag_hessian(axis_name="d")

    def estimate(params: Any, batch: Any) -> Any:
        obj_fn = lambda p: reduce(loss(p, batch))
        return tx.update(params, tx.init(params), params, obj_fn=obj_fn)[0]

    options = {"mesh": mesh(), "in_specs": (P(), P("d")), "out_specs": P()}
    made = jax.jit(jax.shard_map(estimate, **options))(REPLICATED, NOW)
    one = gradx.hutchinson_estimator_diag_hessian()
    state = one.init(REPLICATED)
    alone, _ = one.update(REPLICATED, state, REPLICATED, obj_fn=lambda p: loss(p, NOW))
    assert gap(made, alone) < 1e-5


def test_signs_on_parts_of_a_leaf_are_independent() -> None:
    """With equal ones, elements at the same place in two parts would count for each other."""
    tx = gradx.hutchinson_estimator_diag_hessian(1, axis_name="d")

    def estimate(params: Any) -> Any:
        # The Hessian is 1 everywhere, so an estimate is a sign times the sum of all signs.
        obj_fn = lambda p: jax.lax.psum(jnp.sum(p["cut"]), "d") ** 2 / 2
        return tx.update(params, tx.init(params), params, obj_fn=obj_fn)[0]["cut"]

    made = np.asarray(in_map(estimate, P32, out=P("d")))
    assert len({tuple(np.sign(row)) for row in made}) > 1


def test_examples_must_not_be_added_up_before_they_are_bounded() -> None:
    tx = gradx.differentially_private_aggregate(1.0, 0.0, 0, axis_name="d")
    loss = lambda p, x: (p["alike"][0] - x[0]) ** 2 + 0 * p["alike"][1] + 0 * jnp.sum(p["cut"])

    def update(params: Any, batch: Any, cast: frozenset[Any] = frozenset()) -> Any:
        here = jax.tree.map(lambda x: vary(x, cast), params)
        grads = jax.vmap(jax.grad(loss), (None, 0))(here, batch)
        return tx.update(grads, tx.init(params), params)[0]

    options = {"mesh": mesh(), "in_specs": (P(), P("d")), "out_specs": P()}
    with pytest.raises(ValueError, match=r"private_aggregate: at 'alike'.*has already added up"):
        jax.jit(jax.shard_map(update, **options))(REPLICATED, NOW)
    cast = functools.partial(update, cast=frozenset({"d"}))
    made = jax.jit(jax.shard_map(cast, **options))(REPLICATED, NOW)
    one = gradx.differentially_private_aggregate(1.0, 0.0, 0)
    grads = jax.vmap(jax.grad(loss), (None, 0))(REPLICATED, NOW)
    assert gap(made, one.update(grads, one.init(REPLICATED), REPLICATED)[0]) < 1e-6
    with pytest.raises(ValueError, match="private_aggregate: at 'cut' the parameter varies over"):
        in_map(cast, {"alike": P32["alike"], "cut": P32["cut"]}, NOW)
    with pytest.raises(ValueError, match="no leaf may be cut along it"):
        gradx.differentially_private_aggregate(1.0, 0.0, 0, axis_name=CUT)
