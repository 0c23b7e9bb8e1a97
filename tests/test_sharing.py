"""Matrix rules under a mesh: devices share the matrices without being told, and gather none."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_of
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from matrix_runs import close, normal

import gradx
from benchmarks.compiled import program

N = 8
TREE = {
    "up": normal(8, 16),
    "few": normal(3, 8, 16, seed=1),
    "down": normal(16, 8, seed=2),  # seen from its long side it lies in another way
    "layers": normal(N, 8, 16, seed=3),
}


class State(NamedTuple):
    mu: Any
    factor: Any


def rule(g: Any, s: Any, p: Any, h: Any) -> Any:
    """With all that travels: a gradient, a momentum, a factor of the matrix's own, a parameter."""
    mu, factor = 0.5 * s.mu + g, s.factor + g @ g.T
    u = jnp.matmul(factor, mu, precision="highest") + h.by * p
    return u, s._replace(mu=mu, factor=factor)


def lifted(share: Any = None) -> Any:
    return gradx.matrixwise(
        rule,
        init={"factor": lambda p: jnp.zeros_like(p, shape=(p.shape[0],) * 2)},
        state=State,
        like_leaf={"mu": None},
        hypers={"by": gradx.tunable(0.1)},
        needs_params=True,
        axes=gradx.MatrixAxes(-2, -1),
        either_way=True,
        share=share,
    )


def step(tx: Any, g: Any, state: Any) -> Any:
    return tx.update(g, state, g)


def mesh_of(kind: AxisType, *shape: int) -> jax.sharding.Mesh:
    names = ("d", "m")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


class Way(NamedTuple):
    """How matrices lie, and what is known of the program."""

    mesh: tuple[int, ...]
    specs: dict[str, Any]  # of single leaves, or of the last two axes of all
    travels: set[str]
    told: bool = False  # what is whole along an axis is only kept so where the program is told


WAYS = {
    "rows": Way((N,), {"": P("d", None)}, {"all-to-all"}),
    "columns": Way((N,), {"": P(None, "d")}, {"all-to-all"}),
    "rows and columns": Way((4, 2), {"": P("d", "m")}, {"all-to-all"}),
    "rows, whole along an axis": Way(
        (2, 4), {"": P("m", None)}, {"all-to-all", "all-gather"}, told=True
    ),
    "by layers": Way((N,), {"layers": P("d", None, None)}, set()),
}


def placed(mesh: jax.sharding.Mesh, specs: dict[str, Any]) -> Any:
    """The leaves that the way is about, where they lie."""

    def at(name: str) -> NamedSharding:
        ndim = TREE[name].ndim
        return NamedSharding(mesh, specs.get(name) or P(*[None] * (ndim - 2), *specs[""]))

    names = TREE if "" in specs else specs
    return {name: jax.device_put(TREE[name], at(name)) for name in names}


@first_of("way", list(WAYS.values()), ids=list(WAYS))
@first_of("kind", [AxisType.Auto, AxisType.Explicit])
def test_devices_in_scope_share_and_gather_nothing(kind: AxisType, way: Way) -> None:
    mesh, tx = mesh_of(kind, *way.mesh), lifted()
    with jax.enable_x64(True), jax.set_mesh(mesh):
        g = placed(mesh, way.specs)
        state = tx.init(g)
        places = jax.tree.map(lambda x: x.sharding, (g, state)) if way.told else None
        jitted = jax.jit(lambda g, s: step(tx, g, s), out_shardings=places)
        compiled = jitted.lower(g, state).compile()
        made = compiled(g, state)
        for after, before in zip(jax.tree.leaves(made), jax.tree.leaves((g, state)), strict=True):
            assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
    with jax.enable_x64(True):
        alone = {name: jnp.asarray(TREE[name]) for name in g}
        expected = step(lifted(), alone, lifted().init(alone))
    jax.tree.map(lambda a, b: close(np.asarray(a), np.asarray(b), 1e-12), made, expected)
    assert set(program.cost(compiled.as_text()).collectives) == way.travels


def test_axes_of_both_kinds() -> None:
    kinds = (AxisType.Auto, AxisType.Explicit)
    mesh, g = jax.make_mesh((4, 2), ("d", "m"), axis_types=kinds), {"w": jnp.float32(TREE["up"])}
    tx = lifted()
    alone = step(tx, g, tx.init(g))
    with jax.set_mesh(mesh):
        g = jax.device_put(g, NamedSharding(mesh, P(None, "m")))
        made = jax.jit(lambda g: step(tx, g, tx.init(g)))(g)
    jax.tree.map(lambda a, b: close(np.asarray(a), np.asarray(b), 1e-6), made, alone)


@pytest.mark.full
def test_decompositions_are_shared_on_tpus_too() -> None:
    """They are loops there, written in JAX, which has refused them where types are checked."""
    tx = gradx.scale_by_soap()
    with jax.set_mesh(mesh_of(AxisType.Auto, N)):
        g = {"w": jnp.ones((2, 300))}
        traced = jax.jit(tx.update).trace(g, tx.init(g))
        assert "shard" in traced.lower(lowering_platforms=("tpu",)).as_text()


