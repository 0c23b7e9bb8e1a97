"""Lookahead: a fast optimizer explores, and every k steps slow parameters go part of its way."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import afresh, check_inner
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.meaning import Number
from gradx.lift.passes import widen
from gradx.lift.states import check_state
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = ["LookaheadParams", "LookaheadState", "lookahead"]


class LookaheadState(NamedTuple):
    """The state of `lookahead`.

    Attributes:
      fast_state: the state of the fast optimizer.
      steps_since_sync: the steps since fast and slow parameters were last made equal, int32 ().
    """

    fast_state: Any
    steps_since_sync: Array


class LookaheadParams(NamedTuple):
    """The parameters of a run with `lookahead`.

    Attributes:
      fast: the fast parameters: take gradients with respect to them.
      slow: the slow parameters: evaluate them.
    """

    fast: Params
    slow: Params

    @classmethod
    def init_synced(cls, params: Params) -> Self:
        """Fast and slow parameters that begin equal, the slow ones in buffers of their own."""
        return cls(fast=params, slow=jax.tree.map(_copy, params))


def _copy(x: Any) -> Any:
    return jnp.array(x) if isinstance(x, jax.Array) else x  # it may be a shape


@core.recorded
def lookahead(
    fast_optimizer: Contract,
    sync_period: int,
    slow_step_size: Annotated[float, Number("[0, inf)", r"\alpha")],
    reset_state: bool = False,
) -> Transform:
    r"""Moves slow parameters towards those of a fast optimizer every k steps, and restarts it.

    .. math::
        \phi &\leftarrow \phi + T(\nabla f(\phi)) \\
        \theta &\leftarrow \theta + \alpha (\phi - \theta), \qquad
        \phi \leftarrow \theta \qquad \text{in every } k\text{-th step}

    The parameters are a `LookaheadParams` of \(\phi\) (`fast`) and \(\theta\) (`slow`), and so are
    the updates. The gradients are those of `fast`, a tree like it. Apply these updates unchanged:
    otherwise the two do not become equal.

    Args:
      fast_optimizer: \(T\), gradx's or Optax's. It sees the fast parameters.
      sync_period: \(k \ge 1\), in steps.
      slow_step_size: how far the slow parameters move, commonly below 1. With 0 they stay, and the
        fast ones return to them.
      reset_state: whether the fast optimizer forgets its state, its counts included, in every
        \(k\)-th step. Live values stay.

    Raises:
      ValueError: `fast_optimizer` is not a transformation; a period that is less than 1 or not a
        whole number; in `update`, parameters that are not `LookaheadParams`. (`init` takes the
        fast ones alone, too.)

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.lookahead(gradx.sgd(0.5), sync_period=2, slow_step_size=0.5)
      >>> params = gradx.LookaheadParams.init_synced(jnp.ones(1))
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state, params)
      ...     params = gradx.apply_updates(params, updates)
      ...     print(params.fast, params.slow)
      [0.5] [1.]
      [0.5] [0.5]

    Reference: Zhang et al., *Lookahead optimizer: k steps forward, 1 step back*,
    https://arxiv.org/abs/1907.08610. Deviations from Optax: `reset_state` resets at the beginning
    of the next step, which costs no memory and makes the same updates, and leaves live values
    alone; a NaN in the fast parameters reaches the slow ones only in a \(k\)-th step.
    """
    where = core.where()
    check_inner(fast_optimizer, where, "fast_optimizer")
    period = steps("sync_period", sync_period, 1)
    fast = core.with_extra_args(fast_optimizer)

    def init(params: Params) -> LookaheadState:
        return LookaheadState(
            fast_state=fast.init(getattr(params, "fast", params)),
            steps_since_sync=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LookaheadState]:
        if params is None or not (hasattr(params, "fast") and hasattr(params, "slow")):
            raise ValueError(
                f"{where}: needs the fast and the slow parameters: call update(updates, state, "
                f"params) with params=LookaheadParams(fast=…, slow=…); got {type(params).__name__}."
            )
        check_state(state, LookaheadState, where)
        done, fast_state = state.steps_since_sync, state.fast_state
        if reset_state:
            fast_state = afresh(fast_optimizer, params.fast, fast_state, where, when=done == 0)
        new, fast_state = fast.update(updates, fast_state, params.fast, **extra)
        flat = gtree.flatten(new)
        columns = [
            gtree.flatten_like(flat, tree, f"the {name} parameters", where)
            for name, tree in (("fast", params.fast), ("slow", params.slow))
        ]
        for i, (u, f, s) in enumerate(zip(flat.values, *columns, strict=True)):
            if gtree.is_number(u) and not jnp.shape(u) == jnp.shape(f) == jnp.shape(s):
                raise ValueError(
                    f"{where}: at {flat.paths[i]!r} the update has shape {jnp.shape(u)}, the fast "
                    f"parameter {jnp.shape(f)} and the slow one {jnp.shape(s)}."
                )
        sync = done == period - 1
        pairs = [
            _both(u, f, s, sync, slow_step_size) if gtree.is_inexact(u) else (u, u)
            for u, f, s in zip(flat.values, *columns, strict=True)
        ]
        fast_updates, slow_updates = (flat.unflatten([pair[i] for pair in pairs]) for i in (0, 1))
        return type(params)(fast=fast_updates, slow=slow_updates), type(state)(
            fast_state=fast_state, steps_since_sync=jnp.where(sync, 0, done + 1)
        )

    def described(params: Params, state: State) -> list[Part]:
        inner = getattr(params, "fast", params)
        return [Part("", fast_optimizer, inner, state.fast_state)]

    return Transform(init, update, parts=described)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _both(
    u: Array, fast: Array, slow: Array, sync: Array, step_size: float | Array
) -> tuple[Array, Array]:
    """The updates of the fast and of the slow parameters."""
    f, s, wide = widen(fast), widen(slow), widen(u)
    meet = s + step_size * (f + wide - s)
    fast_update = jnp.where(sync, meet - f, wide)
    # From the new fast parameters, which are stored anyway: so the fast optimizer's update has one
    # consumer, and the two come out equal, up to rounding.
    slow_update = jnp.where(sync, f + fast_update - s, 0)
    return fast_update.astype(u.dtype), slow_update.astype(u.dtype)
