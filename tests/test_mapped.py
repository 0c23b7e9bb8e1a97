"""On several devices: pmap, shard_map, and jit with sharded arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from problems import assert_close, assert_same

import gradx

N = 8
P = PartitionSpec


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return mesh_of(AxisType.Auto)


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    assert jax.device_count() >= N, "conftest.py asks for eight virtual devices"
    return jax.make_mesh((N,), ("d",), axis_types=(kind,))


def numbers(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# A kernel that can be cut in eight, a bias that cannot.
PARAMS = {"kernel": numbers(0, 16, 4), "bias": numbers(1, 4)}
GRADS = [{"kernel": numbers(2 + i, 16, 4), "bias": numbers(5 + i, 4)} for i in range(2)]
SPECS = {"kernel": P("d", None), "bias": P()}


def loss(params: Any, batch: Any) -> Any:
    x, y = batch
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)


# ---------------------------------------------------------------- replicas


def replicated_training(tx: Any, batches: Any) -> Any:
    """The parameters of all replicas after some steps, each with its part of every batch."""

    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return gradx.apply_updates(params, updates), state

    copies = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * N), tree)
    params, state = copies(PARAMS), copies(tx.init(PARAMS))
    mapped = jax.pmap(step, axis_name="batch")
    for x, y in batches:
        params, state = mapped(params, state, (x.reshape(N, -1, 16), y.reshape(N, -1, 4)))
    return params, state


BATCHES = [(numbers(20 + i, 16, 16), numbers(30 + i, 16, 4)) for i in range(3)]


def test_pmean_keeps_replicas_identical_and_trains_on_the_whole_batch() -> None:
    rest = gradx.chain(gradx.clip_by_global_norm(0.5), gradx.adam(0.1))
    tx = gradx.chain(gradx.pmean("batch"), rest)
    params, (nothing, state) = replicated_training(tx, BATCHES)
    for leaf in jax.tree.leaves((params, state)):
        assert_same(leaf, jnp.stack([leaf[0]] * N))
    assert nothing == optax.EmptyState()

    alone, alone_state = PARAMS, rest.init(PARAMS)
    for batch in BATCHES:
        updates, alone_state = rest.update(jax.grad(loss)(alone, batch), alone_state, alone)
        alone = gradx.apply_updates(alone, updates)
    first = jax.tree.map(lambda x: x[0], (params, state))
    assert_close(first, (alone, alone_state), rtol=1e-5)


def test_without_pmean_replicas_drift_apart() -> None:
    """So the test above can fail."""
    params, _ = replicated_training(gradx.adam(0.1), BATCHES)
    assert not np.array_equal(params["kernel"][0], params["kernel"][1])


def test_pmean_over_several_axes() -> None:
    tx = gradx.chain(gradx.pmean(("a", "b")), gradx.scale(2.0))
    g = numbers(0, 2, 4, 3)
    update = jax.vmap(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="b"), axis_name="a")
    assert_close(update(g), jnp.broadcast_to(2 * g.mean((0, 1)), g.shape), rtol=1e-6)


@pytest.mark.parametrize("jit", [True, False])
def test_pmean_outside_a_mapping_says_what_is_missing(jit: bool) -> None:
    tx = gradx.chain(gradx.pmean("batch"), gradx.sgd(0.1))
    update = jax.jit(tx.update) if jit else tx.update
    with pytest.raises(
        ValueError, match=r"pmean: there is no mapped axis 'batch'.*axis_name='batch'"
    ):
        update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="no mapped axis 'batch'"):
        jax.vmap(lambda g: tx.update(g, tx.init(g)), axis_name="other")(jnp.ones((2, 3)))


# ---------------------------------------------------------------- shards of one tree


def clipped_by_shard(mesh: Any, tx: Any) -> Any:
    """The update of each shard on its own, put together."""

    def update(g: Any) -> Any:
        return tx.update(g, tx.init(g), g)[0]

    specs = {"kernel": P("d", None)}
    mapped = jax.shard_map(update, mesh=mesh, in_specs=(specs,), out_specs=specs)
    return jax.jit(mapped)({"kernel": GRADS[0]["kernel"]})


@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_a_global_norm_over_the_axis_is_that_of_the_whole(mesh: Any, bound: float) -> None:
    kernel = {"kernel": GRADS[0]["kernel"]}
    norm = float(jnp.linalg.norm(kernel["kernel"]))
    whole = jax.tree.map(lambda x: x * min(1.0, bound / norm), kernel)
    for tx in (
        gradx.clip_by_global_norm(bound, axis_name="d"),
        gradx.clip_by_global_norm(gradx.tunable(bound), axis_name=("d",)),
        gradx.chain(gradx.scale(1.0), gradx.clip_by_global_norm(bound, axis_name="d")),
        gradx.masked(gradx.clip_by_global_norm(bound, axis_name="d"), True),
    ):
        assert_close(clipped_by_shard(mesh, tx), whole, rtol=1e-6)


def test_without_the_axis_each_shard_is_clipped_by_its_own_norm(mesh: Any) -> None:
    clipped = clipped_by_shard(mesh, gradx.clip_by_global_norm(0.5))["kernel"]
    shards = np.asarray(clipped).reshape(N, -1)
    np.testing.assert_allclose(np.linalg.norm(shards, axis=1), 0.5, rtol=1e-5)
    assert np.linalg.norm(clipped) > 1.0  # the whole is not within the bound


def test_global_norm_over_an_axis(mesh: Any) -> None:
    def norms(g: Any) -> Any:
        return gradx.global_norm(g, axis_name="d")[None], gradx.global_norm(g)[None]

    mapped = jax.shard_map(norms, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    of_whole, of_shards = mapped(GRADS[0]["kernel"])
    expected = jnp.linalg.norm(GRADS[0]["kernel"])
    np.testing.assert_allclose(of_whole, [expected] * N, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(of_shards**2), expected**2, rtol=1e-6)
    assert np.max(of_shards) < expected


# ---------------------------------------------------------------- jit with sharded arrays


TRANSFORMS = {
    "adam": gradx.adam(0.1),
    "chain": gradx.chain(
        gradx.clip_by_global_norm(0.5), gradx.adamw(0.1, weight_decay=0.1, mask=gradx.weights_only)
    ),
    "freeze": gradx.freeze(gradx.by_path({"bias": True}, default=False), gradx.lion(0.1)),
    "partition": gradx.partition(
        {"k": gradx.sgd(gradx.tunable(0.1), 0.9), "b": gradx.rmsprop(0.1)},
        gradx.by_path({"kernel": "k"}, default="b"),
    ),
    "optax": gradx.chain(optax.scale_by_adam(), gradx.scale(-0.1)),
}

every_transform = pytest.mark.parametrize("tx", TRANSFORMS.values(), ids=TRANSFORMS)


def placed(mesh: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, SPECS)


def assert_like_parameters(mesh: Any, tree: Any) -> int:
    """Whatever has a parameter's shape has its sharding; returns how many there are."""
    expected = {(16, 4): P("d", None), (4,): P()}
    found = [x for x in jax.tree.leaves(tree) if x.shape in expected]
    for x in found:
        wanted = NamedSharding(mesh, expected[x.shape])
        assert x.sharding.is_equivalent_to(wanted, x.ndim), (x.shape, x.sharding)
    return len(found)


