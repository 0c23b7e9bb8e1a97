"""Optax's other names for transformations by parameter."""

from __future__ import annotations

from typing import Any

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.partition import PartitionState, freeze, partition
from gradx.combinators.predicated import check_inner
from gradx.core import Transform

__all__ = ["MultiTransformState", "multi_transform", "selective_transform"]


multi_transform = partition
MultiTransformState = PartitionState


@core.recorded
def selective_transform(optimizer: Contract, *, freeze_mask: Any) -> Transform:
    r"""Keeps some leaves from training, and gives the others to an optimizer.

    .. math:: u_i = 0 \text{ where } m_i, \qquad u_i = T(g)_i \text{ elsewhere}

    It is `freeze(freeze_mask, optimizer)`.

    Args:
      optimizer: the transformation of the leaves that train. The frozen ones do not exist for it:
        it has no state for them, and they have no share in its norms.
      freeze_mask: True for the leaves to freeze: a bool for all, a tree of bools or a prefix of it,
        a function that makes one, or `by_path`.

    Returns:
      A transformation with a `PartitionState` of the labels ``train`` and ``freeze``.

    Raises:
      ValueError: `optimizer` is not a transformation; the mask does not fit or is no tree of bools.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> mask = {"backbone": True, "head": False}
      >>> tx = gradx.selective_transform(gradx.sgd(0.5), freeze_mask=mask)
      >>> params = {"backbone": jnp.ones(1), "head": jnp.ones(1)}
      >>> tx.update(params, tx.init(params), params)[0]
      {'backbone': Array([0.], dtype=float32), 'head': Array([-0.5], dtype=float32)}
    """
    check_inner(optimizer, core.where(), "optimizer")
    return freeze(freeze_mask, optimizer)
