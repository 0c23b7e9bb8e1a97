"""Mechanic: learns during the run how far to go along the updates of another optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import check_inner
from gradx.core import Count, Params, Part, State, Transform
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq, dot
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import staged
from gradx.lift.sequence import NO_OLD_STATE, InSequence, stage_of
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.lift.states import check_state
from gradx.lowering.order import once_known
from gradx.lowering.reading import unshared
from gradx.numbers.counting import steps
from gradx.numbers.live import own_state, with_own
from gradx.numbers.sources import Array, Hyper

__all__ = ["MechanicState", "mechanize"]


class MechanicState(NamedTuple):
    """The state of `mechanize`. The vectors have an entry for each decay.

    Attributes:
      base_optimizer_state: the state of the wrapped optimizer.
      count: the updates done so far, int32 ().
      r: the decaying sums of rewards, float32 or wider (num_betas,).
      m: the decaying maxima of rewards, float32 or wider (num_betas,).
      v: the decaying sums of squared rewards, float32 or wider (num_betas,).
      s: the learned factors, whose sum scales the updates, float32 or wider (num_betas,).
      x0: the parameters at the first update, like the parameters.
    """

    base_optimizer_state: Any
    count: Count
    r: Array
    m: Array
    v: Array
    s: Array
    x0: Params


class _Tuner(NamedTuple):
    """The tuner's own state: that of `mechanize` without the base optimizer's."""

    count: Count
    r: Array
    m: Array
    v: Array
    s: Array
    x0: Params


@core.recorded
def mechanize(
    base_optimizer: Contract,
    weight_decay: Annotated[Hyper, Number(symbol="w")] = 1e-2,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-8,
    s_init: Annotated[float, Number("(0, inf)", r"s_\mathrm{init}")] = 1e-6,
    num_betas: int = 6,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Mechanic: tunes the learning rate of any optimizer, by a learned factor of all its updates.

    .. math::
        \Delta &= (\theta - \theta_0) / (S + \epsilon), \qquad S = \textstyle\sum_i s_i \\
        h &= -\Big\langle g + w S \frac{\lVert g \rVert}{\lVert \theta \rVert + \epsilon} \theta,
             \Delta \Big\rangle, \qquad \beta_i = 1 - 10^{-i} \\
        r_i &\leftarrow \beta_i r_i + s_i \min(\max(h, -m_i), m_i), \quad
        m_i \leftarrow \max(\beta_i m_i, |h| + \epsilon), \quad
        v_i \leftarrow \beta_i^2 v_i + h^2 \\
        s_i &\leftarrow \frac{m_i\, s_\mathrm{init} / n + [r_i]_+}{\sqrt{v_i} + \epsilon}, \qquad
        u = \theta_0 + S (\Delta + u_\mathrm{base}) - \theta \text{ with the new } S

    Norms and inner product are taken over the whole tree.

    Args:
      base_optimizer: the optimizer, gradx's or Optax's, with its learning rate: 1, or a schedule
        with its peak at 1.
      weight_decay: It comes on top of any weight decay of the base optimizer.
      s_init: the first value of all \(s_i\).
      num_betas: how many decays there are, \(n\), a whole number from 1 on.
      axis_name: the mapped axis over which the parameters are sharded, inside `shard_map` or
        `pmap`, or several, or `sharded`; give it to the base optimizer as well.

    Raises:
      ValueError: `base_optimizer` is not a transformation; `update` is called without the
        parameters.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.mechanize(gradx.sgd(1.0))
      >>> params = jnp.array([3.0])
      >>> state = tx.init(params)
      >>> for _ in range(60):
      ...     updates, state = tx.update(jax.grad(lambda p: jnp.sum(p**2))(params), state, params)
      ...     params = params + updates
      >>> bool(jnp.sum(state.s) > 0.01)
      True

    Reference: Cutkosky, Defazio and Mehta, *Mechanic: a learning rate tuner*,
    https://arxiv.org/abs/2306.00144, 2023. As in the authors' later code, and in Optax, \(h\) is
    clipped by \(m\), and \(\theta_0\) are the parameters of the first update, not those of `init`.
    """
    where = core.where()
    check_inner(base_optimizer, where, "base_optimizer")
    num_betas = steps("num_betas", num_betas, 1)
    nothing = np.zeros(num_betas)
    tuning = leafwise(
        _move,
        init={"x0": _from_here},
        state=_Tuner,
        hypers={"weight_decay": weight_decay, "eps": eps},
        flags={"s_init": s_init},
        per_step=_is_first,
        measure=_products,
        per_tree=_learn,
        scalars={
            "r": nothing,
            "m": nothing,
            "v": nothing,
            "s": lambda _: jnp.full(num_betas, s_init),
        },
        axis_name=axis_name,
        needs_params=True,
    )

    def described(params: Params, state: State) -> list[Part]:
        inner, own = _split(state, where)
        return [
            Part("base_optimizer", base_optimizer, params, inner),
            Part("", tuning, params, own),
        ]

    def pack(states: Sequence[State], old: State) -> State:
        return _join(MechanicState if old is NO_OLD_STATE else type(own_state(old)), *states)

    # The tuner measures the gradients that the base optimizer gets, and moves by its updates.
    stages = [stage_of(base_optimizer), tuning.stage]
    both = InSequence(
        stages, pack, lambda state: _split(state, where), where, side_by_side=True, rounds=True
    )
    return staged(both, where, described)