# With automatic axes a jitted `init`, Optax's too, makes zeros that lie on one device, since JAX
# gives constants no sharding: jit it with explicit axes, or with `out_shardings`, or not at all.
@every_transform
@pytest.mark.parametrize(
    ("kind", "jit_init"),
    [(AxisType.Auto, False), (AxisType.Explicit, False), (AxisType.Explicit, True)],
)
@pytest.mark.full
def test_the_state_is_sharded_like_the_parameters(tx: Any, kind: AxisType, jit_init: bool) -> None:
    """From `init` on, and through jitted updates, which compute what one device does."""

    @jax.jit
    def step(params: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, params)
        return gradx.apply_updates(params, updates), state

    alone, alone_state = PARAMS, tx.init(PARAMS)
    for g in GRADS:
        alone, alone_state = step(alone, alone_state, g)

    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = placed(mesh, PARAMS)
        state = jax.jit(tx.init)(params) if jit_init else tx.init(params)
        kept = assert_like_parameters(mesh, state)
        assert kept > 0
        for g in GRADS:
            params, state = step(params, state, placed(mesh, g))
            assert assert_like_parameters(mesh, state) == kept
            assert assert_like_parameters(mesh, params) == 2
    assert_close(params, alone, rtol=1e-6)
    assert_close(state, alone_state, rtol=1e-6)


@every_transform
def test_unjitted_updates_keep_the_sharding_too(tx: Any) -> None:
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = placed(mesh, PARAMS)
        state = tx.init(params)
        updates, new = tx.update(placed(mesh, GRADS[0]), state, params)
    assert assert_like_parameters(mesh, updates) == 2
    assert assert_like_parameters(mesh, new) == assert_like_parameters(mesh, state)


def test_clipping_sharded_gradients_needs_no_axis_name(mesh: Any) -> None:
    """Under jit arrays are whole, however they lie on the devices."""
    tx = gradx.clip_by_global_norm(0.5)
    update = jax.jit(lambda g: tx.update(g, tx.init(g))[0])
    clipped = update(placed(mesh, GRADS[0]))
    assert assert_like_parameters(mesh, clipped) == 2
    assert_close(clipped, update(GRADS[0]), rtol=1e-6)
    np.testing.assert_allclose(gradx.global_norm(clipped), 0.5, rtol=1e-6)
