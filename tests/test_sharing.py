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


def rule(g: Any, slots: Any, p: Any, h: Any) -> Any:
    """With all that travels: a gradient, a momentum, a factor of the matrix's own, a parameter."""
    mu, factor = slots
    mu, factor = 0.5 * mu + g, factor + g @ g.T
    return jnp.matmul(factor, mu, precision="highest") + h.by * p, (mu, factor)


def lifted(share: Any = None) -> Any:
    return gradx.matrixwise(
        rule,
        init=lambda p: (jnp.zeros_like(p, shape=(p.shape[0],) * 2),),
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


# How matrices lie: on which mesh, along which axes, the layers along theirs; what then travels.
WAYS: dict[str, tuple[tuple[int, ...], dict[str, Any], set[str]]] = {
    "rows": ((N,), {"": P("d", None)}, {"all-to-all"}),
    "columns": ((N,), {"": P(None, "d")}, {"all-to-all"}),
    "rows and columns": ((4, 2), {"": P("d", "m")}, {"all-to-all"}),
    "by layers": ((N,), {"layers": P("d", None, None)}, set()),
}


def placed(mesh: jax.sharding.Mesh, specs: dict[str, Any]) -> Any:
    """The leaves that the way is about, where they lie."""

    def at(name: str) -> NamedSharding:
        ndim = TREE[name].ndim
        return NamedSharding(mesh, specs.get(name) or P(*[None] * (ndim - 2), *specs[""]))

    names = TREE if "" in specs else specs
    return {name: jax.device_put(TREE[name], at(name)) for name in names}


@pytest.mark.parametrize("way", WAYS)
@first_of("kind", [AxisType.Auto, AxisType.Explicit])
def test_devices_in_scope_share_and_gather_nothing(kind: AxisType, way: str) -> None:
    shape, specs, travels = WAYS[way]
    mesh, tx = mesh_of(kind, *shape), lifted()
    with jax.enable_x64(True), jax.set_mesh(mesh):
        g = placed(mesh, specs)
        state = tx.init(g)
        compiled = jax.jit(lambda g, s: step(tx, g, s)).lower(g, state).compile()
        made = compiled(g, state)
        for after, before in zip(jax.tree.leaves(made), jax.tree.leaves((g, state)), strict=True):
            assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
    with jax.enable_x64(True):
        alone = {name: jnp.asarray(TREE[name]) for name in g}
        expected = step(lifted(), alone, lifted().init(alone))
    jax.tree.map(lambda a, b: close(np.asarray(a), np.asarray(b), 1e-12), made, expected)
    assert set(program.cost(compiled.as_text()).collectives) == travels
