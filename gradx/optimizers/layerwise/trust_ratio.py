"""A learning rate for each layer, from the norm of its parameter, of its gradient, or of both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import optax

from gradx import core
from gradx.combinators.chain import chain, identity
from gradx.combinators.partition import masked
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift import mapped
from gradx.lift.averages import storage, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers import sources
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adam import scale_by_adam
from gradx.pieces.moments import trace
from gradx.pieces.norms import scale_by_trust_ratio
from gradx.pieces.scaling import ScaleByScheduleState, descend
from gradx.pieces.weight_decay import WeightDecaySchedule, add_decayed_weights

__all__ = [
    "ScaleByNovogradState",
    "fromage",
    "lamb",
    "lars",
    "novograd",
    "scale_by_novograd",
]


@core.recorded
def lars(
    learning_rate: Hyper,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Annotated[Hyper, Number("(0, inf)", "c")] = 0.001,
    eps: Hyper = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Annotated[Hyper, Number("[-1, 1]", r"\mu")] = 0.9,
    nesterov: bool = False,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""LARS, for large batches: momentum with a learning rate for each layer.

    .. math::
        d &= g + \lambda \theta, \qquad
        r = c \lVert \theta \rVert / (\lVert d \rVert + \epsilon) \\
        m &\leftarrow \mu m - \eta\, r\, d \\
        u &= m \quad\text{or, with nesterov,}\quad \mu m - \eta\, r\, d

    A layer is a leaf. Where the norm of the parameter or of \(d\) is 0, \(r = 1\).

    Args:
      weight_decay_mask: By default all of them.
      trust_coefficient: the step of a layer relative to its norm.
      trust_ratio_mask: which leaves are scaled by \(r\); by default all of them.
      momentum: how much of the sum of steps is kept each step.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.lars(1.0, trust_coefficient=0.1, trust_ratio_mask=gradx.weights_only)
      >>> params = {"kernel": jnp.full((1, 1), 3.0), "bias": jnp.ones(1)}
      >>> grads = {"kernel": jnp.full((1, 1), 70.0), "bias": jnp.full(1, 0.5)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["bias"], updates["kernel"].round(4)
      (Array([-0.5], dtype=float32), Array([[-0.3]], dtype=float32))

    Reference: You et al., *Large batch training of convolutional networks*,
    https://arxiv.org/abs/1708.03888. As in Optax, the ratio divides by
    \(\lVert g + \lambda \theta \rVert\); the paper divides by
    \(\lVert g \rVert + \lambda \lVert \theta \rVert\).
    """
    ratio = scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps, axis_name=axis_name)
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        ratio if trust_ratio_mask is None else masked(ratio, trust_ratio_mask),
        descend(learning_rate),
        trace(momentum, nesterov),
    )


@core.recorded
def lamb(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""LAMB, for large batches: AdamW whose step in each layer is a share of the layer's norm.

    .. math::
        d &= \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon) + \lambda \theta \\
        u &= -\eta\, \frac{\lVert \theta \rVert}{\lVert d \rVert}\, d

    The moments are as in `scale_by_adam`. A layer is a leaf. Where one of the norms is 0, their
    ratio counts as 1.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.lamb(0.1)
      >>> p = jnp.array([3.0, 4.0])
      >>> tx.update(jnp.array([0.0, -2.0]), tx.init(p), p)[0]
      Array([-0. ,  0.5], dtype=float32)

    Reference: You et al., *Large batch optimization for deep learning: training BERT in 76
    minutes*, https://arxiv.org/abs/1904.00962, algorithm 2 with \(\phi(x) = x\).
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(axis_name=axis_name),
        descend(learning_rate),
    )


