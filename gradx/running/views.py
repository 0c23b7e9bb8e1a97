"""What a step of a transformation shows of itself: gradients, clips, the update, the noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.accumulate import MultiSteps, MultiStepsState, WeightedMultiStepsState
from gradx.combinators.chain import Contract, chain, named_chain
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import METRICS
from gradx.core.ranges import as_float
from gradx.inspection.hyperparams import hyperparams
from gradx.lift import mapped
from gradx.lowering.varying import varies_over
from gradx.numbers.sources import Array
from gradx.pieces.collectives import pmean, psum
from gradx.running.measures import Measures, Trees


class Seen(NamedTuple):
    """What was seen in a step, and the inner state after it."""

    trees: Trees
    state: State


class Gradients(NamedTuple):
    """Several gradients of the same parameters.

    Attributes:
      single: the mean of their squared norms.
      together: the squared norm of their mean.
      number: how many there are.
    """

    single: Array
    together: Array
    number: Array


@dataclass(frozen=True)
class View:
    """Looks into the steps of a transformation; each call of `update` is one."""

    tx: Contract
    where: str

    def numbers(self, state: State) -> dict[str, Array]:
        """The numbers in use, as far as the transformation tells them."""
        return hyperparams(state, tx=self.tx if isinstance(self.tx, Transform) else None)

    def clips(self, params: Params, state: State) -> bool:
        """Whether there is something that may clip the gradient."""
        return bool(_leading(self.tx, params, state)[1])

    def may_update(self, state: State) -> Any:
        """Whether the next call is a step, unless it is skipped, bool."""
        return True

    def has_updated(self, after: State, before: State) -> Any:
        """Whether the call between these states was a step, bool."""
        return True

    def run(self, updates: Updates, state: State, params: Params, extra: Mapping[str, Any]) -> Seen:
        update, new = core.with_extra_args(self.tx).update(updates, state, params, **extra)
        return Seen(_trees(self.tx, updates, state, params, extra, update), new)

    def check_noise(self) -> None:
        """Raises ValueError unless a step sees several gradients."""
        first: Any = next(iter(_elements(self.tx)), None)
        if not _is_made_by(first, pmean):
            raise ValueError(
                f"{self.where}: noise_scale compares several gradients of one step, and there is "
                f"one in {core.show(self.tx)}. Watch MultiSteps(…), or a chain that begins with "
                f"pmean(axis)."
            )
        given = dict(first.spec.arguments)
        if given.get("already_reduced") or any(a.said is not None for a in self._axes):
            raise ValueError(
                f"{self.where}: noise_scale needs gradients that differ on all devices and are "
                f"averaged in {core.show(first)}; leave out already_reduced and sharded."
            )

    @property
    def _axes(self) -> mapped.Axes:
        given: dict[str, Any] = dict(_elements(self.tx)[0].spec.arguments)
        return mapped.axes(given["axis_name"])

    def gradients(
        self, measures: Measures, updates: Updates, seen: Seen, squares: Array, before: State
    ) -> Gradients:
        """The gradients of the devices, before and after `pmean`."""
        names = {axis.name for axis in self._axes}
        arrays = filter(gtree.is_number, jax.tree.leaves(seen.trees.params))
        if any(names & varies_over(x) for x in arrays):
            raise ValueError(
                f"{self.where}: noise_scale compares whole gradients, and parameters are sharded "
                f"over {sorted(map(str, names))}, the axis of pmean."
            )
        number = 1
        for name in names:
            number *= jax.lax.psum(1, name)
        local = measures.square(updates, seen.trees.params)
        single = mapped.everywhere(jax.lax.pmean, local, self._axes, self.where)
        together = measures.square(seen.trees.gradient, seen.trees.params)
        return Gradients(single, together, as_float(number))


def _told(state: MultiStepsState | WeightedMultiStepsState) -> dict[str, Any]:
    names = ("mini_step", "gradient_step", "skip_state")
    return {name: getattr(state, name) for name in names}


METRICS.add(MultiStepsState, _told)
METRICS.add(WeightedMultiStepsState, _told)


class AccumulatedView(View):
    """Looks into the updates of `MultiSteps`; a call that only accumulates is no step."""

    tx: MultiSteps

    def clips(self, params: Params, state: State) -> bool:
        return bool(_leading(self.tx.inner_opt, params, state.inner_opt_state)[1])

    def may_update(self, state: State) -> Any:
        k = self._given["every_k_schedule"]
        if self._given.get("emit") is not None:
            return True  # only the call knows
        return state.mini_step >= (k(state.gradient_step) if callable(k) else k) - 1

    def has_updated(self, after: State, before: State) -> Any:
        return after.gradient_step != before.gradient_step

    def has_taken(self, after: State, before: State) -> Any:
        """Whether the gradient of the call was accumulated, bool: it may have been skipped."""
        return self.has_updated(after, before) | (after.mini_step != before.mini_step)

    def run(self, updates: Updates, state: State, params: Params, extra: Mapping[str, Any]) -> Seen:
        update, new = self.tx.update(updates, state, params, **extra)
        mean = new.acc_grads if jax.tree.leaves(new.acc_grads) else updates
        inner = self.tx.inner_opt, mean, state.inner_opt_state
        return Seen(_trees(*inner, params, extra, update), new)

    @property
    def _given(self) -> dict[str, Any]:
        assert self.tx.spec is not None
        return dict(self.tx.spec.arguments)

    def check_noise(self) -> None:
        if self._given["every_k_schedule"] == 1 or self._given.get("weight") is not None:
            raise ValueError(
                f"{self.where}: noise_scale compares several gradients of batches of one size: it "
                f"needs MultiSteps with more than one gradient an update, and without weights."
            )

    def added(self, measures: Measures, updates: Updates, params: Params, state: Any) -> Array:
        """The sum of the squared norms of the gradients that are accumulated, with one more."""
        begun = jnp.where(state.inner_state.mini_step == 0, 0.0, state.squares)
        return begun + measures.square(updates, params).astype(state.squares.dtype)

    def gradients(
        self, measures: Measures, updates: Updates, seen: Seen, squares: Array, before: State
    ) -> Gradients:
        number = as_float(before.mini_step + 1)
        together = measures.square(seen.trees.gradient, seen.trees.params)
        if not self._given.get("use_grad_mean", True):
            together = together / number.astype(together.dtype) ** 2
        return Gradients(squares / number.astype(squares.dtype), together, number)


def view_of(tx: Contract, where: str) -> View:
    return AccumulatedView(tx, where) if isinstance(tx, MultiSteps) else View(tx, where)


# ---------------------------------------------------------------- chains


def _is_made_by(tx: Any, *factories: Any) -> bool:
    spec = getattr(tx, "spec", None)
    return spec is not None and spec.factory in factories


def _elements(tx: Any) -> Sequence[Any]:
    """The transformations of a chain; none of anything else."""
    if not _is_made_by(tx, chain, named_chain):
        return ()
    given = dict(tx.spec.arguments).get("args", ())
    return [x if core.is_transform(x) else x[1] for x in given]


def _leading(tx: Any, params: Params, state: State) -> tuple[list[Part], list[Part]]:
    """The first parts of a chain: those that combine devices, and those that may clip then.

    A part that may clip keeps no arrays, and is not the last one, which makes the step.
    """
    parts = tx.parts(params, state)[:-1] if _elements(tx) else []
    combining = [*itertools.takewhile(lambda p: _is_made_by(p.transform, pmean, psum), parts)]
    return combining, [*itertools.takewhile(_keeps_scalars, parts[len(combining) :])]


def _keeps_scalars(part: Part) -> bool:
    return all(jnp.ndim(x) == 0 for x in jax.tree.leaves(part.state))


def _trees(
    tx: Contract,
    updates: Updates,
    state: State,
    params: Params,
    extra: Mapping[str, Any],
    update: Updates,
) -> Trees:
    """The gradient of a step, after what combines devices and then after what may clip."""
    combining, clipping = _leading(tx, params, state)

    def through(parts: Sequence[Part], g: Updates) -> Updates:
        for part in parts:
            inner = core.with_extra_args(part.transform)
            g = inner.update(g, part.state, params, **extra)[0]
        return g

    gradient = through(combining, updates)
    clipped = through(clipping, gradient) if clipping else None
    return Trees(gradient, clipped, update, params)