# ---------------------------------------------------------------- the rule


def _from_here(p: Array) -> Array:
    return p


def _is_first(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"first": t == 1}


def _products(g: Array, s: _Tuner, p: Array, h: Numbers) -> Mapping[str, Array]:
    # A value that two consumers share would be stored in an array of its own. So one product has
    # x0 - p and the other p - x0, and the base optimizer does not share the squared gradient.
    return {
        "gradient": jnp.sum(abs_sq(unshared(g, p))),
        "params": jnp.sum(abs_sq(p)),
        "gain": dot(g, s.x0 - p),
        "growth": dot(p, p - s.x0),
    }


def _learn(h: Numbers, sums: Sums) -> Decided:
    total = jnp.sum(h.s)
    largest = jnp.finfo(h.s.dtype).max
    size = sqrt(jnp.minimum(sums["gradient"], largest)) / (sqrt(sums["params"]) + h.eps)
    gain = sums["gain"] - h.weight_decay * total * size * sums["growth"]
    most = 0.5 * largest**0.5  # so that its square is finite, even after the sum for `v`
    reward = jnp.clip(jnp.where(h.first, 0.0, gain / (total + h.eps)), -most, most)
    n = h.s.shape[0]
    betas = jnp.asarray(1 - 0.1 ** np.arange(1, n + 1), h.s.dtype)
    m = jnp.maximum(betas * h.m, jnp.abs(reward) + h.eps)
    v = betas**2 * h.v + reward**2
    r = betas * h.r + h.s * jnp.clip(reward, -h.m, h.m)
    s = (m * (h.s_init / n) + jnp.maximum(r, 0.0)) / (sqrt(v) + h.eps)
    decided = {
        "rate": jnp.sum(s),
        "back": (total + h.eps - jnp.sum(s)) / (total + h.eps),
        "begins": h.first & once_known(m[0]),  # overwrites x0 only after the sums that read it
    }
    return decided, {"r": r, "m": m, "v": v, "s": s}


def _move(u: Array, s: _Tuner, p: Array, h: Numbers) -> tuple[Array, _Tuner]:
    x0 = jnp.where(h.begins, p, s.x0)
    return h.rate * u + h.back * (x0 - p), s._replace(x0=x0)


# ---------------------------------------------------------------- with the base optimizer


def _split(state: State, where: str) -> tuple[State, State]:
    """The state of the base optimizer, and the state of the tuner."""
    inner = own_state(state)
    check_state(inner, MechanicState, where)
    own = _Tuner(*(getattr(inner, field) for field in _Tuner._fields))
    return inner.base_optimizer_state, with_own(state, own)


def _join(state_class: Any, base_state: State, tuner_state: State) -> State:
    joined = state_class(base_optimizer_state=base_state, **own_state(tuner_state)._asdict())
    return with_own(tuner_state, joined)
