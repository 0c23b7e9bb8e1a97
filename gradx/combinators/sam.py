"""Sharpness-aware minimisation (SAM): gradients from where an adversary moved the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import afresh, check_inner, gated_update
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import AVERAGES, Averaged
from gradx.core.suggestions import MissingArgument
from gradx.core.updates import apply_updates
from gradx.lift import mapped
from gradx.lift.passes import widen
from gradx.lift.replicas import AVERAGE, combined
from gradx.lift.states import check_state, need_params, wrong_state
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = ["SAMState", "sam"]


class SAMState(NamedTuple):
    """The state of `sam`.

    Attributes:
      steps_since_sync: the calls since the last step of the optimizer, int32 (); 0 in opaque mode.
      opt_state: the state of the optimizer.
      adv_state: the state of the adversary.
      cache: the parameters as the optimizer left them, in their own dtypes; `None` in opaque mode.
    """

    steps_since_sync: Array
    opt_state: Any
    adv_state: Any
    cache: Params | None


@core.recorded
def sam(
    optimizer: Contract,
    adv_optimizer: Contract,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: Any = None,
) -> Transform:
    r"""Sharpness-aware minimisation (SAM): descends by gradients from a bad point nearby.

    .. math::
        \epsilon &= A(\nabla f(\theta)) \\
        \theta &\leftarrow \theta + T(\nabla f(\theta - \epsilon))

    \(A\) is an optimizer, so \(-\epsilon\) goes uphill. With the \(A\) of the paper,
    `chain(normalize(), sgd(rho))`, \(\theta - \epsilon\) is at the distance \(\rho\).

    In the default, transparent mode a step takes two calls of `update`. The first moves the
    parameters uphill. The second, with the gradients from there, moves them back and takes the
    step, so evaluate after an even number of calls. With a `sync_period` of \(k\), \(k - 1\) calls
    go uphill. The state of each part changes only in its own calls.

    Args:
      optimizer: \(T\), gradx's or Optax's; it sees the parameters \(\theta\), without \(\epsilon\).
      adv_optimizer: \(A\), the adversary, gradx's or Optax's.
      sync_period: \(k \ge 1\), in calls; 1 leaves the adversary out.
      reset_state: whether the adversary begins anew after each step of the optimizer, its counts
        included. Live values stay.
      opaque_mode: do the whole step in one call, `update(grads, state, params, grad_fn=…)`, where
        `grad_fn(params, i)` gives the gradients for the adversary's step i, 0 to \(k - 2\). Use it
        where a step has side effects (statistics of batch norms) that uphill steps must not have.
      batch_axis_name: in opaque mode inside `pmap` or `shard_map`, the mapped axis over which to
        average what `grad_fn` gives, or several, or `sharded`. As for `pmean`, leave it out in
        `shard_map` if `grad_fn` averages the loss.

    Raises:
      ValueError: a part is not a transformation; a period less than 1 or not a whole number;
        `batch_axis_name` without `opaque_mode`; in `update`, no parameters, or no `grad_fn`; JAX
        has already summed what `grad_fn` gives over the axis.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.sam(gradx.sgd(0.5), gradx.chain(gradx.normalize(), gradx.sgd(0.1)))
      >>> params = jnp.ones(1)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = jax.grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = gradx.apply_updates(params, updates)
      ...     print(params.round(2))
      [1.1]
      [-0.1]

    Reference: Foret et al., *Sharpness-aware minimization for efficiently improving
    generalization*, https://arxiv.org/abs/2010.01412. Deviation from Optax: with a `sync_period`
    of 1 this is the optimizer; there each step begins at the parameters before the last one.
    """
    where = core.where()
    over = checked_parts(optimizer, adv_optimizer, opaque_mode, batch_axis_name, where)
    period = steps("sync_period", sync_period, 1)

    def init(params: Params) -> SAMState:
        return SAMState(
            steps_since_sync=jnp.zeros((), jnp.int32),
            opt_state=optimizer.init(params),
            adv_state=adv_optimizer.init(params),
            cache=None if opaque_mode else copied(params),
        )

    def transparent(
        updates: Updates, state: SAMState, params: Params, extra: dict[str, Any], grad_fn: Any
    ) -> tuple[Updates, SAMState]:
        done = state.steps_since_sync
        ends = done == period - 1
        updates, parts = there_and_back(
            (optimizer, adv_optimizer),
            where,
            (updates, updates),
            state,
            params,
            extra,
            climbs=~ends,
            at_home=done == 0,
            resets=ends if reset_state else None,
        )
        return updates, type(state)(steps_since_sync=jnp.where(ends, 0, done + 1), **parts)

    def opaque(
        updates: Updates, state: SAMState, params: Params, extra: dict[str, Any], grad_fn: Any
    ) -> tuple[Updates, SAMState]:
        look = looking(adv_optimizer, grad_fn, params, over, where)
        there, adv_state = params, state.adv_state
        for i in range(period - 1):
            updates, there, adv_state = look(updates, adv_state, there, extra, i)
        if reset_state:
            adv_state = afresh(adv_optimizer, params, adv_state, where, when=jnp.array(True))
        updates, opt_state = core.with_extra_args(optimizer).update(
            updates, state.opt_state, params, **extra
        )
        return updates, type(state)(state.steps_since_sync, opt_state, adv_state, None)

    def described(params: Params, state: State) -> list[Part]:
        return [
            Part("optimizer", optimizer, params, state.opt_state),
            Part("adv_optimizer", adv_optimizer, params, state.adv_state),
        ]

    update = in_mode(where, SAMState, opaque if opaque_mode else transparent, opaque_mode)
    return Transform(init, update, parts=described)


# ---------------------------------------------------------------- shared by SAM's kin

Gradient = Callable[[Params, int], Updates]
Look = Callable[[Updates, State, Params, dict[str, Any], int], tuple[Updates, Params, State]]


def checked_parts(
    optimizer: Any, adv_optimizer: Any, opaque_mode: bool, batch_axis_name: Any, where: str
) -> mapped.Axes:
    """Checks the arguments that SAM's kin share; the mapped axes of `batch_axis_name`.

    Raises:
      ValueError: a part is not a transformation; there is a `batch_axis_name` in transparent mode.
    """
    check_inner(optimizer, where, "optimizer")
    check_inner(adv_optimizer, where, "adv_optimizer")
    over = mapped.axes(batch_axis_name, "batch_axis_name")
    if batch_axis_name is not None and not opaque_mode:
        raise ValueError(
            f"{where}: batch_axis_name is for opaque_mode; in transparent mode average the "
            f"gradients that update is given, with pmean for one."
        )
    return over


def in_mode(where: str, state_class: Any, step: Any, opaque_mode: bool) -> Any:
    """The `update` that checks what it is given and calls `step`, that of the one mode or the
    other: `(updates, state, params, extra, grad_fn) -> (updates, state)`."""

    def update(
        updates: Updates,
        state: State,
        params: Params | None = None,
        *,
        grad_fn: Gradient | None = None,
        **extra: Any,
    ) -> tuple[Updates, State]:
        updates, params = jax.tree.map(gtree.as_number, (updates, params))
        need_params(params, where)
        check_state(state, state_class, where)
        if opaque_mode != (state.cache is None):
            made_in = "transparent" if opaque_mode else "opaque"
            raise wrong_state(where, f"of {made_in} mode, which opaque_mode={opaque_mode} is not")
        made: tuple[Updates, State] = step(updates, state, params, extra, grad_fn)
        return made

    return update


def copied(params: Params) -> Params:
    """The parameters in buffers of their own."""
    return gtree.map_numbers(lambda p: jnp.array(gtree.as_number(p)), params)


def there_and_back(
    parts: tuple[Contract, Contract],
    where: str,
    updates: tuple[Updates, Updates],
    state: Any,
    params: Params,
    extra: dict[str, Any],
    *,
    climbs: Array,
    at_home: Array,
    resets: Array | None = None,
) -> tuple[Updates, dict[str, Any]]:
    """A call in transparent mode: a move of the adversary, or back home and a step from there.

    Args:
      parts: the optimizer and the adversary.
      where: the name for errors.
      updates: the gradients for the optimizer, and those for the adversary.
      state: with the fields `opt_state`, `adv_state` and `cache`.
      params: the parameters, at home or where the adversary moved them.
      extra: the extra arguments of `update`.
      climbs: whether the adversary moves.
      at_home: whether the optimizer left the parameters as they are now.
      resets: whether the adversary begins anew after this call, in which it does not move.

    Returns:
      The updates, and the new values of the three fields by name.
    """
    flat = gtree.flatten(updates[1])
    here = gtree.flatten_like(flat, params, "the parameters", where)
    cached = gtree.flatten_like(flat, state.cache, "the state's cache", where)
    pairs = list(zip(flat.values, here, cached, strict=True))
    home = [_home(at_home, p, c) if gtree.is_number(p) else c for _, p, c in pairs]
    cache = flat.unflatten(home)
    optimizer, adversary = parts
    adv_state = state.adv_state
    if resets is not None:
        # Before the gate: it is closed in this call, and keeps the state that it is given.
        adv_state = afresh(adversary, params, adv_state, where, when=resets)
    uphill, adv_state = gated_update(adversary, where, climbs, updates[1], adv_state, params, extra)
    downhill, opt_state = gated_update(
        optimizer, where, ~climbs, updates[0], state.opt_state, cache, extra
    )
    both = [
        gtree.flatten_like(flat, tree, "the inner updates", where) for tree in (uphill, downhill)
    ]
    moves = [
        _move(~climbs, up, down, p, c) if gtree.is_inexact(up) else up
        for up, down, p, c in zip(*both, here, home, strict=True)
    ]
    new = {"opt_state": opt_state, "adv_state": adv_state, "cache": cache}
    return flat.unflatten(moves), new


def looking(
    adv_optimizer: Contract, grad_fn: Any, params: Params, over: mapped.Axes, where: str
) -> Look:
    """A look at the gradients uphill, in opaque mode: `(gradients, the adversary's state, where the
    parameters are, extra, i) -> (gradients there, where that is, the adversary's state)`.

    Raises:
      ValueError: there is no `grad_fn`.
    """
    if not callable(grad_fn):
        raise MissingArgument(
            f"{where}: opaque_mode needs a function (params, i) -> gradients: call "
            f"update(grads, state, params, grad_fn=…); got {core.show(grad_fn)}."
        )
    adversary = core.with_extra_args(adv_optimizer)

    def look(
        updates: Updates, adv_state: State, here: Params, extra: dict[str, Any], i: int
    ) -> tuple[Updates, Params, State]:
        uphill, adv_state = adversary.update(updates, adv_state, here, **extra)
        there = apply_updates(here, gtree.map_numbers(_turned, uphill))
        updates = grad_fn(there, i)
        if over:
            updates = combined(jax.lax.pmean, updates, params, over, where, remedy=_AVERAGE)
        return updates, there, adv_state

    return look


_AVERAGE = AVERAGE.replace("say already_reduced=True", "leave batch_axis_name out").replace(
    "give update the parameters as they were", "let grad_fn do so"
)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _home(begins: Array, p: Array, cache: Array) -> Array:
    return jnp.where(begins, p, cache)


def evaluated_at_home(name: str, is_at_home: Callable[[Any], Array]) -> Averaged:
    """For `eval_params`: the parameters without the adversary's step, in transparent mode."""
    return Averaged(
        name,
        lambda state: [] if state.cache is None else [state.cache],
        lambda p, arrays, state: _home(is_at_home(state), p, arrays[0]),
        first=True,
    )


AVERAGES.add(SAMState, evaluated_at_home("sam", lambda state: state.steps_since_sync == 0))


def _turned(u: Any) -> Any:
    return -u if gtree.is_inexact(u) else u  # leaves that an optimizer leaves out have zeros


@jax.jit
def _move(ends: Array, uphill: Array, downhill: Array, p: Array, home: Array) -> Array:
    # From the new cache and not the old one, so that the old one can be overwritten first.
    back = widen(home) - widen(p) + widen(downhill)
    return jnp.where(ends, back, -widen(uphill)).astype(uphill.dtype)