def shares(share: Any = None, specs: dict[str, Any] | None = None) -> bool:
    """Whether the program of a step, for shapes that lie so on the mesh in scope, shares."""
    mesh = jax.sharding.get_abstract_mesh()
    g: Any = {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32)}
    if specs is not None:
        g["w"] = jax.ShapeDtypeStruct(
            (8, 16), jnp.float32, sharding=NamedSharding(mesh, specs["w"])
        )
    tx = lifted(share)
    state = jax.eval_shape(tx.init, g)
    return "shard_map" in str(jax.make_jaxpr(lambda g, s: step(tx, g, s))(g, state))


def test_nothing_changes_where_nothing_is_to_share() -> None:
    """Without a mesh, on one device, for nobody, or where types say that all is whole."""
    assert not shares()
    with jax.set_mesh(jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))):
        assert not shares()
    with jax.set_mesh(mesh_of(AxisType.Auto, N)):
        assert shares()
        assert not shares(False)
    with jax.set_mesh(mesh_of(AxisType.Explicit, N)):
        assert not shares(specs={"w": P(None, None)})
        assert shares(specs={"w": P("d", None)})


@pytest.mark.parametrize("make", [gradx.scale_by_adamuon, gradx.scale_by_normuon])
def test_only_products_are_shared(make: Any) -> None:
    """Not the scales after them, for which a matrix would travel a second time."""
    tx, g = make(), {"w": jnp.ones((8, 16))}
    with jax.set_mesh(mesh_of(AxisType.Auto, N)):
        program = str(jax.make_jaxpr(tx.update)(g, tx.init(g)))
    assert program.count("shard_map[") == 1


def test_inside_shard_map_each_device_has_its_own_matrices() -> None:
    with jax.set_mesh(mesh_of(AxisType.Auto, N)):
        asked: list[bool] = []

        def one(x: Any) -> Any:
            asked.append(shares())
            return x

        jax.eval_shape(jax.shard_map(one, in_specs=P("d"), out_specs=P("d")), jnp.ones(N))
    assert asked == [False]


@pytest.mark.full
def test_devices_have_equal_parts_of_what_lies_in_different_ways() -> None:
    """Fourteen matrices, half of them seen from their other side: two for each of eight devices."""
    axes = gradx.MatrixAxes(-2, -1)
    tx = gradx.scale_by_muon(ns_steps=2, weight_dimension_numbers=axes)
    g = {"up": jnp.ones((7, 32, 48)), "down": jnp.ones((7, 48, 32))}
    alone = jax.jit(tx.update).lower(g, tx.init(g)).compile().cost_analysis()
    mesh = mesh_of(AxisType.Auto, N)
    with jax.set_mesh(mesh):
        g = jax.device_put(g, NamedSharding(mesh, P(None, "d", None)))
        shared = jax.jit(tx.update).lower(g, tx.init(g)).compile()
    assert set(program.cost(shared.as_text()).collectives) == {"all-to-all"}
    assert shared.cost_analysis()["flops"] < 1.1 * 2 / 14 * alone["flops"]


def scaled(g: Any, s: Any, p: Any, h: Any) -> Any:
    return h.by * g / jnp.linalg.norm(g), s


def test_a_number_has_its_derivative_where_devices_are_left_over() -> None:
    """What they work on has one, too, which zeros had not."""
    tx, g = gradx.matrixwise(scaled, hypers={"by": gradx.from_call("by")}), TREE["up"]

    def total(by: Any) -> Any:
        return jnp.sum(tx.update(g, tx.init(g), by=by)[0])

    with jax.set_mesh(mesh_of(AxisType.Auto, N)):
        made = jax.jit(jax.grad(total))(2.0)
    close(np.asarray(made), np.sum(g) / np.linalg.norm(g), 1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 4), "'d' of 8 devices.*axes {'d': 2, 'm': 4}"), ((1,), "'d' of 8 .*axes {'d': 1}")],
)
def test_devices_that_are_not_in_scope_cannot_share(shape: tuple[int, ...], message: str) -> None:
    share = gradx.Share(mesh_of(AxisType.Auto, N), "d")
    with (
        jax.set_mesh(mesh_of(AxisType.Auto, *shape)),
        pytest.raises(ValueError, match=f"share has the axis {message}"),
    ):
        shares(share)


def test_an_axis_that_is_mapped_cannot_share() -> None:
    mesh = mesh_of(AxisType.Auto, N)

    def one(x: Any) -> Any:
        shares(gradx.Share(mesh, "d"))
        return x

    with pytest.raises(ValueError, match="share has the axis 'd', which shard_map"):
        jax.eval_shape(
            jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P("d")), jnp.ones(N)
        )


@first_of("make", [lambda: gradx.scale_by_muon(ns_steps=1), gradx.scale_by_soap])
def test_explicit_axes_need_no_mesh_in_scope(make: Any) -> None:
    """The types of arrays say which mesh it is."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    p = {"mlp": jax.device_put(jnp.eye(8, 4), place)}
    tx = make()
    updates, state = tx.update(p, tx.init(p), p)
    assert jax.typeof(updates["mlp"]) == jax.typeof(p["mlp"])
    jax.jit(tx.update)(p, state, p)
