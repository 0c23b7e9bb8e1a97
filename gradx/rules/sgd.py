"""Gradient descent, with and without momentum: the smallest room, and the one to read first."""

from __future__ import annotations

from typing import Any

from gradx import core
from gradx.combine import chain, identity
from gradx.core import Transform
from gradx.moments import trace
from gradx.scale import descend
from gradx.sources import Hyper

__all__ = ["sgd"]


@core.recorded
def sgd(
    learning_rate: Hyper,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Transform:
    r"""Stochastic gradient descent.

    .. math::
        m &\leftarrow \mu m + g \\
        u &= -\eta\, m \quad\text{or, with nesterov,}\quad -\eta\,(\mu m + g)

    Args:
      learning_rate: \(\eta\) in [0, inf), or another source of a number.
      momentum: \(\mu\) in [0, 1); without it \(m = g\), and there is no state.
      nesterov: look one step ahead; only with momentum.
      accumulator_dtype: the dtype to keep \(m\) in; by default the parameter's, at least float32.

    Raises:
      ValueError: options of momentum are given without it; Optax ignores them.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.sgd(0.1, momentum=0.9)
      >>> params = jnp.array([1.0, -1.0])
      >>> updates, state = tx.update(2 * params, tx.init(params), params)
      >>> gradx.apply_updates(params, updates)
      Array([ 0.8, -0.8], dtype=float32)

    Reference: Sutskever et al., *On the importance of initialization and momentum in deep
    learning*, 2013.
    """
    if momentum is None and (nesterov or accumulator_dtype is not None):
        raise ValueError(f"{core.where()}: nesterov and accumulator_dtype need a momentum.")
    step = identity() if momentum is None else trace(momentum, nesterov, accumulator_dtype)
    return chain(step, descend(learning_rate))
