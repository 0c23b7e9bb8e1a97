"""Norms, ratios and numbers of a run, measured every few steps and kept in the state.

A watched step runs the transformation twice: under a conditional from the old state, for what is
measured, and then for its updates as in any other step. Norms of the updates themselves would be
cheaper to read, but for this they would have to be written, in every step: AdamW moves 28 bytes a
parameter, and would move 40. The conditional reads 16, or 22 on TPUs
(`python -m benchmarks --study watch`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import AsGiven, check_inner
from gradx.core import Count, Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import METRICS
from gradx.core.ranges import as_float
from gradx.core.updates import safe_increment
from gradx.lift import mapped
from gradx.lift.states import check_keys, check_state, need_params
from gradx.lowering.conditional import choose_tree, if_open, rarely
from gradx.lowering.order import once_stored
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array
from gradx.running.measures import Measures
from gradx.running.views import AccumulatedView, Gradients, View, view_of

__all__ = ["WatchState", "watch"]

# Above it two norms differ by more than the rounding of their sums.
ROUNDING = 1e-5

# The noise is averaged over about as many watched steps.
MEMORY = 10


class WatchState(NamedTuple):
    """The state of `watch`.

    Attributes:
      count: the updates so far, int32 ().
      measurements: name to what was measured in the last watched step, float32 or wider ().
      squares: the sum of the squared norms of the gradients accumulated so far, float32 or wider
        (); `()` where the noise is not measured, or not from accumulated gradients.
      inner_state: the inner state.
    """

    count: Count
    measurements: dict[str, Array]
    squares: Any
    inner_state: Any


METRICS.add(WatchState, lambda state: state.measurements)


@core.recorded
def watch(
    inner: Contract,
    every: int = 10,
    *,
    groups: Any = None,
    noise_scale: bool = False,
    axis_name: Any = None,
) -> Transform:
    r"""Measures a transformation in every few steps, for `metrics`; its updates stay the same.

    .. math:: u = T(g), \qquad \text{measured where } n \mid t, \qquad t = 0, 1, \ldots

    Place it around a whole optimizer, clips included. What it measures:

    * ``gradient_norm``, ``update_norm``, ``param_norm``, and ``update_ratio``, the second over the
      third, 0 where that is 0. If the chain begins with `pmean` or `psum`, the gradient is what
      these make of it.
    * ``clipped_norm``: the norm behind the first clip of a chain, and clips right behind it.
      ``clip_rate``: the share of the watched steps in which they made the norm smaller. They are
      there only if there is a clip.
    * ``unmoved``: the share of the parameters that stay as they are, bit for bit, in their dtype.
    * the numbers in use, by the names of `hyperparams`: also a scheduled learning rate.

    The first step is watched; before it, what is measured is NaN. In a step that is not watched,
    nothing is calculated, and no array is read for this. A watched step calculates the update
    twice, so an inner transformation with a line search calls its function twice.

    It looks into chains, and through wrappers that give what they wrap the updates as they are,
    such as `skip_nonfinite`. Around `MultiSteps`, or what has it inside, the steps are its updates,
    the gradient is the mean (or sum) that it has accumulated, and clips are those of its inner
    chain.

    Args:
      inner: the transformation, gradx's or Optax's. Only gradx's tell their constants, and only
        in chains of gradx can clips be told apart, Optax's among them too.
      every: \(n\), a whole number of at least 1.
      groups: labels for norms, ratios and ``unmoved`` of parts of the tree, as in
        ``update_ratio/attention``: `by_path` with labels, a tree of labels like the parameters or a
        prefix of it, or a function that makes one. A leaf with the label None is in no group.
      noise_scale: measure the simple noise scale, too: the batch size from which on a larger batch
        hardly improves the gradient, in units of the batch of one gradient. It needs several
        gradients in a step: from `MultiSteps`, or from a chain that begins with `pmean`. With
        ``noise_variance`` \(\mathrm{tr}\,\Sigma\) and ``noise_signal`` \(|G|^2\), both averaged
        over about ten watched steps, it is their ratio; infinite while noise hides the gradient.
      axis_name: the mapped axis over which leaves are sharded, inside `shard_map` or `pmap`, or
        several, or `sharded`, which names the sharded leaves where types do not. Under `jit` with
        sharded arrays it is not needed.

    Raises:
      ValueError: `inner` is not a transformation; `every` is not a whole number of at least 1;
        there are not several gradients to find the noise scale from; in `update`, without the
        parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> chain = gradx.chain(gradx.clip_by_global_norm(1.0), gradx.sgd(0.5))
      >>> tx = gradx.watch(chain, every=10)
      >>> params = jnp.array([4.0, 3.0])
      >>> updates, state = tx.update(jnp.array([0.0, 5.0]), tx.init(params), params)
      >>> for name, value in gradx.metrics(state).items():
      ...     print(name, value)
      clip_rate 1.0
      clipped_norm 1.0
      gradient_norm 5.0
      learning_rate 0.5
      max_norm 1.0
      param_norm 5.0
      unmoved 0.5
      update_norm 0.5
      update_ratio 0.1

    Reference: the noise scale of McCandlish et al., *An empirical model of large-batch training*,
    https://arxiv.org/abs/1812.06162, appendix A.1.
    """
    where = core.where()
    check_inner(inner, where)
    view = view_of(inner, where)
    if noise_scale:
        view.check_noise()
    measures = Measures(where, groups, mapped.axes(axis_name))
    watching = _Watching(inner, steps("every", every, 1), view, measures, noise_scale, where)
    return Transform(watching.init, watching.update, parts=AsGiven(inner))


@dataclass(frozen=True)
class _Watching:
    """The work of `watch`, which has checked the arguments."""

    inner: Contract
    every: int
    view: View
    measures: Measures
    noise: bool
    where: str

    def init(self, params: Params) -> WatchState:
        state = self.inner.init(params)
        clips = self.view.clips(params, state)
        names = [*self.measures.names(params, clips), *["clip_rate"] * clips, *_NOISE * self.noise]
        numbers = map(gtree.as_number, jax.tree.leaves(params))
        kind = gtree.wide(*(jnp.result_type(x) for x in numbers if gtree.is_inexact(x)))
        real = jnp.finfo(kind).dtype
        return WatchState(
            count=jnp.zeros((), jnp.int32),
            measurements={
                **{name: jnp.full((), jnp.nan, real) for name in names},
                **{name: jnp.array(x, real) for name, x in self.view.numbers(state).items()},
            },
            squares=() if self._adding is None else jnp.zeros((), real),
            inner_state=state,
        )

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(state, WatchState, self.where)
        need_params(params, self.where)
        updates = jax.tree.map(gtree.as_number, updates)
        given = jax.tree.map(_as_seen, (updates, state, params, extra))
        squares = self._squares(given)
        measurements = self._measurements(given, squares)
        # The conditional comes first; then the step may overwrite what it has read.
        updates = once_stored(updates, measurements["param_norm"])
        before, inner = state.inner_state, core.with_extra_args(self.inner)
        updates, after = inner.update(updates, before, params, **extra)
        if self._adding is not None:
            squares = choose_tree(self._adding.has_taken(after, before), squares, state.squares)
        updated = self.view.has_updated(after, before)
        count = jnp.where(updated, safe_increment(state.count), state.count)
        return updates, type(state)(count, measurements, squares, after)

    @property
    def _adding(self) -> AccumulatedView | None:
        """The view, if the squares of several calls are to be added up."""
        return self.view if self.noise and isinstance(self.view, AccumulatedView) else None

    def _is_watched(self, state: Any) -> Array:
        watched: Array = state.count % self.every == 0
        return watched

    def _squares(self, given: tuple[Updates, Any, Params, Any]) -> Any:
        adding, (updates, state, params, _) = self._adding, given
        if adding is None:
            return state.squares
        watched = self._is_watched(state)

        def added() -> Any:
            one_more = adding.added(self.measures, updates, params, state)
            return if_open(watched, one_more, state.squares)

        return rarely(watched, added, lambda: state.squares, given)

    def _measurements(
        self, given: tuple[Updates, Any, Params, Any], squares: Any
    ) -> dict[str, Array]:
        """The new measurements, or outside a watched step those of the last one."""
        updates, state, params, extra = given
        old, before = state.measurements, state.inner_state
        due = self._is_watched(state) & self.view.may_update(before)

        def measure() -> dict[str, Array]:
            seen = self.view.run(updates, before, params, extra)
            values = self.view.numbers(seen.state) | self.measures.values(seen.trees)
            unclipped = values.pop("unclipped_norm", values["gradient_norm"])
            beside = ["clip_rate"] * ("clipped_norm" in values) + _NOISE * self.noise
            check_keys(old, [*values, *beside], self.where)
            times = as_float(state.count // self.every + 1)
            if "clipped_norm" in values:
                below = values["clipped_norm"] < (1 - ROUNDING) * unclipped
                values["clip_rate"] = _mean(old["clip_rate"], below, 1 / times)
            if self.noise:
                several = self.view.gradients(self.measures, updates, seen, squares, before)
                values |= _noise(several, old, jnp.maximum(1 / times, 1 / MEMORY))
            new = {name: values[name].astype(x.dtype) for name, x in old.items()}
            new = choose_tree(self.view.has_updated(seen.state, before), new, old)
            chosen: dict[str, Array] = if_open(due, new, old)
            return chosen

        found: dict[str, Array] = rarely(due, measure, lambda: old, given)
        return found


def _as_seen(x: Any) -> Any:
    """The same array as a mere observation, which has no derivative."""
    floating = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)
    return jax.lax.stop_gradient(x) if floating else x


def _mean(old: Array, new: Array, share: Array) -> Array:
    """The average, with this share of a new number; NaN is that of none."""
    new = as_float(new).astype(old.dtype)
    return jnp.where(jnp.isnan(old), new, old + share.astype(old.dtype) * (new - old))


_NOISE = ["noise_scale", "noise_variance", "noise_signal"]


def _noise(several: Gradients, old: dict[str, Array], share: Array) -> dict[str, Array]:
    """Estimates without bias from two sizes of batches, 1 and n, averaged before they are divided.

    The mean of n gradients has the squared norm |G|² + tr Σ / n, on average.
    """
    single, together, n = (x.astype(old["noise_scale"].dtype) for x in several)
    # A schedule of `MultiSteps` may say 1, and a NaN would stay in the averages.
    usable = (n > 1) & jnp.isfinite(single) & jnp.isfinite(together)

    def mean(name: str, new: Array) -> Array:
        before = old[name]
        return jnp.where(usable, _mean(before, new / jnp.maximum(n - 1, 1), share), before)

    variance = mean("noise_variance", n * (single - together))
    signal = mean("noise_signal", n * together - single)
    some = signal > 0
    scale = jnp.where(some, jnp.maximum(variance, 0) / jnp.where(some, signal, 1.0), jnp.inf)
    scale = jnp.where(jnp.isnan(signal), signal, scale)
    return dict(zip(_NOISE, (scale, variance, signal), strict=True))
