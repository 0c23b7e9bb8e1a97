"""A rule for one matrix, lifted to a transformation of pytrees.

`matrixwise` is `leafwise` for a rule that needs a whole matrix: a polar factor, a product with a
preconditioner. A leaf may hold a matrix in any of its axes, or many. Matrices of one shape, from
all leaves, are traced once, so that a thousand of them cost one compilation. They are stacked where
that is faster, and devices may share them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import State, Transform
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.kept import kept
from gradx.lift.batching import How, together
from gradx.lift.matrices import Matrix, check_paths, only_matrices
from gradx.lift.passes import check_array, check_leaf, give, staged, widen
from gradx.lift.rule import Rule
from gradx.lift.sharing import (
    Share,
    Sharing,
    batches,
    check_share,
    initial_state,
    partition_of,
    sharers,
)
from gradx.lift.stages import (
    Call,
    Decided,
    LeafState,
    Leaves,
    Made,
    Numbers,
    Results,
    Rows,
    Sums,
    Update,
    check_old_form,
)
from gradx.lowering.conditional import choose_tree, if_open, rarely
from gradx.lowering.varying import varies_over
from gradx.numbers import hyper
from gradx.numbers.counting import steps
from gradx.numbers.live import own_state
from gradx.numbers.namespace import check_names
from gradx.numbers.sources import Array

__all__ = ["matrixwise"]


@dataclass(frozen=True, eq=False, kw_only=True)
class MatrixRule(Rule):
    """A rule for one matrix, with all that the lift needs (see `matrixwise`)."""

    choice: Any
    name: str
    like_leaf: Mapping[str, Any]  # fields in the leaf's own shape, with their dtypes
    either_way: bool
    share: Sharing
    how: How
    sees_tree = True

    @functools.cached_property
    def several(self) -> Mapping[str, Any]:
        like_leaf = self.like_leaf.items()
        return {name: type(kind) for name, kind in like_leaf if isinstance(kind, tuple)}

    def seen(self, flat: gtree.Flat) -> list[Matrix | None]:
        """Each leaf as matrices; None for a leaf that is None."""
        found = only_matrices(self.choice, flat, self.where, self.name)
        return [m.turned() if m is not None and self.either_way else m for m in found]

    def _first_states(
        self, flat: gtree.Flat, sums: Sequence[Any]
    ) -> list[Mapping[str, Any] | None]:
        check_paths(self.choice, flat, self.where)
        pairs = zip(flat.values, self.seen(flat), strict=True)
        return [None if m is None else self._state_of(p, m) for p, m in pairs]

    def _state_of(self, p: Any, m: Matrix) -> Mapping[str, Any]:
        wide = widen(p)
        names = [name for name in self.fields if name not in self.like_leaf]

        def first(wide: Array) -> dict[str, Any]:
            made = jax.vmap(partial(self.first_arrays, names))(m.stack(wide))
            return {name: m.kept(x) for name, x in made.items()}

        own = initial_state(self._sharers(wide), first, wide)
        zeros = {name: _zeros(wide, kind) for name, kind in self.like_leaf.items()}
        return {**own, **zeros}

    def _sharers(self, p: Array) -> Share | None:
        """The devices among which a new state is cut. If `share` is given, it is not cut."""
        return None if self.share else sharers(self.share, [p], self.where)

    def step_of(self, state: State) -> Any:
        """The updates done before this one, if `renew` runs in some steps only."""
        return None if self.how.renew is None else getattr(own_state(state), self.count_fields[0])

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        own: Rows = [[] for _ in leaves.updates]
        finish = super().begin(leaves, state, extra, own)
        seen = leaves.aligned(self.seen(gtree.flatten(leaves.tree)))
        calls = {i: call for i, row in enumerate(own) for call in row if isinstance(call, Call)}
        made = self._made(leaves, calls, seen, self.step_of(state))
        for i, (u, _) in made.items():
            give(rows[i], Made(u, dtype=jnp.result_type(leaves.updates[i])))
        new = finish([(made[i][1],) if i in made else () for i in range(len(own))])
        return lambda results: new

    def _made(
        self, leaves: Leaves, calls: Mapping[int, Call], seen: Sequence[Matrix | None], t: Any
    ) -> dict[int, tuple[Array, LeafState]]:
        """The update and the new state of each leaf."""
        groups: dict[Any, list[int]] = {}
        for i, call in calls.items():
            g, p = leaves.updates[i], leaves.params[i] if leaves.params is not None else None
            check_array(g, leaves.flat, i, self.where, "update")
            check_leaf(leaves.flat, i, self.where, g, p, [call])
            self._check_state(leaves.flat.paths[i], g, call.state)
            m: Any = seen[i]
            arrays = jax.tree.leaves((g, p, call.state))
            kinds = tuple((jnp.result_type(x), varies_over(x)) for x in arrays)
            groups.setdefault((id(call.traced), m.rows, m.columns, kinds), []).append(i)

        def largest_part(members: list[int]) -> float:
            m: Any = seen[members[0]]
            sizes = [jnp.size(x) for x in jax.tree.leaves(calls[members[0]].state)]
            return max(sizes, default=0) / max(m.shape[0], 1)

        # The turns of one shape begin where those of another end, so that no step has them all. The
        # largest bases cost most. They come first, so that they are in different steps.
        in_turn = sorted(groups.values(), key=largest_part, reverse=True)

        # Inside the conditional the gate is open, or under `vmap` perhaps only another one's.
        choose = if_open if leaves.conditional else choose_tree

        def work() -> list[list[tuple[Array, LeafState]]]:
            done: list[list[tuple[Array, LeafState]]] = []
            turn = 0
            for members in in_turn:
                made = self._group(leaves, calls, seen, members, t, turn)
                if leaves.gate is not None:
                    pairs = zip(members, made, strict=True)
                    made = [(u, choose(leaves.gate, s, calls[i].state)) for i, (u, s) in pairs]
                done.append(made)
                if self.how.staggered:
                    turn += sum(m.shape[0] for m in (seen[i] for i in members) if m is not None)
            return done

        def keep() -> list[list[tuple[Array, LeafState]]]:
            return [
                [(widen(leaves.updates[i]), calls[i].state) for i in members] for members in in_turn
            ]

        given = (leaves.updates, leaves.params, [call.state for call in calls.values()])
        done = (
            work()
            if leaves.gate is None or not leaves.conditional
            else rarely(leaves.gate, work, keep, given)
        )
        pairs = zip(in_turn, done, strict=True)
        return {i: one for members, made in pairs for i, one in zip(members, made, strict=True)}

    def _check_state(self, path: str, g: Any, state: LeafState) -> None:
        for name in self.like_leaf:
            kept = jax.tree.leaves(getattr(state, name))
            if shapes := {jnp.shape(x) for x in kept} - {jnp.shape(g)}:
                raise ValueError(
                    f"{self.where}: at {path!r} the update has shape {jnp.shape(g)} and the "
                    f"state's {name} has shape {shapes.pop()}. Was it made for other parameters?"
                )

    def _group(
        self,
        leaves: Leaves,
        calls: Mapping[int, Call],
        seen: Sequence[Matrix | None],
        members: Sequence[int],
        t: Any,
        turn: int,
    ) -> list[tuple[Array, LeafState]]:
        call = calls[members[0]]
        gs = [leaves.updates[i] for i in members]
        layouts = tuple((seen[i], jnp.shape(g)) for i, g in zip(members, gs, strict=True))
        how = self.how._replace(share=sharers(self.share, gs, self.where))
        if how.share is not None:
            counts = [m.shape[0] if m else 0 for m, _ in layouts]
            kinds = list(zip(layouts, map(partition_of, gs), strict=True))
            how = how._replace(batches=batches(how.share, counts, kinds))
        flags = tuple(name in self.like_leaf for name in self.state_class._fields)
        ps = None
        if self.needs_params and leaves.params is not None:
            ps = [leaves.params[i] for i in members]
        try:
            made = together(
                (self.update, call.static, layouts, flags, how),
                (call.traced, t, jnp.int32(turn)),
                gs,
                ps,
                [calls[i].state for i in members],
            )
        except Exception as error:
            paths = gtree.listed([leaves.flat.paths[i] for i in members], 3)
            error.add_note(f"This was in {self.where}, at {paths}.")
            raise
        return list(made)


def _zeros(p: Array, kind: Any) -> Any:
    if isinstance(kind, tuple):
        return type(kind)(*(_zeros(p, one) for one in kind))
    if kind == "real":
        return jnp.zeros_like(p.real)
    return jnp.zeros_like(p, dtype=None if jnp.iscomplexobj(p) else kind)


@checked
def matrixwise(
    update: Update,
    *,
    init: Callable[[Array], Mapping[str, Any]] | Mapping[str, Any] | None = None,
    state: type[NamedTuple] | Any = optax.EmptyState,
    like_leaf: Mapping[str, Any] | None = None,
    hypers: Mapping[str, Any] | None = None,
    ranges: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None = None,
    per_tree: Callable[[Numbers, Sums], Decided] | None = None,
    scalars: Mapping[str, Any] | None = None,
    count: str = "count",
    whole_tree: Collection[str] | None = None,
    needs_params: bool = False,
    axes: Any = None,
    axes_name: str = "axes",
    either_way: bool = False,
    renew: Callable[[Any, Numbers], Any] | None = None,
    start: Callable[[Any, Numbers], Any] | None = None,
    gather: Callable[[Array, Any, Any, Numbers], Any] | None = None,
    every: int = 1,
    staggered: bool = False,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Lifts a rule for one matrix to a transformation of trees, to write a matrix optimizer.

    Args:
      update: the rule, `(g, s, p, h) -> (u, s)`. `g` and `p` are matrices (rows, columns) in
        float32 or wider; `p` is `None` unless `needs_params`. `s` is `state` with the arrays of
        this matrix, as in ``s.mu``, and ``s._replace(…)`` is returned. `h` has every
        hyperparameter, flag and number of the step. Write it as a function of the module, not a
        closure.
      init: the first state of one matrix, `p -> {name: array}`, of any shapes, by the names of the
        fields of `state` that are not in `like_leaf`; or a function for each name. The state of a
        leaf that is a stack of matrices has a first axis that counts them.
      state: the named tuple of the public state, as for `leafwise`.
      like_leaf: name to dtype, for fields that have the shape of the leaf and begin at zero; the
        rule sees them as matrices, like the leaf itself. None is the leaf's dtype, at least
        float32; ``"real"`` is that without an imaginary part. A named tuple of dtypes is one of
        several arrays for the rule, and one of several trees in the state.
      hypers, ranges, flags, per_step, per_tree, scalars, count, whole_tree, needs_params: as for
        `leafwise`.
      axes: which leaves are matrices, in which axes: a `MatrixAxes` for all leaves, a tree of them,
        a function that makes one from the parameters, or `by_path`. Without it every leaf must have
        two axes.
      axes_name: the name that errors give this argument.
      either_way: whether the update of a transposed matrix is the transposed update. The rule is
        then only given matrices with at least as many columns as rows, and more in one stack.
      renew: expensive work for some steps only, such as an eigendecomposition, `(s, h) -> s`. It
        runs after `update`, under a real conditional, in the steps \(t = k, 2k, \ldots\) where the
        first is 0.
      start: runs after `update` in step 0 instead, `(s, h) -> s`; by default `renew`.
      gather: runs before `renew`, for an `update` that reads what `renew` has made,
        `(g, s, p, h) -> s`: with it the order is `gather`, `renew`, `update`.
      every: the steps from one `renew` to the next, \(k \ge 1\).
      staggered: renew a \(k\)-th part of the matrices of each shape in every step, instead of all
        of them in every \(k\)-th, so that no step takes longer than others.
      chunk: how many matrices of a stack to work on at a time, which bounds the memory. None: all
        of a shape, on CPUs as many as a cache holds; and large leaves one by one.
      share: the devices that share the matrices: ``Share(mesh, axis)``, False for none, or by
        default those of the mesh in scope (`jax.set_mesh`). Each of \(n\) devices then has an
        \(n\)-th of the matrices of a shape, rounded up, and what the state keeps for a matrix
        begins cut among them. Inside `shard_map`, and with explicit axes where all leaves are
        whole, nothing is shared. With `staggered` a device renews a part of its own.

    Returns:
      The transformation. Its updates come back in the gradients' dtypes; what follows it in a chain
      is given them in float32 or wider.

    Raises:
      ValueError: for a number out of range, a chunk or mesh that cannot be, fields that the state
        has not; at `init`, for a leaf that is no matrix, with its path; at `update`, for a share
        that the mesh in scope has not.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> def rule(g, s, p, h):  # divides a matrix by its largest singular value
      ...     return g / jnp.linalg.norm(g, ord=2), s
      >>> tx = gradx.matrixwise(rule)
      >>> g = {"w": 2 * jnp.eye(2)}
      >>> tx.update(g, tx.init(g))[0]["w"]
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    where = core.where()
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"{where}: chunk must be a whole number from 1 on, got {chunk!r}.")
    check_share(share, where)
    if unknown := set(like_leaf or {}) - set(state._fields):
        raise ValueError(f"{where}: like_leaf has {sorted(unknown)}, state has {state._fields}.")
    if renew is None and (start, gather, every, staggered) != (None, None, 1, False):
        raise ValueError(f"{where}: start, gather, every and staggered are about renew: give it.")
    if renew is not None and count not in state._fields:
        raise ValueError(
            f"{where}: renew needs a state with the field {count!r}, to know the step."
        )
    check_names(where, ranges, hypers=hypers, flags=flags, scalars=scalars)
    check_old_form(where, update, renew, start, gather)
    numbers = hyper.Hypers(hypers or {}, where, ranges)
    if per_tree is not None:
        numbers.check_whole_tree(whole_tree)
    like_leaf = like_leaf or {}
    rule = MatrixRule(
        update=update,
        first=init,
        state_class=state,
        hypers=numbers,
        per_step=per_step,
        per_tree=per_tree,
        scalars=scalars or {},
        count=(count,),
        whole_tree=whole_tree,
        flags=kept(dict(flags or {})),
        needs_params=needs_params,
        where=where,
        choice=axes,
        name=axes_name,
        like_leaf=like_leaf,
        either_way=either_way,
        share=share,
        how=How(
            chunk=chunk,
            renew=renew,
            start=start,
            gather=gather,
            every=steps("every", every, 1),
            staggered=staggered,
        ),
    )
    return staged(rule, where)
