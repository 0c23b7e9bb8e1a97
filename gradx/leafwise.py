"""A rule for one array, lifted to a transformation of pytrees.

The maths of an optimizer is written once, on one array::

    def update(g, slots, p, h):        # gradient, state arrays, parameter, numbers
        (velocity,) = slots
        velocity = h.decay * velocity + g
        return velocity, (velocity,)   # update, new state arrays

`leafwise` knows the rest: trees, `None` and masked leaves, paths, half precision, live and
scheduled numbers, and the Optax-shaped state. Rules that follow each other in a chain are run leaf
by leaf in one pass, and a pass is traced once for each distinct shape, not once for each leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradx import core, hyper, sources
from gradx import tree as gtree
from gradx.core import Params, State, Transform
from gradx.live import HyperparamsState
from gradx.sources import Array
from gradx.stage import (
    Call,
    Leaves,
    Numbers,
    Results,
    Rows,
    Slots,
    check_array,
    is_array,
    staged,
    widen,
)
from gradx.step import safe_increment

__all__ = ["leafwise"]


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule for one array, and what the lift has to know about it (see `leafwise`)."""

    update: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]]
    slots: Callable[[Array], Slots] | None
    state: Any
    hypers: hyper.Hypers
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None
    per_tree: Callable[[list[Array], Numbers], Mapping[str, Any]] | None
    flags: Mapping[str, Any]
    needs_params: bool
    where: str

    @property
    def counts(self) -> bool:
        return "count" in self.state._fields

    @property
    def sees_tree(self) -> bool:
        return self.per_tree is not None

    @property
    def fields(self) -> list[str]:
        return [f for f in self.state._fields if f != "count"]

    def init(self, params: Params) -> State:
        flat = gtree.flatten(params)
        for i, p in enumerate(flat.values):
            if is_array(p):
                check_array(p, flat, i, self.where, "parameter")
        if jax.tree.leaves(params):
            self.hypers.check_paths(gtree.array_paths(flat))
        made = [self._own_slots(p) if is_array(p) else None for p in flat.values]
        pairs = list(zip(flat.values, made, strict=True))
        trees = {
            name: flat.unflatten([p if slots is None else slots[i] for p, slots in pairs])
            for i, name in enumerate(self.fields)
        }
        zero = jnp.zeros((), jnp.int32)
        state = self.state(**trees, **({"count": zero} if self.counts else {}))
        own_count = zero if self.hypers.scheduled and not self.counts else None
        if own_count is None and not self.hypers.tunables:
            return state
        return HyperparamsState(own_count, self.hypers.initial(), state)

    def _own_slots(self, p: Any) -> Slots:
        """The slots of one leaf, in buffers of their own: donating the state must not free `p`."""
        wide = widen(p)
        slots = () if self.slots is None else self.slots(wide)
        if not isinstance(slots, tuple) or len(slots) != len(self.fields):
            raise ValueError(
                f"{self.where}: init must return a tuple of {len(self.fields)} slots for the "
                f"fields {self.fields} of {self.state.__name__}, also for one field."
            )
        return jax.tree.map(lambda s: jnp.array(s) if s is wide or s is p else s, slots)

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        if self.needs_params and leaves.params is None:
            raise ValueError(
                f"{self.where}: needs the parameters: call update(updates, state, params)."
            )
        outer = state if isinstance(state, HyperparamsState) else None
        inner = state if outer is None else outer.inner_state
        # By name and fields, not by class: a state of Optax's own class is welcome.
        if _kind(inner) != _kind(self.state):
            raise ValueError(
                f"{self.where}: got a state of type {type(inner).__name__} instead of "
                f"{self.state.__name__}. Was it made by another chain's init?"
            )
        columns = [
            gtree.flatten_like(leaves.flat, getattr(inner, f), f"{self.where}: the state's {f}")
            for f in self.fields
        ]
        count = inner.count if self.counts else None if outer is None else outer.count
        step = sources.Step(count, {} if outer is None else outer.hyperparams, extra, self.where)
        active = [i for i, u in enumerate(leaves.updates) if is_array(u)]
        group_of, groups = self.hypers.groups(leaves.flat, active)
        arrays = [leaves.updates[i] for i in active]
        numbers = [self._numbers(group, step, arrays) for group in groups]

        mine: dict[int, int] = {}  # leaf -> place of this rule in the leaf's row
        for i in active:
            mine[i] = len(rows[i])
            static, traced = numbers[group_of[i]]
            slots = tuple(column[i] for column in columns)
            rows[i].append(Call(self.update, static, traced, slots, self.needs_params))

        def finish(results: Results) -> State:
            trees = {
                name: leaves.flat.unflatten(
                    [results[i][mine[i]][k] if i in mine else old for i, old in enumerate(column)]
                )
                for k, (name, column) in enumerate(zip(self.fields, columns, strict=True))
            }
            new_count = None if count is None else safe_increment(count)
            new = type(inner)(**trees, **({"count": new_count} if self.counts else {}))
            if outer is None:
                return new
            return HyperparamsState(None if self.counts else new_count, outer.hyperparams, new)

        return finish

    def _numbers(
        self, group: Mapping[str, sources.Source], step: sources.Step, arrays: list[Any]
    ) -> tuple[tuple[tuple[str, Any, str], ...], dict[str, Array]]:
        """All that a group of leaves is given as `h`, split into static and traced."""
        h = dict(self.flags) | hyper.resolve(group, step)
        if self.per_step is not None:
            t: Any = None if step.count is None else safe_increment(step.count)
            h |= self.per_step(SimpleNamespace(**h), t)
        if self.per_tree is not None:
            h |= self.per_tree(arrays, SimpleNamespace(**h))
        arrays_of = jax.Array | np.ndarray | np.generic
        traced = {k: jnp.asarray(v) for k, v in h.items() if isinstance(v, arrays_of)}
        # Equal values of different kinds (True and 1.0, 0.0 and -0.0) are different programs.
        static = tuple((k, v, f"{type(v)}{v}") for k, v in h.items() if k not in traced)
        for name, value, _ in static:
            if not isinstance(value, Hashable):
                raise ValueError(
                    f"{self.where}: h.{name} is {core.show(value)}; flags and numbers must be "
                    f"hashable (a tuple, not a list) or arrays."
                )
        return static, traced


