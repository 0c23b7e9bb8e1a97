"""LookSAM: sharpness-aware minimisation that looks uphill in every k-th step only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import gated_update
from gradx.combinators.sam import (
    checked_parts,
    copied,
    evaluated_at_home,
    in_mode,
    looking,
    there_and_back,
)
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import AVERAGES
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper, from_call

__all__ = ["LookSAMState", "look_sam"]


class LookSAMState(NamedTuple):
    """The state of `look_sam`.

    Attributes:
      steps_since_sync: the calls since the adversary was last due, int32 (), 0 where it is due.
      opt_state: the state of the optimizer.
      adv_state: the state of the adversary.
      cache: the parameters as the optimizer left them, in their own dtypes; `None` in opaque mode.
      direction: the state of the part that reuses the direction, a `DirectionState`.
    """

    steps_since_sync: Array
    opt_state: Any
    adv_state: Any
    cache: Params | None
    direction: Any


class DirectionState(NamedTuple):
    """The direction in the state of `look_sam`.

    Attributes:
      direction: like the parameters: the gradient while the adversary is away; after that, the
        part of the gradient uphill that is orthogonal to it.
    """

    direction: Updates


@core.recorded
def look_sam(
    optimizer: Contract,
    adv_optimizer: Contract,
    period: int = 5,
    alpha: Annotated[
        Hyper, Number("[0, inf)", r"\alpha", "the weight of the direction that is reused")
    ] = 0.7,
    opaque_mode: bool = False,
    batch_axis_name: Any = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""LookSAM: `sam` in every \(k\)-th step; the steps between reuse the direction that it found.

    .. math::
        \text{every } k \text{ steps:} \quad
        g_s &= \nabla f(\theta - A(g)), \qquad
        d = g_s - \frac{\langle g_s, g \rangle}{\lVert g \rVert^2}\, g, \qquad
        \theta \leftarrow \theta + T(g_s) \\
        \text{else:} \quad
        \theta &\leftarrow \theta + T\Big(g + \alpha \frac{\lVert g \rVert}{\lVert d \rVert} d\Big)

    with \(g = \nabla f(\theta)\). So \(k\) steps take \(k + 1\) gradients instead of SAM's
    \(2 k\). In the default, transparent mode each call of `update` takes one gradient: the first of
    \(k + 1\) calls moves the parameters uphill, the second moves them back and takes a step, and
    each of the others takes a step.

    Args:
      optimizer: \(T\), gradx's or Optax's; it sees the parameters \(\theta\).
      adv_optimizer: \(A\), the adversary, gradx's or Optax's: for the paper
        `chain(normalize(), sgd(rho))`, or `asam_adversary`. Its state is kept.
      period: \(k \ge 1\), in steps; with 1 it is SAM.
      alpha: A schedule counts gradients.
      opaque_mode: do each step in one call, `update(grads, state, params, grad_fn=…)`, where
        `grad_fn(params, 0)` gives the gradients uphill. It is called in every \(k\)-th step, under
        a conditional.
      batch_axis_name: in opaque mode inside `pmap` or `shard_map`, the mapped axis over which to
        average what `grad_fn` gives (see `sam`).

    Raises:
      ValueError: as for `sam`; a period that is less than 1 or not a whole number.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> adversary = gradx.chain(gradx.normalize(), gradx.sgd(0.1))
      >>> tx = gradx.look_sam(gradx.sgd(0.1), adversary, period=2)
      >>> params = jnp.array([1.0, 1.0])
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     grads = jax.grad(lambda p: jnp.sum(p**4) / 4)(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = gradx.apply_updates(params, updates)
      ...     print(params.round(3))
      [1.071 1.071]
      [0.877 0.877]
      [0.81 0.81]

    Reference: Liu et al., *Towards efficient and scalable sharpness-aware minimization*,
    https://arxiv.org/abs/2203.02714, algorithm 1. The layer-wise scale of its second part is the
    adversary's: give one that works by layer.
    """
    where = core.where()
    over = checked_parts(optimizer, adv_optimizer, opaque_mode, batch_axis_name, where)
    calls = steps("period", period, 1) + (0 if opaque_mode else 1)
    reuse = leafwise(
        _directed,
        init={"direction": zeros},
        state=DirectionState,
        hypers={"alpha": alpha, "since": from_call("steps_since_sync")},
        measure=_squares,
        per_tree=_shares,
        axis_name=axis_name,
    )

    def directed(
        updates: Updates, state: State, since: Array, extra: dict[str, Any]
    ) -> tuple[Updates, State]:
        return reuse.update(updates, state, None, **{**extra, "steps_since_sync": since})

    def following(since: Array) -> Array:
        return jnp.where(since == calls - 1, 0, since + 1)

    def init(params: Params) -> LookSAMState:
        return LookSAMState(
            steps_since_sync=jnp.zeros((), jnp.int32),
            opt_state=optimizer.init(params),
            adv_state=adv_optimizer.init(params),
            cache=None if opaque_mode else copied(params),
            direction=reuse.init(params),
        )

    def opaque(
        updates: Updates, state: LookSAMState, params: Params, extra: dict[str, Any], grad_fn: Any
    ) -> tuple[Updates, LookSAMState]:
        look = looking(adv_optimizer, grad_fn, params, over, where)

        def looked(
            updates: Updates, state: State, params: Params | None = None, **extra: Any
        ) -> tuple[Updates, State]:
            adv_state, direction = state
            _, direction = directed(updates, direction, jnp.int32(0), extra)
            updates, _, adv_state = look(updates, adv_state, params, extra, 0)
            return updates, (adv_state, direction)

        due = state.steps_since_sync == 0
        found, (adv_state, direction) = gated_update(
            Transform(init, looked),
            where,
            due,
            updates,
            (state.adv_state, state.direction),
            params,
            extra,
            rejected="pass",
            conditional=True,
        )
        found = gtree.map_numbers(lambda u, g: u.astype(jnp.result_type(g)), found, updates)
        found, direction = directed(found, direction, jnp.where(due, 1, 2), extra)
        updates, opt_state = core.with_extra_args(optimizer).update(
            found, state.opt_state, params, **extra
        )
        after = following(state.steps_since_sync)
        return updates, type(state)(after, opt_state, adv_state, None, direction)

    def transparent(
        updates: Updates, state: LookSAMState, params: Params, extra: dict[str, Any], grad_fn: Any
    ) -> tuple[Updates, LookSAMState]:
        since = state.steps_since_sync
        steered, direction = directed(updates, state.direction, since, extra)
        moves, new = there_and_back(
            (optimizer, adv_optimizer),
            where,
            (steered, updates),
            state,
            params,
            extra,
            climbs=since == 0,
            at_home=since != 1,
        )
        return moves, type(state)(following(since), direction=direction, **new)

    def described(params: Params, state: State) -> list[Part]:
        return [
            Part("optimizer", optimizer, params, state.opt_state),
            Part("adv_optimizer", adv_optimizer, params, state.adv_state),
            Part("direction", reuse, params, state.direction),
        ]

    step = opaque if opaque_mode else transparent
    return Transform(init, in_mode(where, LookSAMState, step, opaque_mode), parts=described)


