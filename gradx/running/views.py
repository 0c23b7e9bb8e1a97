"""What a step of a transformation shows of itself: gradients, clips, the update, the noise."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.combinators.accumulate import MultiSteps
from gradx.combinators.chain import Contract, InOrder, chain, named_chain
from gradx.combinators.predicated import AsGiven
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.ranges import as_float
from gradx.inspection.hyperparams import hyperparams
from gradx.lift import mapped
from gradx.lowering.varying import varies_over
from gradx.numbers.live import tunable
from gradx.numbers.sources import Array
from gradx.pieces.clip import CLIPS
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
        return bool(_leading(Part("", self.tx, params, state)).clipping)

    def may_update(self, state: State) -> Any:
        """Whether the next call is a step, unless it is skipped, bool."""
        return True

    def has_updated(self, after: State, before: State) -> Any:
        """Whether the call between these states was a step, bool."""
        return True

    def run(self, updates: Updates, state: State, params: Params, extra: Mapping[str, Any]) -> Seen:
        update, new = core.with_extra_args(self.tx).update(updates, state, params, **extra)
        part = Part("", self.tx, params, state)
        return Seen(_trees(part, updates, params, extra, update), new)

    def check_noise(self) -> None:
        """Raises ValueError unless a step sees several gradients."""
        first: Any = _first(self.tx)
        if not _is_made_by(first, (pmean,)):
            raise ValueError(
                f"{self.where}: noise_scale compares several gradients of one step, and there is "
                f"one in {core.show(self.tx)}. Watch MultiSteps(…) with more than one gradient an "
                f"update, or a chain that begins with pmean(axis)."
            )
        given = dict(first.spec.arguments)
        if given.get("already_reduced") or any(a.said is not None for a in self._axes):
            raise ValueError(
                f"{self.where}: noise_scale needs gradients that differ on all devices and are "
                f"averaged in {core.show(first)}; leave out already_reduced and sharded."
            )

    @property
    def _axes(self) -> mapped.Axes:
        first: Any = _first(self.tx)
        given: dict[str, Any] = dict(first.spec.arguments)
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


@dataclass(frozen=True)
class AccumulatedView(View):
    """Looks into the updates of a `MultiSteps`; a call that only accumulates is no step.

    Attributes:
      steps: the `MultiSteps`: the transformation, or inside its guards and chains.
    """

    steps: MultiSteps

    def accumulation(self, state: State) -> Any:
        """The state of the `MultiSteps`."""
        within = _within(Part("", self.tx, None, state))
        return next(part.state for part in within if part.transform is self.steps)

    def _inner(self, params: Params, state: State) -> Part:
        return Part("", self.steps.inner_opt, params, self.accumulation(state).inner_opt_state)

    def clips(self, params: Params, state: State) -> bool:
        return bool(_leading(self._inner(params, state)).clipping)

    def may_update(self, state: State) -> Any:
        k = self._given["every_k_schedule"]
        if self._given.get("emit") is not None:
            return True  # only the call knows
        state = self.accumulation(state)
        return state.mini_step >= (k(state.gradient_step) if callable(k) else k) - 1

    def has_updated(self, after: State, before: State) -> Any:
        after, before = map(self.accumulation, (after, before))
        return after.gradient_step > before.gradient_step  # a guard may go back to a smaller one

    def has_taken(self, after: State, before: State) -> Any:
        """Whether the gradient of the call was accumulated, bool: it may have been skipped."""
        updated = self.has_updated(after, before)
        after, before = map(self.accumulation, (after, before))
        same = after.gradient_step == before.gradient_step
        return updated | (same & (after.mini_step > before.mini_step))

    def run(self, updates: Updates, state: State, params: Params, extra: Mapping[str, Any]) -> Seen:
        update, new = core.with_extra_args(self.tx).update(updates, state, params, **extra)
        mean = self.accumulation(new).acc_grads
        return Seen(_trees(self._inner(params, state), mean, params, extra, update), new)

    @property
    def _given(self) -> dict[str, Any]:
        assert self.steps.spec is not None
        return dict(self.steps.spec.arguments)

    def check_noise(self) -> None:
        if self._given.get("weight") is not None or _first(self.tx) is not self.steps:
            raise ValueError(
                f"{self.where}: noise_scale compares several gradients of batches of one size: it "
                f"needs MultiSteps without weights, and with nothing before it that changes them."
            )

    def added(self, measures: Measures, updates: Updates, params: Params, state: Any) -> Array:
        """The sum of the squared norms of the gradients that are accumulated, with one more."""
        begun = jnp.where(self.accumulation(state.inner_state).mini_step == 0, 0.0, state.squares)
        return begun + measures.square(updates, params).astype(state.squares.dtype)

    def gradients(
        self, measures: Measures, updates: Updates, seen: Seen, squares: Array, before: State
    ) -> Gradients:
        number = as_float(self.accumulation(before).mini_step + 1)
        together = measures.square(seen.trees.gradient, seen.trees.params)
        if not self._given.get("use_grad_mean", True):
            together = together / number.astype(together.dtype) ** 2
        return Gradients(squares / number.astype(squares.dtype), together, number)


def view_of(tx: Contract, where: str) -> View:
    found = _accumulation_in(tx)
    return View(tx, where) if found is None else AccumulatedView(tx, where, found)


# ---------------------------------------------------------------- inside chains and guards


def _is_made_by(tx: Any, factories: Collection[Any]) -> bool:
    spec = getattr(tx, "spec", None)
    if spec is not None and spec.factory is tunable:
        return _is_made_by(dict(spec.arguments)["value"], factories)
    return spec is not None and spec.factory in factories


def _inside(tx: Any) -> Sequence[Contract]:
    """The transformations of a chain, or the one that a wrapper gives the updates as they are."""
    parts = getattr(tx, "parts", None)
    if isinstance(parts, AsGiven):
        return [parts.inner]
    # What an optimizer is made of is its own affair.
    if isinstance(parts, InOrder) and _is_made_by(tx, (chain, named_chain)):
        return parts.inside
    return []


def _first(tx: Contract) -> Contract:
    """The transformation that sees the updates first."""
    inside = _inside(tx)
    return _first(inside[0]) if inside else tx


def _accumulation_in(tx: Contract) -> MultiSteps | None:
    """The first `MultiSteps` inside that takes more than one call to an update."""
    if isinstance(tx, MultiSteps) and not _inside(tx):
        return tx
    return next(filter(None, map(_accumulation_in, _inside(tx))), None)


def _parts(part: Part) -> list[Part]:
    """`_inside`, with the states."""
    tx: Any = part.transform
    return tx.parts(part.params, part.state) if _inside(tx) else []


def _within(part: Part) -> Iterator[Part]:
    """A part, and all inside it."""
    yield part
    for inner in _parts(part):
        yield from _within(inner)


# ---------------------------------------------------------------- clips


class Leading(NamedTuple):
    """The first parts of a chain, as far as they tell about the gradient.

    Attributes:
      combining: those that combine the gradients of devices.
      before: those between these and the first clip.
      clipping: the first clip, and those right behind it.
    """

    combining: list[Part]
    before: list[Part]
    clipping: list[Part]


def _leading(part: Part) -> Leading:
    parts = _opened(part)
    combining = [*itertools.takewhile(_combines, parts)]
    parts = parts[len(combining) :]
    first = next((i for i, part in enumerate(parts) if _clips(part)), len(parts))
    clipping = [*itertools.takewhile(_clips, parts[first:])]
    return Leading(combining, parts[:first] if clipping else [], clipping)


def _opened(part: Part) -> list[Part]:
    """The parts in order; a chain or a guard is one, unless something inside has to be seen."""
    if _clips(part):
        return [part]
    inner = [x for p in _parts(part) for x in _opened(p)]
    return inner if any(_clips(p) or _combines(p) for p in inner) else [part]


def _combines(part: Part) -> bool:
    return _is_made_by(part.transform, (pmean, psum))


def _clips(part: Part) -> bool:
    """Whether it is a clip, or made of nothing else, as one under a mask is."""
    tx: Any = part.transform
    if _is_made_by(tx, CLIPS) or getattr(tx.update, "__module__", "") == optax.clip.__module__:
        return True
    inner = tx.parts(part.params, part.state) if getattr(tx, "parts", None) else []
    return bool(inner) and all(map(_clips, inner))


def _trees(
    part: Part, updates: Updates, params: Params, extra: Mapping[str, Any], update: Updates
) -> Trees:
    """The gradient of a step, after what combines devices, and around the first clips."""

    def through(parts: Sequence[Part], g: Updates) -> Updates:
        for part in parts:
            inner = core.with_extra_args(part.transform)
            g = inner.update(g, part.state, params, **extra)[0]
        return g

    combining, before, clipping = _leading(part)
    gradient = through(combining, updates)
    if not clipping:
        return Trees(gradient, None, None, update, params)
    unclipped = through(before, gradient)
    return Trees(
        gradient, unclipped if before else None, through(clipping, unclipped), update, params
    )
