"""Caution: a step, or a weight decay, acts only where two signs agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, identity
from gradx.combinators.partition import masked
from gradx.combinators.predicated import check_inner
from gradx.core import Params, Part, State, Transform
from gradx.core.meaning import Number
from gradx.core.ranges import is_real
from gradx.lift.around import Around
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import staged
from gradx.lift.sequence import stage_of
from gradx.lift.stages import NO_STATE, Call, LeafState, Numbers
from gradx.numbers.sources import Array, Hyper

__all__ = ["add_cautious_decay", "cautious"]

Direction = Literal["descent", "ascent"]


# ---------------------------------------------------------------- the update


@core.recorded
def cautious(
    inner: Contract,
    *,
    direction: Direction = "descent",
    min_share: Annotated[float, Number("(0, 1]", r"\epsilon")] = 1e-3,
) -> Transform:
    r"""Keeps only those elements of an update that go down the current gradient.

    .. math:: u = \frac{m \odot T(g)}{\max(\bar m, \epsilon)}, \qquad
              m_i = 1 \text{ where } -T(g)_i\, g_i > 0, \text{ else } 0

    Here \(\bar m\) is the mean over the leaf. Divided by it, the update keeps about its size.

    Args:
      inner: \(T\), any transformation; its state is the whole state.
      direction: ``"descent"`` if the updates of `inner` are steps, to be added to the parameters;
        ``"ascent"`` if a later part negates them, as for ``cautious(scale_by_adam(),
        direction="ascent")``. Then the elements stay where \(T(g)_i\, g_i > 0\).
      min_share: the least share that the updates are divided by. With 1 they are not rescaled.

    Raises:
      ValueError: `inner` is not a transformation; a number out of range; an unknown direction.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.cautious(gradx.sgd(0.5, momentum=0.9))
      >>> state = tx.init(jnp.ones(2))
      >>> for g in ([1.0, 1.0], [1.0, -0.5]):
      ...     updates, state = tx.update(jnp.array(g), state)
      >>> updates
      Array([-1.9, -0. ], dtype=float32)

    Weight decay inside `inner` is a part of the step, and is kept or left out with it. The authors'
    own AdamW always decays: ``chain(cautious(scale_by_adam(),
    direction="ascent"), add_decayed_weights(0.1), scale_by_learning_rate(1e-3))``. Under
    `shard_map` the mean is that of the local shard.

    Reference: Liang et al., *Cautious optimizers: improving training with one line of code*,
    https://arxiv.org/abs/2411.16085, with the factor of https://github.com/kyleliang919/C-Optim for
    AdamW, where the paper has \(n / (\sum m + 1)\). A complex number agrees with another one if
    they are less than 90 degrees apart.
    """
    where = core.where()
    check_inner(inner, where)
    flags = (("ascends", direction == "ascent", direction),)
    numbers: dict[str, Any] = {"min_share": min_share}
    judge = Call(_agreeing, flags, numbers, NO_STATE, False, per_leaf=_rescaling)

    def described(params: Params, state: State) -> list[Part]:
        return [Part("", inner, params, state)]

    stage = stage_of(inner)
    return staged(Around(stage, stage.init, judge=judge), where, described)


def _along(u: Array, g: Array, ascends: bool) -> Array:
    """How far an update goes downhill (or uphill) as `g` sees it: positive where they agree.

    It takes the sign of `g`, since the product of two tiny numbers may be 0.
    """
    if jnp.iscomplexobj(u) or jnp.iscomplexobj(g):
        product = u.real * g.real + u.imag * g.imag
        return product if ascends else -product
    return u * (jnp.sign(g) if ascends else -jnp.sign(g))


def _masked(u: Array, g: Array, ascends: bool, factor: Array) -> Array:
    # The update is multiplied and not selected, so that NaN stays NaN.
    if jnp.iscomplexobj(u) or jnp.iscomplexobj(g):
        return u * jnp.where(_along(u, g, ascends) > 0, factor, 0)
    turn = jnp.sign(g) if ascends else -jnp.sign(g)
    return jnp.maximum(_along(u, g, ascends), 0) * turn * factor


def _factor(u: Array, g: Array, ascends: bool, min_share: float | Array) -> Array:
    # Twice the number of elements that agree: a sum of products needs no array of its own.
    sign = jnp.sign(_along(u, g, ascends))
    share = jnp.sum(sign * sign + sign) / max(2 * u.size, 1)
    return 1 / jnp.maximum(share, min_share)


def _rescaling(g: Any, s: LeafState, p: Any, h: Numbers) -> Mapping[str, Array]:
    return {"factor": _factor(g, h.before, h.ascends, h.min_share)}


def _agreeing(u: Array, s: LeafState, p: Any, h: Numbers) -> tuple[Array, LeafState]:
    return _masked(u, h.before, h.ascends, h.factor), s


# ---------------------------------------------------------------- the decay


@core.recorded
def add_cautious_decay(
    weight_decay: Hyper = 0.0, mask: Any = None, *, flip_sign: bool = False
) -> Transform:
    r"""Adds weight decay where update and parameter have the same sign, so that it opposes no step.

    .. math:: u \leftarrow u + \lambda\, m \odot \theta, \qquad
              m_i = 1 \text{ where } u_i \theta_i \ge 0, \text{ else } 0

    Place it before the learning rate, like `add_decayed_weights`. It decays the elements that the
    step makes smaller anyway, and leaves those alone that the loss wants larger.

    Args:
      mask: where to decay (see `add_decayed_weights`).
      flip_sign: say True where the updates are steps already, as at the end of any optimizer:
        \(u - \lambda\, m \odot \theta\) with \(m_i = 1\) where \(u_i \theta_i \le 0\). No learning
        rate multiplies the decay there; ``scaled(schedule, 0.1)`` makes it follow a schedule.

    Raises:
      ValueError: `update` is called without the parameters, unless \(\lambda\) is the constant 0.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.add_cautious_decay(0.5)
      >>> p = jnp.array([1.0, -1.0, 1.0])
      >>> tx.update(jnp.array([2.0, 2.0, 0.0]), tx.init(p), p)[0]
      Array([2.5, 2. , 0.5], dtype=float32)

    Reference: Chen et al., *Cautious weight decay*, https://arxiv.org/abs/2510.12402. For complex
    numbers the product is \(\mathrm{Re}(\bar u_i \theta_i)\).
    """
    if isinstance(weight_decay, int | float) and is_real(weight_decay) and not weight_decay:
        tx = identity()
    else:
        tx = leafwise(
            _subtract if flip_sign else _add,
            hypers={"weight_decay": weight_decay},
            needs_params=True,
        )
    return tx if mask is None else masked(tx, mask)


def _add(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    return g + jnp.where(_against(g, p), 0, h.weight_decay) * p, s


def _subtract(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    return g - jnp.where(_against(g, -p), 0, h.weight_decay) * p, s


def _against(u: Array, p: Array) -> Array:
    if jnp.iscomplexobj(u) or jnp.iscomplexobj(p):
        return u.real * p.real + u.imag * p.imag < 0
    return u * jnp.sign(p) < 0
