"""Latest weight averaging (LAWA): the mean of the last few snapshots of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import AVERAGES, Averaged
from gradx.lift.averages import storage
from gradx.lift.passes import staged, widen
from gradx.lift.stages import Call, Leaves
from gradx.lift.states import check_state, counted, wrong_state
from gradx.lift.tree_first import TreeFirst
from gradx.lowering.conditional import in_some_steps
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array
from gradx.running.beside import after, beside_params, first_beside

__all__ = ["LawaState", "lawa_params"]


class LawaState(NamedTuple):
    """The state of `lawa_params`.

    Attributes:
      count: the updates done so far, int32 ().
      taken: the snapshots taken so far, int32 ().
      place: which snapshot the parameters will replace that the next `update` is given, or -1 for
        none, int32 ().
      snapshots: the last snapshots, each like the parameters.
    """

    count: Count
    taken: Array
    place: Array
    snapshots: tuple[Updates, ...]


@core.recorded
def lawa_params(window: int, every: int, *, accumulator_dtype: Any = None) -> Transform:
    r"""Keeps the last \(k\) snapshots of the parameters, whose mean is ahead of the run.

    .. math:: \bar\theta = \frac{1}{k} \sum_{i=0}^{k-1} \theta_{n (m - i)}

    after \(m\) snapshots, one in \(n\) steps. It helps most in the middle of a run with a high
    learning rate. `eval_params(tx, state, params)` gives the mean: of fewer snapshots while there
    are fewer, and before the first one the parameters themselves.

    Args:
      window: \(k \ge 1\), how many snapshots. Each is a copy of the parameters.
      every: \(n \ge 1\), the steps from one snapshot to the next, one epoch in the paper. A step
        that takes one writes one copy; others cost nothing.
      accumulator_dtype: the dtype to keep the snapshots in; by default the parameter's, at least
        float32.

    Returns:
      A part of a chain that passes the updates on, with a `LawaState`.

    Raises:
      ValueError: a number is out of range; `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.lawa_params(window=2, every=2))
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> for _ in range(5):
      ...     updates, state = tx.update(jnp.array([-1.0]), state, params)
      ...     params = gradx.apply_updates(params, updates)
      >>> gradx.eval_params(tx, state, params)  # of the second and the fourth step
      Array([3.], dtype=float32)

    Reference: Kaddour, *Stop wasting my time! Saving days of ImageNet and BERT training with latest
    weight averaging*, https://arxiv.org/abs/2209.14981.
    """
    where = core.where()
    window, every = steps("window", window, 1), steps("every", every, 1)
    dtype = storage("accumulator_dtype", accumulator_dtype)

    def start(p: Array) -> Array:
        return jnp.array(p, p.dtype if dtype is None else dtype)

    def init(params: Params) -> LawaState:
        empty = tuple(first_beside(start, params, where) for _ in range(window))
        count = jnp.zeros((), jnp.int32)
        return LawaState(count, jnp.copy(count), jnp.full((), -1, jnp.int32), empty)

    def prepare(
        leaves: Leaves, state: State, extra: Mapping[str, Any]
    ) -> tuple[Sequence[Call | None], State]:
        check_state(state, LawaState, where)
        if len(state.snapshots) != window:
            raise wrong_state(where, f"with {len(state.snapshots)} snapshots instead of {window}")
        params = leaves.visible_params
        place = state.place if leaves.gate is None else jnp.where(leaves.gate, state.place, -1)

        def change(old: Updates, params: Params) -> Updates:
            return beside_params(_stored, params, old, where=where)

        snapshots = tuple(
            in_some_steps(change, place == i, old, params) for i, old in enumerate(state.snapshots)
        )
        count = counted(state.count, leaves.gate)
        due = (count > 0) & (count % every == 0)
        nearest = jnp.where(due, (count // every - 1) % window, -1)
        if leaves.gate is not None:
            nearest = jnp.where(leaves.gate, nearest, state.place)
        return after(leaves, *snapshots), type(state)(
            count, jnp.where(place >= 0, state.taken + 1, state.taken), nearest, snapshots
        )

    return staged(TreeFirst(init, prepare, sees_tree=False), where)


def _stored(p: Array, snapshot: Array) -> Array:
    return p.astype(snapshot.dtype)


def _mean(p: Array, snapshots: Sequence[Array], state: LawaState) -> Array:
    return _mean_with(p, snapshots, state.taken, state.place)


@jax.jit
@gtree.mixing
def _mean_with(p: Array, snapshots: Sequence[Array], taken: Array, place: Array) -> Array:
    """The mean of the snapshots, with the parameters in the place that they will take."""
    wide = widen(p)
    full = jnp.minimum(jnp.where(place >= 0, taken + 1, taken), len(snapshots))
    total = sum(
        jnp.where(place == i, wide, jnp.where(i < full, widen(x), 0))
        for i, x in enumerate(snapshots)
    )
    return jnp.where(full > 0, total / jnp.maximum(full, 1), wide).astype(p.dtype)


AVERAGES.add(LawaState, Averaged("lawa_params", lambda state: state.snapshots, _mean))