@core.recorded
def fromage(
    learning_rate: Hyper,
    min_norm: Annotated[Hyper, Number("[0, inf)", "m")] = 1e-6,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Fromage: steps of a given size relative to each layer, corrected so that it does not grow.

    .. math:: u = \frac{1}{\sqrt{1 + \eta^2}}
              \left(\theta - \eta\, \frac{\lVert \theta \rVert}{\lVert g \rVert}\, g\right) - \theta

    A layer is a leaf. Both norms count as at least \(m\).

    Args:
      min_norm: the smallest value that a norm counts as.

    Raises:
      ValueError: `learning_rate` is None; `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.fromage(0.75)
      >>> p = jnp.array([5.0, 0.0])
      >>> tx.update(jnp.array([0.0, -2.0]), tx.init(p), p)[0]
      Array([-1.,  3.], dtype=float32)

    Reference: Bernstein et al., *On the distance between two neural networks and the stability of
    learning*, https://arxiv.org/abs/2002.03432, which has no \(m\).
    """
    scheduled = sources.is_scheduled(learning_rate)
    return chain(
        scale_by_trust_ratio(min_norm, axis_name=axis_name),
        leafwise(
            _fromage,
            state=ScaleByScheduleState if scheduled else optax.EmptyState,
            hypers={"learning_rate": learning_rate},
            per_step=_fromage_factors,
            needs_params=True,
        ),
        # Optax counts twice, for the step and for the shrinking, and its state has both counts.
        leafwise(_unchanged, state=WeightDecaySchedule) if scheduled else identity(),
    )


def _fromage_factors(h: Numbers, t: Array | None) -> Mapping[str, Any]:
    long = (1 + h.learning_rate**2) ** 0.5
    # 1 - 1 / long without the difference, for which float32 has no digits at small rates.
    return {"step": h.learning_rate / long, "shrink": h.learning_rate**2 / (long * (1 + long))}


def _fromage(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    return -h.step * g - h.shrink * p, s


def _unchanged(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return g, s


class ScaleByNovogradState(NamedTuple):
    """The state of NovoGrad.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, like the parameters.
      nu: the second moment, () for each parameter, real.
    """

    count: Count
    mu: Updates
    nu: Updates


@core.recorded
def scale_by_novograd(
    b1: Hyper = 0.9,
    b2: Hyper = 0.25,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Rescales the updates by NovoGrad's rule, Adam with one second moment for each layer.

    .. math::
        \nu &\leftarrow \beta_2 \nu + (1 - \beta_2) \lVert g \rVert^2
              \quad\text{(at first } \lVert g \rVert^2 \text{)} \\
        \mu &\leftarrow \beta_1 \mu + \left(\frac{g}{\sqrt{\nu + \epsilon_\mathrm{root}} + \epsilon}
              + \lambda \theta\right) \\
        u &= \mu

    A layer is a leaf.

    Args:
      weight_decay: It is averaged together with the gradient.

    Raises:
      ValueError: `update` is called without the parameters, unless \(\lambda\) is the constant 0.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_novograd()
      >>> tx.update(jnp.array([3.0, -4.0]), tx.init(jnp.ones(2)))[0].round(4)
      Array([ 0.6, -0.8], dtype=float32)

    Reference: Ginsburg et al., *Stochastic gradient methods with layer-wise adaptive moments for
    training of deep networks*, https://arxiv.org/abs/1905.11286.
    """
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)
    return leafwise(
        _novograd,
        init={"mu": partial(zeros, dtype=storage("mu_dtype", mu_dtype)), "nu": _real_zero},
        state=ScaleByNovogradState,
        hypers={
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "eps_root": eps_root,
            "weight_decay": weight_decay,
        },
        flags={"decays": decays},
        per_step=_novograd_weight,
        per_leaf=_square,
        axis_name=axis_name,
        needs_params=decays,
    )


def _real_zero(p: Array) -> Array:
    return jnp.zeros((), p.real.dtype)


def _novograd_weight(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"keep": jnp.where(t == 1, 0.0, h.b2)}


def _square(g: Any, s: ScaleByNovogradState, p: Any, h: Numbers) -> Mapping[str, Array]:
    return {"square": mapped.total(jnp.sum(abs_sq(g)), h.span)}


def _novograd(
    g: Array, s: ScaleByNovogradState, p: Array, h: Numbers
) -> tuple[Array, ScaleByNovogradState]:
    nu = h.keep * s.nu + (1 - h.keep) * h.square
    step = g * (1 / (sqrt(nu + h.eps_root) + h.eps))
    mu = h.b1 * s.mu + (step + h.weight_decay * p if h.decays else step)
    return mu, s._replace(mu=mu, nu=nu)


@core.recorded
def novograd(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.25,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""NovoGrad: momentum of gradients that are normalised by layer.

    .. math:: u = -\eta\,\mu, \qquad \mu \leftarrow \beta_1 \mu + \left(
              \frac{g}{\sqrt{\nu + \epsilon_\mathrm{root}} + \epsilon} + \lambda \theta\right)

    The second moment is as in `scale_by_novograd`.

    Raises:
      ValueError: `update` is called without the parameters, unless \(\lambda\) is the constant 0.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.novograd(0.1)
      >>> tx.update(jnp.array([3.0, -4.0]), tx.init(jnp.ones(2)))[0].round(4)
      Array([-0.06,  0.08], dtype=float32)

    Reference: Ginsburg et al., *Stochastic gradient methods with layer-wise adaptive moments for
    training of deep networks*, https://arxiv.org/abs/1905.11286; Li et al., *Jasper*,
    https://arxiv.org/abs/1904.03288.
    """
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay, axis_name=axis_name),
        descend(learning_rate),
    )