def _kind(state: Any) -> tuple[str, Any]:
    cls = state if isinstance(state, type) else type(state)
    return cls.__name__, getattr(cls, "_fields", None)


def leafwise(
    update: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]],
    *,
    init: Callable[[Array], Slots] | None = None,
    state: type[NamedTuple] | Any = optax.EmptyState,
    hypers: Mapping[str, Any] | None = None,
    ranges: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None = None,
    per_tree: Callable[[list[Array], Numbers], Mapping[str, Any]] | None = None,
    needs_params: bool = False,
) -> Transform:
    """Lifts a rule for one array to a transformation of trees.

    Args:
      update: `(g, slots, p, h) -> (u, slots)`, the rule. `g`, the slots and `p` are arrays of one
        leaf, in float32 or wider whatever they are stored in; `p` is `None` unless
        `needs_params`. `h` has every hyperparameter, flag and per-step number as an attribute.
        Write it as a function of the module, not a closure, so that equal programs share a trace.
      init: `p -> slots`, the state arrays of one leaf, in the order of the fields of `state`. A
        slot may be a tuple of arrays, where their number is an option of the rule.
      state: the named tuple of the public state. A field called `count` is kept by the lift (int32,
        the updates done so far); every other field becomes a tree like the parameters.
      hypers: name to what the user gave, a number or any other source.
      ranges: name to range, such as ``"[0, 1)"``, where `hyper.RANGES` has none or another one for
        the name.
      flags: hashable options for `update` that are no numbers: bools, strings, axes.
      per_step: `(h, t) -> numbers`, for what depends on the step but not on the leaf, such as a
        bias correction. `t` is 1 in the first update; it is `None` if nothing counts.
      per_tree: `(updates, h) -> numbers`, for what takes all leaves at once, such as a norm.
      needs_params: whether `update` reads `p`.

    Returns:
      The transformation. Its state has the structure, shapes and dtypes that it began with;
      updates come back in the gradients' dtypes.

    Raises:
      ValueError: for a number out of range; at `init` for a leaf that is no floating-point array;
        in `update` for missing parameters and for trees that do not match.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> from typing import Any, NamedTuple
      >>> class HeavyBallState(NamedTuple):
      ...     velocity: Any
      >>> def init(p):
      ...     return (jnp.zeros_like(p),)
      >>> def update(g, slots, p, h):
      ...     velocity = h.decay * slots[0] + g
      ...     return velocity, (velocity,)
      >>> @gradx.recorded
      ... def heavy_ball(decay: gradx.Hyper = 0.9) -> gradx.Transform:
      ...     return gradx.leafwise(
      ...         update, init=init, state=HeavyBallState, hypers={"decay": decay}
      ...     )
      >>> tx = heavy_ball(gradx.tunable(0.5))
      >>> tx
      heavy_ball(decay=tunable(0.5))
      >>> tx.init({"w": jnp.ones(2)}).inner_state
      HeavyBallState(velocity={'w': Array([0., 0.], dtype=float32)})
    """
    where = core.where()
    numbers = hyper.Hypers(hypers or {}, where, ranges)
    if per_tree is not None and numbers.varies_by_path:
        raise ValueError(f"{where}: takes one number for the whole tree, not by_path(…).")
    rule = Rule(update, init, state, numbers, per_step, per_tree, flags or {}, needs_params, where)
    return staged(rule, where)
