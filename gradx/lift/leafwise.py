"""A rule for one array, lifted to a transformation of pytrees.

A rule is the maths of an optimizer, written once, on one array::

    def update(g, s, p, h):  # gradient, state, parameter, numbers
        velocity = h.decay * s.velocity + g
        return velocity, s._replace(velocity=velocity)

`leafwise` does the rest: trees, `None` and masked leaves, paths, half precision, live and
scheduled numbers, and the Optax-shaped state (`rule` turns it into calls, and `passes` runs them).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import optax

from gradx import core
from gradx.core import Transform
from gradx.core.calls import checked
from gradx.core.kept import kept
from gradx.lift import mapped
from gradx.lift.passes import staged
from gradx.lift.rule import Facts, Rule
from gradx.lift.stages import Decided, Numbers, PerLeaf, Sums, Update, check_old_form
from gradx.numbers import hyper
from gradx.numbers.namespace import check_names
from gradx.numbers.sources import Array

__all__ = ["leafwise"]


@checked
def leafwise(
    update: Update,
    *,
    init: Callable[..., Mapping[str, Any]] | Mapping[str, Any] | None = None,
    state: type[NamedTuple] | Any = optax.EmptyState,
    hypers: Mapping[str, Any] | None = None,
    ranges: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    facts: Facts | None = None,
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None = None,
    measure: PerLeaf | None = None,
    per_tree: Callable[[Numbers, Sums], Decided] | None = None,
    per_leaf: PerLeaf | None = None,
    measure_init: Callable[[Array], Mapping[str, Any]] | None = None,
    scalars: Mapping[str, Any] | None = None,
    count: str | tuple[str, ...] = "count",
    whole_tree: Collection[str] | None = None,
    axis_name: Any = None,
    needs_params: bool = False,
) -> Transform:
    """Lifts a rule for one array to a transformation of trees, to write an optimizer.

    Args:
      update: the rule, `(g, s, p, h) -> (u, s)`. `g` and `p` are arrays of one leaf and `s` is
        `state` with the arrays of that leaf, as in ``s.mu``, in float32 or wider whatever they are
        stored in; `p` is `None` unless `needs_params`. `h` has every hyperparameter, flag and
        per-step number as an attribute. Returns the update and ``s._replace(…)``. Write it as a
        function of the module, not a closure, so that equal programs share a trace.
      init: the first state of one leaf, `p -> {name: array}`, or a function for each name,
        ``{"mu": jnp.zeros_like}``. A named tuple of functions makes several arrays for the rule,
        and several trees in the state. In place of an array there may be a tuple of them, if their
        number differs from leaf to leaf.
      state: the named tuple of the public state. The field `count` is kept by the lift (int32, the
        updates done so far), those in `scalars` are single numbers that `per_tree` changes; every
        other field becomes a tree like the parameters.
      hypers: name to the user's value, a number or any other source.
      ranges: name to range, such as ``"[0, 1)"``, for a name without a usual range
        (`gradx/core/vocabulary.py`) or with another one.
      flags: hashable options for `update` that are no numbers: bools, strings, axes.
      facts: facts about each leaf before the run, `(leaves, extra) -> [{name: value} or None, …]`,
        from ``leaves.paths`` and the shapes of ``leaves.values``. A dictionary adds names to `h`.
        None leaves the leaf alone. `init` gets the same dictionary as its second argument. `extra`
        are the extra arguments of `update`, and None in `init`.
      per_step: numbers that depend on the step but not on the leaf, such as a bias correction,
        `(h, t) -> numbers`. `t` is 1 in the first update; it is `None` if nothing counts.
      measure: numbers of one leaf, such as its squared norm, `(g, s, p, h) -> sums`. They are added
        up over all leaves before any is updated. `h` does not yet have what `per_tree` makes.
      per_tree: decides once for the whole tree, `(h, sums) -> (numbers, scalars)`: further numbers
        for `update`, and the new values of the scalars that change. Without `measure` it is also
        called in a step in which no leaf has a gradient.
      per_leaf: decides once for a leaf, by its norm, say, `(g, s, p, h) -> numbers`: further
        numbers for `update`.
      measure_init: numbers of one leaf when the state begins, such as the norm that the rule starts
        from, `p -> sums`. `init` is then given them as well, `(p, sums)`.
      scalars: the fields of `state` that are one number for the tree, with what each begins at: a
        number, or a function of the sums of `measure_init` over all leaves. `h` has their old
        values.
      count: the name of the field that counts the updates. Optax's states may have several, which
        are equal: `t` is made from the first, and schedules read the last.
      whole_tree: the hypers that `per_tree` reads, by default all. These may not be by path.
      axis_name: the mapped axis over which the leaves are sharded, inside `shard_map` or `pmap`, or
        several, or `sharded`: sums are then those over all devices. To reduce one leaf in `update`
        or `per_leaf`, give ``h.span`` to `gradx.lift.mapped.total`.
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
      >>> def update(g, s, p, h):
      ...     velocity = h.decay * s.velocity + g
      ...     return velocity, s._replace(velocity=velocity)
      >>> @gradx.recorded
      ... def heavy_ball(decay: gradx.Hyper = 0.9) -> gradx.Transform:
      ...     first = {"velocity": jnp.zeros_like}
      ...     hypers = {"decay": decay}
      ...     return gradx.leafwise(update, init=first, state=HeavyBallState, hypers=hypers)
      >>> tx = heavy_ball(gradx.tunable(0.5))
      >>> tx
      heavy_ball(decay=tunable(0.5))
      >>> tx.init({"w": jnp.ones(2)}).inner_state
      HeavyBallState(velocity={'w': Array([0., 0.], dtype=float32)})
    """
    where = core.where()
    check_names(where, ranges, hypers=hypers, flags=flags, scalars=scalars)
    check_old_form(where, update, measure, per_leaf)
    if facts is not None and measure_init is not None:
        raise ValueError(f"{where}: init is given facts or what measure_init measures; give one.")
    numbers = hyper.Hypers(hypers or {}, where, ranges)
    if per_tree is not None:
        numbers.check_whole_tree(whole_tree)
    rule = Rule(
        update=update,
        first=init,
        state_class=state,
        hypers=numbers,
        facts=facts,
        per_step=per_step,
        measure=measure,
        per_tree=per_tree,
        per_leaf=per_leaf,
        measure_init=measure_init,
        scalars=scalars or {},
        count=(count,) if isinstance(count, str) else count,
        whole_tree=whole_tree,
        flags=kept(dict(flags or {})),
        axes=mapped.axes(axis_name),
        needs_params=needs_params,
        where=where,
    )
    return staged(rule, where)
