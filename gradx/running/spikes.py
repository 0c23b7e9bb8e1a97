"""A guard that skips steps whose loss or gradient is far larger than in the last steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import State, Transform
from gradx.core.known import METRICS
from gradx.core.meaning import Number, Option
from gradx.core.roots import sqrt
from gradx.lift.states import wrong_state
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array
from gradx.running.guards import Axis, FlagAfter, Loss, RestoreAfter, SnapshotEvery, guarded

__all__ = ["SpikesState", "skip_spikes"]


class SpikesState(NamedTuple):
    """What `skip_spikes` remembers, as the `judge` of its `SkipState`.

    Attributes:
      values: the last values of ``norm`` and ``loss``, the newest last, float32 or wider (window,).
      seen: how many of them have been seen, int32 ().
      bounds: the largest ``norm`` and ``loss`` that the last finite step was allowed, float32 or
        wider (); the largest number there is, until enough has been seen.
    """

    values: dict[str, Array]
    seen: Array
    bounds: dict[str, Array]


@METRICS.of(SpikesState)
def _metrics(state: SpikesState) -> Mapping[str, Array]:
    return {f"{name}_bound": bound for name, bound in state.bounds.items()}


@core.recorded
def skip_spikes(
    inner: Contract,
    *,
    window: Annotated[int, Option("\\(n\\), how many of the last steps are compared with")] = 128,
    sigmas: Annotated[
        float,
        Number("(0, inf)", "k", "how many standard deviations above the mean a spike begins"),
    ] = 6.0,
    loss: Loss = None,
    norm: Annotated[bool, Option("whether to look at the global norm of the gradients")] = True,
    flag_after: FlagAfter = None,
    restore_after: RestoreAfter = None,
    snapshot_every: SnapshotEvery = 100,
    axis_name: Axis = None,
) -> Transform:
    r"""Skips steps whose gradient norm or loss is a spike, far above those of the last steps.

    .. math:: u = 0 \text{ where } x > \bar x + k\,s(x) \text{ for } x = \lVert g \rVert
              \text{ or the loss}, \qquad u = T(g) \text{ elsewhere}

    Here \(\bar x\) is the mean of the last \(n\) values and \(s\) their standard deviation, with
    \(n - 1\) in its divisor. No step is a spike until \(n / 2\) values, and at least two, have been
    seen. Norms and losses that are not finite are always bad, as in `skip_nonfinite`, and never
    count among the last ones. In a bad step the updates are zero, and the inner state stays as it
    is, bit for bit.

    A spike counts among the last values, but not in its full size, or it would hide the next ones:
    as \(\bar x + \max(k, 6)\,s\) at most. Each one of a row of spikes raises the bound further, so
    a level that stays is accepted in the end. By default a norm that rises from 1 to 3 for good is
    accepted after about 10 skipped steps if \(s\) was 0.1, after 20 if it was 0.03, and after 124
    if all norms were equal; a rise to 100 takes about 30 steps more.

    Args:
      inner: \(T\), gradx's or Optax's; a whole optimizer.
      sigmas: A constant, on which the state does not depend: for another one, make the guard again.
      norm: With False only the loss decides, but a norm that is not finite is bad still.

    Raises:
      ValueError: `inner` is not a transformation, or combines gradients over an axis that is not
        named; a window of less than 2, or another number of steps of less than 1; neither `norm`
        nor `loss`; a loss that is not `from_call`; in `update`, no parameters where there is
        `restore_after`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.skip_spikes(gradx.sgd(0.1), window=4, sigmas=3.0)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 2.0, 1.0, 30.0, 2.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      ...     print(updates, bool(state.last_skipped))
      [-0.1] False
      [-0.2] False
      [-0.1] False
      [0.] True
      [-0.2] False

    For what goes back to a snapshot, see `skip_nonfinite`.

    Reference: the rule of OLMo-core, https://github.com/allenai/OLMo-core
    (``SkipStepOptimizer``), and of MaxText after it. Deviations: there a spike counts in its full
    size, so that one of 1e6 lets all of 1e5 pass while it is among the last values; the present
    value counts among the \(n / 2\), so that they begin one step earlier; and a NaN is accepted
    until then, and stays in the window, so that the steps after it are skipped.
    """
    where = core.where()
    names = ["norm"] * norm + ["loss"] * (loss is not None)
    if not names:
        raise ValueError(
            f"{where}: with norm=False there must be a loss to look at: loss=from_call(…)."
        )
    return guarded(
        inner,
        _Spikes(tuple(names), steps("window", window, 2), sigmas),
        flag_after=flag_after,
        restore_after=restore_after,
        snapshot_every=snapshot_every,
        loss=loss,
        axis_name=axis_name,
    )


_GROWS = 6.0  # with fewer sigmas, spikes at the bound might never raise it to a level that stays
_LEAST = float(jnp.finfo(jnp.float32).eps)


@dataclass(frozen=True)
class _Spikes:
    """A `Judge` of these names: ``norm``, ``loss`` or both."""

    names: tuple[str, ...]
    window: int
    sigmas: float | Array
    state_class = SpikesState

    def init(self, kind: Any) -> SpikesState:
        return SpikesState(
            values={name: jnp.zeros(self.window, kind) for name in self.names},
            seen=jnp.zeros((), jnp.int32),
            bounds={name: jnp.array(jnp.finfo(kind).max, kind) for name in self.names},
        )

    def check(self, state: State, where: str) -> None:
        found = {name: jnp.shape(x) for name, x in state.values.items()}
        if found != dict.fromkeys(self.names, (self.window,)):
            told = f"with values of the shapes {found}, instead of {list(self.names)} of the last "
            raise wrong_state(where, f"{told}{self.window} steps")

    def judged(
        self, state: State, seen: Mapping[str, Array], finite: Array
    ) -> tuple[Array, SpikesState]:
        new = {name: seen[name].astype(old.dtype) for name, old in state.values.items()}
        for x in new.values():  # float64 may overflow in the window
            finite &= jnp.isfinite(x)
        enough = state.seen >= max(2, (self.window + 1) // 2)
        good, values, bounds = finite, {}, {}
        for name, old in state.values.items():
            mean, deviation = _moments(old, state.seen)
            bound = _bound(mean, self.sigmas * deviation, enough)
            good &= ~(new[name] > bound)
            # Equal values have no deviation, from which the bound could grow.
            least = _LEAST * jnp.abs(jnp.where(mean == 0, new[name], mean))
            far = jnp.maximum(self.sigmas, _GROWS) * jnp.maximum(deviation, least)
            newest = jnp.minimum(new[name], _bound(mean, far, enough))
            values[name] = jnp.where(finite, jnp.append(old[1:], newest), old)
            bounds[name] = jnp.where(finite, bound, state.bounds[name])
        count = jnp.where(finite, jnp.minimum(state.seen + 1, self.window), state.seen)
        return good, type(state)(values, count.astype(jnp.int32), bounds)


def _bound(mean: Array, far: Array, enough: Array) -> Array:
    """The number so far above the mean; the largest one there is, until enough has been seen."""
    bound, most = (mean + far).astype(mean.dtype), jnp.finfo(mean.dtype).max
    return jnp.where(enough & (bound < most), bound, most)


def _moments(values: Array, seen: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of the last values that were seen."""
    valid = jnp.arange(values.size, dtype=seen.dtype) >= values.size - seen
    count = seen.astype(values.dtype)
    # Away from the newest one, so that equal values have exactly their mean, and no deviation.
    away = jnp.where(valid, values - values[-1], 0)
    shift = jnp.sum(away) / jnp.maximum(count, 1)
    squares = jnp.where(valid, (away - shift) ** 2, 0)
    return values[-1] + shift, sqrt(jnp.sum(squares) / jnp.maximum(count - 1, 1))
