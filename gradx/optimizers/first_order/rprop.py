"""Rprop: step sizes that grow where the gradient keeps its sign, and shrink where it changes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Transform, Updates
from gradx.core.meaning import Number
from gradx.core.ranges import Scalar
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.scaling import scale

__all__ = ["ScaleByRpropState", "rprop", "scale_by_rprop"]


class ScaleByRpropState(NamedTuple):
    """The state of Rprop.

    Attributes:
      step_sizes: the step size of each element, like the parameters.
      prev_updates: the last updates, like the parameters.
    """

    step_sizes: Updates
    prev_updates: Updates


@core.recorded
def scale_by_rprop(
    learning_rate: Annotated[float, Number("(0, inf)")],
    eta_minus: Annotated[Hyper, Number("(0, 1]", r"\eta_-")] = 0.5,
    eta_plus: Annotated[Hyper, Number("[1, inf)", r"\eta_+")] = 1.2,
    min_step_size: Annotated[Hyper, Number("[0, inf)", r"\Delta_\mathrm{min}")] = 1e-6,
    max_step_size: Annotated[Hyper, Number("(0, inf]", r"\Delta_\mathrm{max}")] = 50.0,
) -> Transform:
    r"""Replaces each element of the updates by its sign times a step size of its own.

    .. math::
        \Delta &\leftarrow \mathrm{clip}(\Delta\,\eta_+,\ \Delta_\mathrm{min},\ \Delta_\mathrm{max})
            \text{ if } g_t u_{t-1} > 0, \quad
            \mathrm{clip}(\Delta\,\eta_-,\ \Delta_\mathrm{min},\ \Delta_\mathrm{max})
            \text{ if } g_t u_{t-1} < 0 \\
        u_t &= 0 \text{ if } g_t u_{t-1} < 0, \text{ else } \Delta\,\mathrm{sign}(g_t)

    Where the sign has changed, nothing moves in this step, and the next keeps the step size.

    Args:
      learning_rate: where \(\Delta\) begins.
      eta_minus: what \(\Delta\) is multiplied by where the sign changes.
      eta_plus: what \(\Delta\) is multiplied by where the sign stays.
      min_step_size: the smallest \(\Delta\).
      max_step_size: the largest \(\Delta\).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_rprop(0.1)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (-3.0, -0.01, 5.0, 5.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      ...     print(updates)
      [-0.1]
      [-0.12]
      [0.]
      [0.06]

    Reference: Riedmiller and Braun, *A direct adaptive method for faster backpropagation learning:
    the RPROP algorithm*, 1993. This form is iRprop- of Igel and Hüsken, *Empirical evaluation of
    the improved Rprop learning algorithms*, 2003, and PyTorch's. Deviation: Optax makes each update
    one step late. The two parts of a complex number have a step size each.
    """
    low, high = min_step_size, max_step_size
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        raise ValueError(
            f"{core.where()}: min_step_size must be at most max_step_size, got {low!r} > {high!r}."
        )
    return leafwise(
        _rprop,
        init={
            "step_sizes": partial(_first_sizes, size=learning_rate),
            "prev_updates": jnp.zeros_like,
        },
        state=ScaleByRpropState,
        hypers={
            "eta_minus": eta_minus,
            "eta_plus": eta_plus,
            "min_step_size": min_step_size,
            "max_step_size": max_step_size,
        },
    )


def _first_sizes(p: Array, *, size: Scalar) -> Array:
    both = size + 1j * size if jnp.iscomplexobj(p) else size
    return jnp.full_like(p, both)


def _rprop(g: Array, s: ScaleByRpropState, p: None, h: Numbers) -> tuple[Array, ScaleByRpropState]:
    size, previous = s.step_sizes, s.prev_updates
    if jnp.iscomplexobj(g):
        real = _real(g.real, size.real, previous.real, h)
        imag = _real(g.imag, size.imag, previous.imag, h)
        size, u = (jax.lax.complex(x, y) for x, y in zip(real, imag, strict=True))
    else:
        size, u = _real(g, size, previous, h)
    return u, s._replace(step_sizes=size, prev_updates=u)


def _real(g: Array, size: Array, previous: Array, h: Numbers) -> tuple[Array, Array]:
    sign = jnp.sign(g)
    agreement = sign * jnp.sign(previous)  # a product of small numbers rounds to 0
    factor = jnp.where(agreement > 0, h.eta_plus, h.eta_minus)
    moved = jnp.clip(size * factor, h.min_step_size, h.max_step_size)
    size = jnp.where(agreement == 0, size, moved)
    return size, jnp.where(agreement < 0, 0.0, size * sign)


@core.recorded
def rprop(
    learning_rate: Annotated[float, Number("(0, inf)")],
    eta_minus: Annotated[Hyper, Number("(0, 1]")] = 0.5,
    eta_plus: Annotated[Hyper, Number("[1, inf)")] = 1.2,
    min_step_size: Annotated[Hyper, Number("[0, inf)")] = 1e-6,
    max_step_size: Annotated[Hyper, Number("(0, inf]")] = 50.0,
) -> Transform:
    r"""Rprop: steps from the sign of the gradient alone, for gradients of the whole data set.

    .. math:: u_t = -\Delta\,\mathrm{sign}(g_t), \text{ or } 0 \text{ where the sign has changed}

    The step sizes \(\Delta\) are as in `scale_by_rprop`. With mini-batches, signs are noise.

    Args:
      learning_rate: where \(\Delta\) begins.
      eta_minus: what \(\Delta\) is multiplied by where the sign changes.
      eta_plus: what \(\Delta\) is multiplied by where the sign stays.
      min_step_size: the smallest \(\Delta\).
      max_step_size: the largest \(\Delta\).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.rprop(0.1)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Riedmiller and Braun, *A direct adaptive method for faster backpropagation learning:
    the RPROP algorithm*, 1993; Igel and Hüsken, *Empirical evaluation of the improved Rprop
    learning algorithms*, 2003.
    """
    return chain(
        scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size),
        scale(-1.0),
    )
