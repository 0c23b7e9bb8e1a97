"""Updates that are added up, and passed on together every few steps."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import Count, Transform, Updates
from gradx.lift.averages import zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = ["ApplyEvery", "apply_every"]


class ApplyEvery(NamedTuple):
    """The state of `apply_every`.

    Attributes:
      count: the updates gathered so far, modulo `k`, int32 ().
      grad_acc: their sum, like the parameters.
    """

    count: Count
    grad_acc: Updates


@core.recorded
def apply_every(k: int = 1) -> Transform:
    r"""Adds up the updates of `k` steps, and passes on their sum in the last one.

    .. math::
        a &\leftarrow a + g \quad (a \leftarrow g \text{ in the first of } k \text{ steps}) \\
        u &= a \text{ in the last of } k \text{ steps, else } 0

    Parts before it in a chain change their state in every step, and weight decay after it acts in
    every step. To give an optimizer larger batches, wrap it in `MultiSteps`.

    Args:
      k: how many steps, a whole number in [1, inf).

    Raises:
      ValueError: `k` is not a whole number.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.apply_every(2)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 2.0, 4.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      ...     print(updates)
      [0.]
      [3.]
      [0.]
    """
    return leafwise(
        _gather,
        init={"grad_acc": zeros},
        state=ApplyEvery,
        flags={"k": steps("k", k, 1)},
        per_tree=_place,
        # It starts again every k steps, so it is not a count that the lift keeps.
        scalars={"count": np.int32(0)},
        count="",
    )


def _place(h: Numbers, sums: Sums) -> Decided:
    place = h.count % h.k
    return {"first": place == 0, "last": place == h.k - 1}, {"count": (place + 1) % h.k}


def _gather(g: Array, s: ApplyEvery, p: None, h: Numbers) -> tuple[Array, ApplyEvery]:
    total = g + jnp.where(h.first, 0.0, s.grad_acc)
    return jnp.where(h.last, total, 0.0), s._replace(grad_acc=total)
