"""Optimism: steps along the gradient that is expected next, for games and saddle points."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Transform, Updates
from gradx.core.calls import warn
from gradx.core.meaning import Number
from gradx.lift.averages import zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.lowering.order import in_place
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adam import scale_by_adam
from gradx.pieces.scaling import descend, scale

__all__ = [
    "ScaleByOptimisticGradientState",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "scale_by_optimistic_gradient",
]


class ScaleByOptimisticGradientState(NamedTuple):
    """The state of optimistic gradients.

    Attributes:
      is_initial_step: whether no update has been made yet, bool ().
      previous_gradient: the updates given in the last step, like the parameters.
    """

    is_initial_step: Array
    previous_gradient: Updates


@core.recorded
def scale_by_optimistic_gradient(
    alpha: Hyper = 1.0, beta: Annotated[Hyper, Number("[0, inf)")] = 1.0
) -> Transform:
    r"""Adds to the updates their change since the last step, to look one step ahead.

    .. math:: u_t = \alpha g_t + \beta (g_t - g_{t-1}), \qquad g_{-1} = g_0

    Args:
      alpha: the weight of the updates.
      beta: the weight of their change.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_optimistic_gradient()
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 3.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates
      Array([5.], dtype=float32)

    Reference: Mokhtari et al., *A unified analysis of extra-gradient and optimistic gradient
    methods for saddle point problems*, https://arxiv.org/abs/1901.08511.
    """
    return leafwise(
        _optimistic,
        init={"previous_gradient": zeros},
        state=ScaleByOptimisticGradientState,
        hypers={"alpha": alpha, "beta": beta},
        per_tree=_no_longer_first,
        whole_tree=(),
        scalars={"is_initial_step": True},
    )


def _no_longer_first(h: Numbers, sums: Sums) -> Decided:
    return {}, {"is_initial_step": False}


def _optimistic(
    g: Array, s: ScaleByOptimisticGradientState, p: None, h: Numbers
) -> tuple[Array, ScaleByOptimisticGradientState]:
    previous = jnp.where(h.is_initial_step, g, s.previous_gradient)
    g = in_place(g, s.previous_gradient)
    return (h.alpha + h.beta) * g - h.beta * previous, s._replace(previous_gradient=g)


@core.recorded
def optimistic_gradient_descent(
    learning_rate: Hyper, alpha: Hyper = 1.0, beta: Annotated[Hyper, Number("[0, inf)")] = 1.0
) -> Transform:
    r"""Optimistic gradient descent, which does not circle around the solution of a game.

    .. math:: u_t = -\eta_t\,(\alpha g_t + \beta (g_t - g_{t-1}))

    Args:
      alpha: the weight of the gradient.
      beta: the weight of its change.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.optimistic_gradient_descent(0.5)
      >>> players = {"x": jnp.ones(1), "y": jnp.ones(1)}  # x minimizes x * y, y maximizes it
      >>> state = tx.init(players)
      >>> for _ in range(100):
      ...     grads = {"x": players["y"], "y": -players["x"]}
      ...     updates, state = tx.update(grads, state)
      ...     players = gradx.apply_updates(players, updates)
      >>> bool(players["x"]**2 + players["y"]**2 < 1e-6)
      True

    Reference: Mokhtari et al., *A unified analysis of extra-gradient and optimistic gradient
    methods for saddle point problems*, https://arxiv.org/abs/1901.08511.
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), descend(learning_rate))


@core.recorded
def optimistic_adam_v2(
    learning_rate: Hyper,
    *,
    alpha: Hyper = 1.0,
    beta: Annotated[Hyper, Number("[0, inf)")] = 1.0,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-08,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    nesterov: bool = True,
) -> Transform:
    r"""Optimistic Adam, for games such as GANs: adds to each step its change since the last one.

    .. math:: u_t = -\eta_t\,(\alpha r_t + \beta (r_t - r_{t-1})), \qquad
              r = \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)

    The moments are as in `scale_by_adam`.

    Args:
      alpha: the weight of Adam's step.
      beta: the weight of its change.
      nesterov: It is for the first moment.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.optimistic_adam_v2(0.1, nesterov=False)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Daskalakis et al., *Training GANs with optimism*, https://arxiv.org/abs/1711.00141.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        descend(learning_rate),
    )


@core.recorded
def optimistic_adam(
    learning_rate: Hyper,
    optimism: Annotated[Hyper | None, Number("[0, inf)", "o")] = None,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-08,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
) -> Transform:
    r"""Deprecated form of `optimistic_adam_v2`, with a learning rate of its own for the change.

    .. math:: u_t = -\eta r_t - o\,(r_t - r_{t-1})

    \(r\) is as in `optimistic_adam_v2`, where one learning rate multiplies both terms.

    Args:
      optimism: the weight of the change; by default \(\eta\), as in the paper.
      nesterov: It is for the first moment.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.optimistic_adam(0.1, 1.0, nesterov=False)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Daskalakis et al., *Training GANs with optimism*, https://arxiv.org/abs/1711.00141.
    As in Optax, it gives a `DeprecationWarning`. Optax takes no schedules here.
    """
    warn("`optimistic_adam` is deprecated, use `optimistic_adam_v2` instead.", DeprecationWarning)
    optimism = learning_rate if optimism is None else optimism
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(learning_rate, optimism),
        scale(-1.0),
    )
