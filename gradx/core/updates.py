"""What a step needs beside the transformation: adding updates, slow copies, counting."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradx.core import Params, Updates
from gradx.core import trees as gtree
from gradx.core.calls import checked

__all__ = [
    "apply_updates",
    "incremental_update",
    "periodic_update",
    "safe_increment",
    "safe_int32_increment",
]


@checked
def apply_updates(params: Params, updates: Updates) -> Params:
    r"""Adds the updates to the parameters, in the parameters' dtypes.

    .. math:: \theta \leftarrow \theta + u

    Args:
      params: a tree of arrays; a leaf that is no number (`None`, a random key) stays as it is.
      updates: a tree of the same structure and shapes; a leaf that is no number (`None`, or the
        `float0` gradient of an integer) leaves its parameter as it is. Additions are done in the
        wider of the two dtypes.

    Returns:
      The new parameters, each with the dtype of the old one. With a floating-point update, a
      parameter that is a Python number counts as a float: 3 is 3.0.

    Raises:
      ValueError: the trees or two shapes do not match; the message names the path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.apply_updates({"w": jnp.ones(2)}, {"w": jnp.full(2, -0.5)})
      {'w': Array([0.5, 0.5], dtype=float32)}

    Donate the parameters and the state to the jitted step, and return them in the order in which
    it takes them, `step(params, state, …) -> (params, state)`: then they are updated in place.
    """
    leaves = gtree.flatten(params)
    others = gtree.flatten_like(leaves, updates, "the updates", "apply_updates", "the parameters")
    new = []
    for i, (p, u) in enumerate(zip(leaves.values, others, strict=True)):
        if not (gtree.is_number(p) and gtree.is_number(u)):
            new.append(p)
            continue
        if jnp.shape(p) != jnp.shape(u):
            raise ValueError(
                f"apply_updates: at {leaves.paths[i]!r} the parameter has shape {jnp.shape(p)} "
                f"and the update {jnp.shape(u)}."
            )
        new.append(_add(*map(gtree.as_number if gtree.is_inexact(u) else jnp.asarray, (p, u))))
    return leaves.unflatten(new)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _add(p: jax.Array, u: jax.Array) -> jax.Array:
    if p.dtype == u.dtype:
        return p + u
    floating = gtree.is_inexact(p) or gtree.is_inexact(u)
    dtype = gtree.wide(p.dtype, u.dtype) if floating else p.dtype
    return (p.astype(dtype) + u.astype(dtype)).astype(p.dtype)


@checked
def incremental_update(new_tensors: Params, old_tensors: Params, step_size: Any) -> Params:
    r"""One step of an average of parameters: Polyak averaging, a target network.

    .. math:: \bar\theta \leftarrow \alpha\, \theta + (1 - \alpha)\, \bar\theta

    Args:
      new_tensors: \(\theta\), a tree of arrays; where a leaf is `None`, the old one stays.
      old_tensors: \(\bar\theta\), a tree of the same structure and shapes.
      step_size: \(\alpha\) in [0, 1], a number or a scalar array.

    Returns:
      The new average. Each leaf has the dtype of the old one, and is calculated in float32 or
      wider. Leaves that cannot be averaged (counts, bools, random keys) are those of the new tree.

    Raises:
      ValueError: the trees or two shapes do not match; a step size out of range.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.incremental_update(jnp.array([1.0]), jnp.array([0.0]), step_size=0.25)
      Array([0.25], dtype=float32)

    Reference: Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, 1992.
    A half-precision average stops short of its target; keep it in float32.
    """
    if isinstance(step_size, int | float) and not 0 <= step_size <= 1:
        raise ValueError(f"incremental_update: step_size must be in [0, 1], got {step_size!r}.")
    flat, olds = _pairs(new_tensors, old_tensors, "incremental_update")
    mixed = [
        old if new is None else _mix(new, old, step_size)
        for new, old in zip(flat.values, olds, strict=True)
    ]
    return flat.unflatten(mixed)


@jax.jit
def _mix(new: jax.Array, old: jax.Array, step_size: jax.Array) -> jax.Array:
    if not jnp.issubdtype(old.dtype, jnp.inexact):
        return new
    kind = gtree.wide(old.dtype, new.dtype)
    step = jnp.asarray(step_size, jnp.finfo(kind).dtype)
    return (step * new.astype(kind) + (1 - step) * old.astype(kind)).astype(old.dtype)


@checked
def periodic_update(
    new_tensors: Params, old_tensors: Params, steps: Any, update_period: Any
) -> Params:
    r"""A copy of parameters that is renewed every k steps, such as a target network.

    .. math:: \bar\theta \leftarrow \theta \text{ where } k \mid t, \qquad
              \bar\theta \text{ elsewhere}

    Args:
      new_tensors: \(\theta\), a tree of arrays; where a leaf is `None`, the old one stays.
      old_tensors: \(\bar\theta\), a tree of the same structure and shapes.
      steps: \(t\), the steps so far, an integer or an integer scalar.
      update_period: \(k \ge 1\), likewise.

    Returns:
      One of the two trees, in the dtypes of the old one.

    Raises:
      ValueError: the trees or two shapes do not match; a period that is less than 1.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> for steps in (1, 2):
      ...     print(gradx.periodic_update(jnp.ones(1), jnp.zeros(1), steps, update_period=2))
      [0.]
      [1.]

    Reference: Mnih et al., *Playing Atari with deep reinforcement learning*,
    https://arxiv.org/abs/1312.5602.
    """
    if isinstance(update_period, int | float) and update_period < 1:
        raise ValueError(
            f"periodic_update: update_period must be at least 1, got {update_period!r}."
        )
    flat, olds = _pairs(new_tensors, old_tensors, "periodic_update")
    news = [
        old if new is None else jnp.asarray(new, jnp.result_type(old))
        for new, old in zip(flat.values, olds, strict=True)
    ]
    due = jnp.mod(steps, update_period) == 0
    # A real conditional, which reads the new ones only if they are due.
    return flat.unflatten(jax.lax.cond(due, lambda: news, lambda: olds))


def _pairs(new: Params, old: Params, where: str) -> tuple[gtree.Flat, list[Any]]:
    flat = gtree.flatten(new)
    olds = gtree.flatten_like(flat, old, "old_tensors", where, "new_tensors")
    for i, (n, o) in enumerate(zip(flat.values, olds, strict=True)):
        if n is not None and (o is None or jnp.shape(n) != jnp.shape(o)):
            raise ValueError(
                f"{where}: at {flat.paths[i]!r} the new tensor has shape {jnp.shape(n)}, the old "
                f"one {'is None' if o is None else f'has shape {jnp.shape(o)}'}."
            )
    return flat, olds


def safe_increment(count: jax.Array) -> jax.Array:
    """`count + 1`, staying at the dtype's maximum instead of wrapping around.

    Args:
      count: an integer or float array of any shape, usually an int32 scalar.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.safe_increment(jnp.asarray(2**31 - 1, jnp.int32))
      Array(2147483647, dtype=int32)
    """
    count = jnp.asarray(count)
    info = jnp.iinfo if jnp.issubdtype(count.dtype, jnp.integer) else jnp.finfo
    top = jnp.asarray(info(count.dtype).max, count.dtype)
    return jnp.where(count < top, count + jnp.ones((), count.dtype), top)


safe_int32_increment = safe_increment  # Optax's older name of it
