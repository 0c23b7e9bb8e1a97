"""Adam and AdamW: an average of gradients, divided by the root of an average of their squares."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, bias_corrections, storage, unbiased_mu, zero_moments
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.scaling import descend
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["ScaleByAdamState", "adam", "adamw", "nadam", "nadamw", "scale_by_adam"]


class ScaleByAdamState(NamedTuple):
    """The state of Adam, and of the rules that keep the same two averages.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, an average of gradients; a tree like the parameters.
      nu: the second moment, an average of their squares; like the parameters, real.
    """

    count: Count
    mu: Updates
    nu: Updates


@core.recorded
def scale_by_adam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Rescales the updates by Adam's rule; `adam` also applies the learning rate.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) g, \qquad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |g|^2 \\
        \hat\mu &= \mu / (1 - \beta_1^t), \qquad \hat\nu = \nu / (1 - \beta_2^t) \\
        u &= \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)

    With `nesterov`, \(\hat\mu = \beta_1 \mu / (1 - \beta_1^{t+1}) + (1 - \beta_1) g /
    (1 - \beta_1^t)\).

    Args:
      eps: With 0 an element that has had no gradient yet gives NaN.
      eps_root: With 0 one can still differentiate through the update.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_adam()
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([-1.0], dtype=float32)

    Reference: Kingma and Ba, *Adam*, https://arxiv.org/abs/1412.6980; Dozat, *Incorporating
    Nesterov momentum into Adam*, 2016. As in Optax, \(\hat\nu\) is without the further factor
    \(\beta_2\) that Dozat gives it.
    """
    # `_adam` is the rule, the maths for one array. `leafwise` applies it to every leaf of a tree.
    return leafwise(
        _adam,
        init=zero_moments(storage("mu_dtype", mu_dtype)),
        state=ScaleByAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        flags={"nesterov": nesterov},
        per_step=bias_corrections,
    )


def _adam(g: Array, s: ScaleByAdamState, p: None, h: Numbers) -> tuple[Array, ScaleByAdamState]:
    mu = average(s.mu, g, h.b1)
    nu = average(s.nu, abs_sq(g), h.b2)
    u = unbiased_mu(mu, g, h) / (sqrt(nu * h.correct_nu + h.eps_root) + h.eps)
    return u, s._replace(mu=mu, nu=nu)


@core.recorded
def adam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Adam: momentum, divided in each element by the size of its past gradients.

    .. math:: u = -\eta\, \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)

    The moments are as in `scale_by_adam`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adam(0.1)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Kingma and Ba, *Adam*, https://arxiv.org/abs/1412.6980.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        descend(learning_rate),
    )


@core.recorded
def adamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""Adam with decoupled weight decay, which does not pass through the moments.

    .. math:: u = -\eta_t \left(\hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)
              + \lambda \theta\right)

    The moments are as in `scale_by_adam`.

    Args:
      mask: With `gradx.weights_only` biases and norms do not decay.
      decay: what \(\lambda\) is multiplied by. ``"learning_rate"``: the learning rate, as in the
        formula and in PyTorch. ``"schedule"``: the schedule without the peak learning rate, as in
        the paper; give ``learning_rate=scaled(peak, schedule)``. ``"independent"``: nothing.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adamw(0.1, weight_decay=0.5, mask=gradx.weights_only)
      >>> params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["bias"].round(4), updates["kernel"]
      (Array([-0.1], dtype=float32), Array([[-0.15]], dtype=float32))

    Reference: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*,
    https://arxiv.org/abs/1711.05101.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )


@core.recorded
def nadam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
) -> Transform:
    r"""Adam with Nesterov momentum.

    .. math:: u = -\eta \left(\frac{\beta_1 \mu}{1 - \beta_1^{t+1}}
              + \frac{(1 - \beta_1) g}{1 - \beta_1^t}\right)
              / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)

    The moments are as in `scale_by_adam`.

    Args:
      nesterov: False gives Adam.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.nadam(0.1)
      >>> tx.update(jnp.array([4.0]), tx.init(jnp.ones(1)))[0]
      Array([-0.1474], dtype=float32)

    Reference: Dozat, *Incorporating Nesterov momentum into Adam*, 2016; PyTorch's NAdam with
    `momentum_decay=0` is the same.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


@core.recorded
def nadamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = True,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""Adam with Nesterov momentum and decoupled weight decay.

    .. math:: u = u_\mathrm{nadam} - \eta_t \lambda \theta

    Args:
      nesterov: False gives AdamW.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.nadamw(0.1, weight_decay=0.0)
      >>> tx.update(jnp.array([4.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([-0.1474], dtype=float32)

    Reference: Dozat, *Incorporating Nesterov momentum into Adam*, 2016; Loshchilov and Hutter,
    https://arxiv.org/abs/1711.05101.
    """
    return adamw(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask,
        nesterov=nesterov, decay=decay,
    )  # fmt: skip
