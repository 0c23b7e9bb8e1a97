"""Which gradients an accumulation leaves out: functions for `MultiSteps`."""

from __future__ import annotations

from gradx import core
from gradx.combinators.predicated import count_not_finite
from gradx.core import Params, Updates
from gradx.core import trees as gtree
from gradx.numbers.sources import Array

__all__ = ["skip_large_updates", "skip_not_finite"]


@core.registered
def skip_not_finite(
    updates: Updates, gradient_step: Array, params: Params | None
) -> tuple[Array, dict[str, Array]]:
    """Leaves out gradients with an infinity or a NaN; for `MultiSteps(should_skip_update_fn=…)`.

    Args:
      updates: a tree of arrays.
      gradient_step: not used.
      params: not used.

    Returns:
      Whether to skip, bool (), and a dictionary of that (``should_skip``) and of the number of
      elements that are not finite (``num_not_finite``, int32 ()).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> skip, found = gradx.skip_not_finite(jnp.array([1.0, jnp.nan]), 0, None)
      >>> bool(skip), int(found["num_not_finite"])
      (True, 1)
    """
    bad = count_not_finite(updates)
    return bad > 0, {"should_skip": bad > 0, "num_not_finite": bad}


@core.registered
def skip_large_updates(
    updates: Updates, gradient_step: Array, params: Params | None, max_squared_norm: float
) -> tuple[Array, dict[str, Array]]:
    """Leaves out gradients of a large norm; for `MultiSteps(should_skip_update_fn=…)`.

    Give the bound with `functools.partial(skip_large_updates, max_squared_norm=…)`. A NaN counts as
    large.

    Args:
      updates: a tree of arrays.
      gradient_step: not used.
      params: not used.
      max_squared_norm: the largest squared norm of the whole tree that is not skipped.

    Returns:
      Whether to skip, bool (), and a dictionary of that (``should_skip``) and of the squared norm
      (``norm_squared``).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> skip, found = gradx.skip_large_updates(jnp.array([3.0, 4.0]), 0, None, 20.0)
      >>> bool(skip), float(found["norm_squared"])
      (True, 25.0)
    """
    squared = gtree.sum_of_squares(updates)
    skip = ~(squared < max_squared_norm)
    return skip, {"should_skip": skip, "norm_squared": squared}
