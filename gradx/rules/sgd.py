"""Gradient descent, with momentum or noise: the shortest example of an optimizer."""

from __future__ import annotations

from typing import Any

from gradx import core
from gradx.combine import chain, identity
from gradx.core import Transform
from gradx.gradients import add_noise
from gradx.moments import trace
from gradx.scale import descend
from gradx.sources import Array, Hyper

__all__ = ["noisy_sgd", "sgd"]


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


@core.recorded
def noisy_sgd(
    learning_rate: Hyper,
    eta: float = 0.01,
    gamma: float = 0.55,
    key: Array | int | None = None,
    *,
    seed: int | None = None,
) -> Transform:
    r"""Gradient descent with Gaussian noise that fades.

    .. math:: u_t = -\alpha_t \left(g_t + \mathcal N(0, \eta / t^\gamma)\right),
              \qquad t = 1, 2, \ldots

    Args:
      learning_rate: \(\alpha\) in [0, inf).
      eta: \(\eta\) in [0, inf), the variance at the first update.
      gamma: \(\gamma\) in [0, inf), how fast it falls.
      key: a random key, or the seed of one.
      seed: Optax's former name for `key`, for an integer.

    Raises:
      ValueError: neither or both of `key` and `seed` are given. (Optax takes key 0 for neither.)

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.noisy_sgd(0.1, key=0)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
      >>> bool(jnp.all(jnp.abs(updates + 0.1) < 0.05))
      True

    Reference: Neelakantan et al., *Adding gradient noise improves learning for very deep
    networks*, https://arxiv.org/abs/1511.06807.
    """
    return chain(add_noise(eta, gamma, key, seed=seed), descend(learning_rate))
