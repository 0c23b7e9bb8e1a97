"""Guards leave out the steps that would do harm: here those whose gradients are not finite.

A guard has a judge, which says whether a step counts, and a policy for what is done when several
steps in a row do not. `spikes` has a judge for steps that are finite, but far off.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import (
    AsGiven,
    check_agreement,
    check_inner,
    gated_update,
)
from gradx.core import Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import METRICS
from gradx.core.meaning import Option
from gradx.core.updates import safe_increment
from gradx.lift import mapped
from gradx.lift.states import check_state, need_params
from gradx.lowering.reading import reread
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, FromCall, Step
from gradx.pieces.norms import norm_over
from gradx.running.restore_points import Restore, RestorePoint

__all__ = ["SkipState", "skip_nonfinite"]

FlagAfter = Annotated[
    int | None,
    Option(
        "how many bad steps in a row raise `state.flagged`, which then stays raised, so that the "
        "host can stop the run; by default none do"
    ),
]
RestoreAfter = Annotated[
    int | None,
    Option(
        "how many bad steps in a row go back to the last snapshot: the parameters, and the inner "
        "state with its counts. Live values stay as they are now, so that what was lowered by hand "
        "is not raised again. By default none do"
    ),
]
SnapshotEvery = Annotated[
    int,
    Option(
        "how many good steps lie between snapshots, which are kept only with `restore_after`: the "
        "memory of the parameters and of the inner state once more"
    ),
]
Loss = Annotated[
    FromCall | None,
    Option(
        'the loss of the step: ``from_call("value")``, for ``update(…, value=loss)``. By default '
        "it is not looked at"
    ),
]
Axis = Annotated[
    Any,
    Option(
        "the mapped axis over which gradients or losses differ, inside `shard_map` or `pmap`, or "
        "several, or `sharded`: squares are summed over it and losses averaged, so that all "
        "devices decide alike. It is needed where `inner` has a `pmean`"
    ),
]


class SkipState(NamedTuple):
    """The state of a guard: `skip_nonfinite` or `skip_spikes`.

    Attributes:
      skipped: the bad steps so far, int32 ().
      in_a_row: the bad steps since the last good one, int32 ().
      last_skipped: whether the last step was bad, bool ().
      flagged: whether `flag_after` bad steps were ever in a row, bool ().
      judge: what the judge remembers, a `SpikesState`; `()` for `skip_nonfinite`.
      inner_state: the inner state, which changes only in good steps.
      snapshot: a `RestorePoint`; `()` without `restore_after`.
    """

    skipped: Array
    in_a_row: Array
    last_skipped: Array
    flagged: Array
    judge: Any
    inner_state: Any
    snapshot: Any


@METRICS.of(SkipState)
def _metrics(state: SkipState) -> Mapping[str, Array]:
    return {name: getattr(state, name) for name in ("skipped", "in_a_row", "flagged")}


@core.recorded
def skip_nonfinite(
    inner: Contract,
    *,
    flag_after: FlagAfter = None,
    restore_after: RestoreAfter = None,
    snapshot_every: SnapshotEvery = 100,
    loss: Loss = None,
    axis_name: Axis = None,
) -> Transform:
    r"""Skips the steps whose gradients or loss are not finite; put it around a whole optimizer.

    .. math:: u = T(g) \text{ where } \sum_i |g_i|^2 \text{ and the loss are finite}, \qquad
              u = 0 \text{ elsewhere}

    A step is bad if the global norm of its gradients, summed in float32 or wider, is infinite or
    NaN, or if the loss is. A gradient of 1e30 is bad, too, since its square is infinite in float32.
    In a bad step the updates are zero, the inner state stays as it is, bit for bit, and the step is
    counted. So the parameters stay finite as long as `inner` makes finite updates of gradients with
    a finite norm, and no sum of a parameter and its update overflows.

    Args:
      inner: \(T\), gradx's or Optax's.

    Raises:
      ValueError: `inner` is not a transformation, or combines gradients over an axis that is not
        named; a number of steps that is less than 1 or not a whole number; a loss that is not
        `from_call`; in `update`, no parameters where there is `restore_after`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.skip_nonfinite(gradx.sgd(0.5), flag_after=2)
      >>> state = tx.init(jnp.ones(2))
      >>> for g in (1.0, jnp.nan, jnp.inf):
      ...     updates, state = tx.update(jnp.array([g, 1.0]), state)
      ...     print(updates, int(state.skipped), bool(state.flagged))
      [-0.5 -0.5] 0 False
      [0. 0.] 1 False
      [0. 0.] 2 True

    With `restore_after` the update that goes back is the snapshot minus the parameters. It is
    float32 where parameters are in half precision, as all updates are then, so that `apply_updates`
    arrives at the snapshot exactly. In float32 it arrives up to the rounding of the larger of the
    two. Nothing that changes updates may follow the guard, and no update repairs a parameter that
    is not finite. `init` is the first snapshot.

    It differs from `apply_if_finite`: that one looks at each element, keeps Optax's state, and
    has no other policy than to skip, or to apply what is not finite.
    """
    return guarded(
        inner,
        None,
        flag_after=flag_after,
        restore_after=restore_after,
        snapshot_every=snapshot_every,
        loss=loss,
        axis_name=axis_name,
    )


# ---------------------------------------------------------------- the mechanism


class Judge(Protocol):
    """Says which of the steps that are finite are bad all the same."""

    state_class: Any

    def init(self, kind: Any) -> State:
        """The first state; `kind` is the real dtype, float32 or wider, of norms and losses."""
        ...

    def check(self, state: State, where: str) -> None:
        """Raises ValueError for the state of another judge."""
        ...

    def judged(self, state: State, seen: Mapping[str, Array], finite: Array) -> tuple[Array, State]:
        """Whether a finite step counts, by its ``norm`` and ``loss``, and the new state."""
        ...


def guarded(
    inner: Contract,
    judge: Judge | None,
    *,
    flag_after: int | None,
    restore_after: int | None,
    snapshot_every: int,
    loss: FromCall | None,
    axis_name: Any,
) -> Transform:
    """The guard with this judge, which has checked the arguments of its own."""
    where = core.where()
    check_inner(inner, where)
    flag = None if flag_after is None else steps("flag_after", flag_after, 1)
    period = steps("snapshot_every", snapshot_every, 1)
    restore = None
    if restore_after is not None:
        restore = Restore(steps("restore_after", restore_after, 1), period, where)
    if loss is not None and not isinstance(loss, FromCall):
        raise ValueError(
            f"{where}: loss must be from_call(…), which names an extra argument of update, got "
            f"{core.show(loss)}."
        )
    over = mapped.axes(axis_name)
    check_agreement(inner, over, where)

    def init(params: Params) -> SkipState:
        inner_state = inner.init(params)  # first: it raises for what cannot be optimized
        numbers = [x for x in map(gtree.as_number, jax.tree.leaves(params)) if gtree.is_inexact(x)]
        kind = gtree.wide(*(jnp.finfo(x.dtype).dtype for x in numbers))
        return SkipState(
            skipped=jnp.zeros((), jnp.int32),
            in_a_row=jnp.zeros((), jnp.int32),
            last_skipped=jnp.array(False),
            flagged=jnp.array(False),
            judge=() if judge is None else judge.init(kind),
            inner_state=inner_state,
            snapshot=() if restore is None else restore.init(params, inner_state),
        )

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SkipState]:
        check_state(state, SkipState, where)
        judging = optax.EmptyState if judge is None else judge.state_class
        check_state(state.judge, judging, where)
        check_state(state.snapshot, optax.EmptyState if restore is None else RestorePoint, where)
        if restore is not None:
            need_params(params, where)
            gtree.flatten_like(gtree.flatten(updates), params, "the parameters", where)
        updates = jax.tree.map(gtree.as_number, updates)

        seen = {"norm": _norm(updates, over, where)}
        if loss is not None:
            value = jnp.asarray(loss.value(Step(None, {}, extra, where)), seen["norm"].dtype)
            seen["loss"] = mapped.everywhere(jax.lax.pmean, value, over, where) if over else value
        good = functools.reduce(jax.lax.bitwise_and, map(jnp.isfinite, seen.values()))
        judge_state = state.judge
        if judge is not None:
            judge.check(judge_state, where)
            good, judge_state = judge.judged(judge_state, seen, good)
        in_a_row = jnp.where(good, 0, safe_increment(state.in_a_row))
        inner_state, snapshot = state.inner_state, state.snapshot
        if restore is not None:
            returns = in_a_row == restore.after
            good, snapshot, inner_state = restore.before(
                good, returns, snapshot, params, inner_state
            )

        new, inner_state = gated_update(inner, where, good, updates, inner_state, params, extra)
        if restore is not None:
            new = restore.updates(returns, snapshot, params, new)
        return new, type(state)(
            skipped=jnp.where(good, state.skipped, safe_increment(state.skipped)),
            in_a_row=in_a_row,
            last_skipped=~good,
            flagged=state.flagged if flag is None else state.flagged | (in_a_row >= flag),
            judge=judge_state,
            inner_state=inner_state,
            snapshot=snapshot,
        )

    return Transform(init, update, parts=AsGiven(inner))


def _norm(updates: Updates, over: mapped.Axes, where: str) -> Array:
    """The global norm of the leaves that can be optimized."""
    numbers = jax.tree.map(lambda g: g if gtree.is_inexact(g) else None, updates)
    return norm_over(reread(numbers), over, where)  # else half precision is stored in float32
