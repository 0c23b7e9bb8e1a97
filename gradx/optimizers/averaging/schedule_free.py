"""Schedule-free learning: averaging and interpolation in place of momentum and a decaying rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from gradx import core
from gradx.combinators.chain import Contract, chain, identity
from gradx.core import Transform
from gradx.core.meaning import Number
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers import sources
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.averaging.interpolation import averaging, with_averaging
from gradx.optimizers.first_order.rmsprop import scale_by_rms
from gradx.pieces.scaling import ScaleByScheduleState
from gradx.pieces.weight_decay import add_decayed_weights
from gradx.schedules.sequences import warmup_constant_schedule

__all__ = ["schedule_free", "schedule_free_adamw", "schedule_free_sgd"]


@core.recorded
def schedule_free(
    base_optimizer: Contract,
    learning_rate: Hyper,
    b1: Annotated[Hyper, Number("(0, 1]")] = 0.9,
    weight_lr_power: Annotated[Hyper, Number("[0, inf)", "r")] = 2.0,
    state_dtype: Any = None,
) -> Transform:
    r"""Makes an optimizer schedule-free: averaging takes the place of a decaying learning rate.

    .. math::
        z &\leftarrow z + T(\nabla f(y)) \\
        x &\leftarrow (1 - c)\, x + c\, z, \qquad
              c = w_t / \textstyle\sum_{s \le t} w_s, \quad w_t = (\max_{s \le t} \eta_s)^r \\
        y &\leftarrow \beta_1 x + (1 - \beta_1)\, z

    The parameters are \(y\), and the update moves them. Evaluate at \(x\), which is
    `schedule_free_eval_params(state, params)`, since the loss at \(y\) is higher. Statistics of
    batch norms belong to \(y\); gather them anew at \(x\).

    Args:
      base_optimizer: \(T\), gradx's or Optax's, without momentum (`sgd`, `adam(…, b1=0.0)`), with
        its own learning rate. It sees the parameters \(y\), so weight decay acts there.
      learning_rate: the base optimizer's step size, a constant or a warmup that stays at its peak.
        Here it only sets the weights of the average. One number for the whole tree.
      b1: the share of \(x\) in \(y\), in place of momentum. Use 0.9, or 0.95 to 0.98 for long runs.
      weight_lr_power: the power of the learning rate in the weights of the average. The higher it
        is, the less the steps of a warmup count.
      state_dtype: the dtype to keep \(z\) in; by default the parameter's, at least float32.

    Raises:
      ValueError: `base_optimizer` is no transformation; `update` is called without the parameters,
        or with another state.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.schedule_free(gradx.sgd(0.5), 0.5)
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     grads = jax.grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = gradx.apply_updates(params, updates)
      >>> gradx.schedule_free_eval_params(state, params).round(2)
      Array([0., 0.], dtype=float32)

    Reference: Defazio et al., *The road less scheduled*, https://arxiv.org/abs/2405.15682.
    Deviation from Optax: schedules begin with the count 0, as everywhere in gradx, so the weights
    follow the rates of the base optimizer; Optax's weights are one step ahead. The authors' code
    begins a warmup at its second value. This one gets there after a first step that moves nothing.
    A \(\beta_1\) that changes during the run is taken into account.
    """
    rule = averaging(learning_rate, b1, weight_lr_power, state_dtype, scaled=False)
    return with_averaging(base_optimizer, rule)


@core.recorded
def schedule_free_sgd(
    learning_rate: Hyper = 1.0,
    warmup_steps: int | None = None,
    b1: Annotated[Hyper, Number("(0, 1]")] = 0.9,
    weight_decay: Hyper | None = None,
    weight_lr_power: Annotated[Hyper, Number("[0, inf)", "r")] = 2.0,
    state_dtype: Any = None,
) -> Transform:
    r"""Schedule-free gradient descent: no decay of the learning rate has to be planned.

    .. math:: z \leftarrow z - \eta_t (g + \lambda y), \qquad
              \eta_t = \eta \min(1, t / W)

    The average and the parameters are as in `schedule_free`. Evaluate at
    `schedule_free_eval_params(state, params)`.

    Args:
      learning_rate: One number for the whole tree. It can be 10 to 50 times larger than with
        momentum.
      warmup_steps: \(W\), the steps of a linear warmup from 0; none by default.
      b1: the share of \(x\) in \(y\), in place of momentum.
      weight_decay: None by default.
      weight_lr_power: the power of the learning rate in the weights of the average.
      state_dtype: the dtype to keep \(z\) in; by default the parameter's, at least float32.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.schedule_free_sgd(0.5, b1=0.5)
      >>> params = jnp.ones(2)
      >>> updates, state = tx.update(2 * params, tx.init(params), params)
      >>> gradx.apply_updates(params, updates)
      Array([0., 0.], dtype=float32)

    Reference: Defazio et al., *The road less scheduled*, https://arxiv.org/abs/2405.15682. For the
    counts of the warmup see `schedule_free`.
    """
    rate = _warmed(learning_rate, warmup_steps)
    base = chain(identity(), _clock(rate))
    if weight_decay is not None:
        base = chain(add_decayed_weights(weight_decay), base)
    return with_averaging(base, averaging(rate, b1, weight_lr_power, state_dtype, scaled=True))


@core.recorded
def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    warmup_steps: int | None = None,
    b1: Annotated[Hyper, Number("(0, 1]")] = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Annotated[Hyper, Number("[0, inf)", "r")] = 2.0,
    state_dtype: Any = None,
) -> Transform:
    r"""Schedule-free AdamW: no decay of the learning rate has to be planned.

    .. math:: z \leftarrow z - \eta_t \left(\frac{g}{\sqrt{\hat\nu} + \epsilon} + \lambda y\right),
              \qquad \eta_t = \eta \min(1, t / W)

    \(\hat\nu\) is as in `scale_by_adam`, the average and the parameters as in `schedule_free`.
    Evaluate at `schedule_free_eval_params(state, params)`.

    Args:
      learning_rate: One number for the whole tree, 1 to 10 times that of AdamW with a schedule.
      warmup_steps: \(W\), the steps of a linear warmup from 0; none by default.
      b1: the share of \(x\) in \(y\), in place of Adam's first moment.
      weight_lr_power: the power of the learning rate in the weights of the average.
      state_dtype: the dtype to keep \(z\) in; by default the parameter's, at least float32.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.schedule_free_adamw(0.1)
      >>> params = jnp.ones(2)
      >>> updates, state = tx.update(jnp.array([-3.0, 0.2]), tx.init(params), params)
      >>> params = gradx.apply_updates(params, updates)
      >>> gradx.schedule_free_eval_params(state, params).round(2)
      Array([1.1, 0.9], dtype=float32)

    Reference: Defazio et al., *The road less scheduled*, https://arxiv.org/abs/2405.15682. For the
    counts of the warmup see `schedule_free`.
    """
    rate = _warmed(learning_rate, warmup_steps)
    base = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        _clock(rate),
    )
    return with_averaging(base, averaging(rate, b1, weight_lr_power, state_dtype, scaled=True))


def _warmed(learning_rate: Hyper, warmup_steps: int | None) -> Hyper:
    """The learning rate with its warmup; it may be live or scheduled."""
    if warmup_steps is None:
        return learning_rate
    if isinstance(learning_rate, sources.Tunable):  # its name in the state stays
        learning_rate = replace(learning_rate, name=learning_rate.name or "learning_rate")
    return sources.scaled(warmup_constant_schedule(0.0, 1.0, warmup_steps), learning_rate)


def _clock(learning_rate: Hyper) -> Transform:
    """Changes nothing. Its state is that of Optax's learning rate, where a schedule has a count."""
    return (
        leafwise(_pass, state=ScaleByScheduleState)
        if sources.is_scheduled(learning_rate)
        else identity()
    )


def _pass(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return g, s