AVERAGES.add(LookSAMState, evaluated_at_home("look_sam", lambda state: state.steps_since_sync != 1))


def _squares(g: Array, s: DirectionState, p: Any, h: Numbers) -> Mapping[str, Array]:
    d = s.direction
    return {
        "g": jnp.sum(abs_sq(g)),
        "d": jnp.sum(abs_sq(d)),
        "both": jnp.sum((g * jnp.conj(d)).real),
    }


def _shares(h: Numbers, sums: Sums) -> Decided:
    along = _quotient(sums["both"], sums["d"])  # in the second call, when d is the gradient
    longer = h.alpha * _quotient(sqrt(sums["g"]), sqrt(sums["d"]))
    return {"along": jnp.where(h.since == 0, 0.0, along), "longer": longer}, {}


def _quotient(x: Any, y: Array) -> Array:
    """`x / y`, and 0 where `y` is 0 or one of them has overflowed."""
    usable = (y > 0) & (y < jnp.inf) & (jnp.abs(x) < jnp.inf)
    return jnp.where(usable, x / jnp.where(usable, y, 1.0), 0.0)


def _directed(g: Array, s: DirectionState, p: Any, h: Numbers) -> tuple[Array, DirectionState]:
    """Selects, so that a direction with a NaN does not outlive the steps that reuse it."""
    d = s.direction
    first = jnp.where(h.since == 0, g, g - h.along * d)
    found = jnp.where(h.since < 2, first, d)
    return jnp.where(h.since < 2, g, g + h.longer * d), s._replace(direction=found)
