"""Updates that keep the parameters in a set."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Transform
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers.sources import Array

__all__ = ["NonNegativeParamsState", "keep_params_nonnegative"]

NonNegativeParamsState = optax.EmptyState


@core.recorded
def keep_params_nonnegative() -> Transform:
    r"""Shortens the updates so that no parameter becomes negative. Place it last in a chain.

    .. math:: u \leftarrow \max(u, -\theta)

    A parameter that is negative already is moved to zero.

    Raises:
      ValueError: `update` is called without the parameters; a complex update, which has no order.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.keep_params_nonnegative())
      >>> p = jnp.array([0.5, 2.0])
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(p), p)
      >>> gradx.apply_updates(p, updates)
      Array([0., 1.], dtype=float32)
    """
    return leafwise(_keep_nonnegative, needs_params=True)


def _keep_nonnegative(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    if jnp.iscomplexobj(g):
        raise ValueError("keep_params_nonnegative: complex parameters have no order.")
    return jnp.where(p + g < 0, -p, g), s
