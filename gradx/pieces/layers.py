"""A factor for each layer, where the layers of a model are stacked along an axis of each leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.meaning import Number
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers.sources import Array, Hyper

__all__ = ["scale_layers"]


@core.recorded
def scale_layers(
    factors: tuple[Annotated[Hyper, Number("(-inf, inf)", "c_i")], ...], axis: int = 0
) -> Transform:
    r"""Multiplies the update of each layer by a factor, where layers are stacked (as for `scan`).

    .. math:: u_i \leftarrow c_i\, u_i \quad \text{for the } i \text{th slice along the axis}

    Use it inside `masked` or `partition` if only a part of the parameters is stacked. Behind an
    optimizer it is a learning rate by layer; a factor that is 0 keeps its layer as it is.

    Args:
      factors: one for each layer, the first layer's first.
      axis: the axis along which the layers are stacked.

    Raises:
      ValueError: there is no factor; a leaf does not have the axis, or has another number of layers
        there.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.scale_layers((0.5, 1.0)))
      >>> g = {"bias": jnp.ones((2, 3))}
      >>> tx.update(g, tx.init(g))[0]["bias"]
      Array([[-0.5, -0.5, -0.5],
             [-1. , -1. , -1. ]], dtype=float32)
    """
    where = core.where()
    if not isinstance(factors, tuple | list) or not factors:
        raise ValueError(
            f"{where}: factors must be a tuple with a number for each layer, got "
            f"{core.show(factors)}."
        )
    if not isinstance(axis, int):
        raise ValueError(f"{where}: axis must be a whole number, got {core.show(axis)}.")
    n = len(factors)

    def facts(leaves: gtree.Flat, extra: Any) -> list[Mapping[str, Any]]:
        for i, x in enumerate(leaves.values):
            shape = np.shape(x) if gtree.is_number(x) else ()
            if gtree.is_number(x) and not (-len(shape) <= axis < len(shape) and shape[axis] == n):
                raise ValueError(
                    f"{where}: there are {n} factors, so each leaf must have {n} layers along axis "
                    f"{axis}; {leaves.paths[i]!r} has the shape {shape}. Use masked(…) to choose "
                    f"the leaves that are stacked."
                )
        return [{}] * len(leaves.values)

    hypers = {f"factor_{i}": factor for i, factor in enumerate(factors)}
    return leafwise(_by_layer, hypers=hypers, flags={"axis": axis}, facts=facts)


def _by_layer(g: Array, s: LeafState, p: Any, h: Numbers) -> tuple[Array, LeafState]:
    factors = [getattr(h, f"factor_{i}") for i in range(g.shape[h.axis])]
    column = jnp.array(factors, g.real.dtype)
    return g * jnp.expand_dims(column, [k for k in range(g.ndim) if k != h.axis % g.ndim]), s
