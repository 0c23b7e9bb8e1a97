"""Matrices of one shape, stacked and worked on together, by one device or by several."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx import trees as gtree
from gradx.lowering.conditional import choose, either, rarely
from gradx.lowering.stacks import alone_or_stacked, hidden, some_at_a_time
from gradx.matrices import Matrix
from gradx.names import namespace, reading, suited
from gradx.sources import Array
from gradx.stage import Numbers, Slots, widen

__all__ = ["Share"]

NumbersOf = Callable[[Any], Numbers]  # what a function of the rule, the argument, reads


class Share(NamedTuple):
    """Devices that share the matrices: each works on a part of them, and the results are gathered.

    Attributes:
      mesh: the mesh whose devices share.
      axis: the axis of the mesh, or several.

    Example:
      >>> import gradx, jax
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> gradx.Share(mesh, "data").size
      1
    """

    mesh: jax.sharding.Mesh
    axis: str | tuple[str, ...]

    @property
    def size(self) -> int:
        """How many devices share."""
        axes = (self.axis,) if isinstance(self.axis, str) else self.axis
        return math.prod(self.mesh.shape[name] for name in axes)

    def placed(self, tree: Any, spec: jax.sharding.PartitionSpec) -> Any:
        """The arrays as `spec` says, where the mesh wants to be told; else XLA finds out."""
        if jax.sharding.AxisType.Explicit not in self.mesh.axis_types:
            return tree
        return jax.sharding.reshard(tree, jax.sharding.NamedSharding(self.mesh, spec))


class How(NamedTuple):
    """How the matrices of one shape are run through; it is part of a program."""

    chunk: int | None = None
    share: Share | None = None
    renew: Callable[[Slots, Numbers], Slots] | None = None
    start: Callable[[Slots, Numbers], Slots] | None = None
    every: int = 1
    staggered: bool = False
    gather: Callable[[Array, Slots, Any, Numbers], Slots] | None = None


def check_share(share: Share | None, where: str) -> None:
    if share is None:
        return
    names = getattr(getattr(share, "mesh", None), "axis_names", None)
    if names is None:
        raise ValueError(f"{where}: share must be Share(mesh, axis), got {core.show(share)}.")
    wanted = (share.axis,) if isinstance(share.axis, str) else share.axis
    known = isinstance(wanted, tuple) and all(name in names for name in wanted)
    if not known or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"{where}: share has the axis {share.axis!r}, and must have one of the axes "
            f"{list(names)} of its mesh, or a tuple of several."
        )


@functools.partial(jax.jit, static_argnums=0)
def together(
    program: Any, numbers: Any, gs: list[Array], ps: list[Array] | None, slots: list[Slots]
) -> list[tuple[Array, Slots]]:
    """The rule on all matrices of one shape; updates are in float32 or wider.

    They are stacked, which is quickly compiled, and easily shared; or, where that is faster and
    they are not shared, done leaf by leaf.
    """
    _, _, ((m, _), *more), _, how = program
    if not more or how.share is not None:
        return _stacked(program, numbers, gs, ps, slots)
    apart, stacked = (functools.partial(way, program) for way in (_apart, _stacked))
    size, renewed = m.rows * m.columns, how.renew is not None
    return alone_or_stacked(size, apart, stacked, numbers, gs, ps, slots, renewed=renewed)


def _apart(
    program: Any,
    begin: Callable[[Array, Array], Array],
    numbers: Any,
    gs: list[Array],
    ps: list[Array] | None,
    slots: list[Slots],
) -> list[tuple[Array, Slots]]:
    rule, static, layouts, like_leaf, how = program
    made: list[tuple[Array, Slots]] = []
    traced, t, turn = numbers
    for i, (m, shape) in enumerate(layouts):
        alone = rule, static, ((m, shape),), like_leaf, how
        p = None if ps is None else [ps[i]]
        g = begin(gs[i], whole(made[-1][0])) if made else gs[i]
        made += _stacked(alone, (traced, t, turn), [g], p, [slots[i]])
        turn = turn + m.shape[0] * how.staggered
    return made


@functools.partial(jax.jit, static_argnums=0)  # equal leaves share a trace
def _stacked(
    program: Any, numbers: Any, gs: list[Array], ps: list[Array] | None, slots: list[Slots]
) -> list[tuple[Array, Slots]]:
    rule, static, layouts, like_leaf, how = program
    columns = zip(like_leaf, zip(*slots, strict=True), strict=True)
    stacks = (
        _stack(layouts, True, *gs),
        tuple(
            jax.tree.map(functools.partial(_stack, layouts, x), *column) for x, column in columns
        ),
        None if ps is None else _stack(layouts, True, *ps),
    )
    us, new = _run(rule, static, numbers, how, stacks)
    made = []
    places = _places([m.shape[0] for m, _ in layouts], [*gs, *jax.tree.leaves(numbers)])
    for (m, shape), at, g, old in zip(layouts, places, gs, slots, strict=True):
        kept = tuple(
            jax.tree.map(functools.partial(_kept, m, shape, at, like), *pair)
            for like, *pair in zip(like_leaf, new, old, strict=True)
        )
        made.append((_placed(_part(m, shape, at, True, us), g), kept))
    return made


def _stack(layouts: Any, like_leaf: bool, *parts: Array) -> Array:
    """Arrays of all leaves, of the leaf's own shape or as the state keeps them for a matrix."""
    pairs = [(m, whole(x)) for (m, _), x in zip(layouts, parts, strict=True)]
    opened = [m.stack(widen(x)) if like_leaf else m.opened(x) for m, x in pairs]
    return opened[0] if len(opened) == 1 else jnp.concatenate(opened)


def _part(m: Matrix, shape: tuple[int, ...], at: Any, like_leaf: bool, x: Array) -> Array:
    """What of a stack belongs to the leaf that begins there."""
    mine = jax.lax.dynamic_slice_in_dim(x, at, m.shape[0])
    return m.unstack(mine, shape) if like_leaf else m.kept(mine)


def _kept(
    m: Matrix, shape: tuple[int, ...], at: Any, like_leaf: bool, x: Array, old: Array
) -> Array:
    return _back(_part(m, shape, at, like_leaf, x).astype(old.dtype), old)


def _places(counts: list[int], arrays: list[Array]) -> list[Any]:
    """Where in the stack each leaf begins."""
    places = [sum(counts[:i]) for i in range(len(counts))]
    numbers = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.number) and x.size]
    known = len(counts) == 1 or not numbers
    return places if known else hidden(places, whole(numbers[0]))


# ---------------------------------------------------------------- on several devices


def whole(x: Array) -> Array:
    """The array on every device, where the mesh wants to be told; else XLA finds out."""
    mesh = jax.typeof(x).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return x
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.sharding.reshard(x, everywhere)


def _back(x: Array, like: Array) -> Array:
    """What was made of whole arrays, where `like` is."""
    sharding = jax.typeof(like).sharding
    explicit = jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(x, sharding) if explicit else x


def _placed(u: Array, g: Array) -> Array:
    """`u`, sharded like `g`, which a product does not see to; XLA then removes the choice."""
    u = _back(u, g)
    return jnp.where(jnp.zeros_like(g, bool), g.astype(u.dtype), u)


def _run(
    rule: Callable[..., Any],
    static: Any,
    numbers: Any,
    how: How,
    stacks: tuple[Any, ...],
) -> Any:
    """The rule for each of the stacked matrices, in chunks, and each device its share of them."""

    @gtree.mixing
    def some(numbers: Any, *stacks: Any) -> Any:
        traced, t, turn = numbers
        # Of the function that reads it.
        h = functools.partial(namespace, static, suited(traced, stacks[0]))
        if how.gather is not None:
            slots = _each(functools.partial(_checked, how.gather, h), how.chunk, stacks)
            stacks = stacks[0], _renewed(slots, h, t, turn, how), stacks[2]
        us, new = _each(functools.partial(_stepped, rule, h), how.chunk, stacks)
        return us, new if how.renew is None or how.gather else _renewed(new, h, t, turn, how)

    if how.share is None:
        return some(numbers, *stacks)
    count = stacks[0].shape[0]
    missing = -count % how.share.size
    padded = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)]), stacks
    )
    everywhere, parts = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(how.share.axis)
    shared = jax.shard_map(
        some, mesh=how.share.mesh, in_specs=(everywhere, *[parts] * len(stacks)), out_specs=parts
    )
    numbers = how.share.placed(numbers, everywhere)
    made = shared(numbers, *how.share.placed(padded, parts))
    return jax.tree.map(lambda x: x[:count], how.share.placed(made, everywhere))


# ---------------------------------------------------------------- the rule


def _each(one: Callable[..., Any], chunk: int | None, stacks: Any) -> Any:
    """`one` for each of the stacked matrices.

    If nothing is said, as many at a time as is best.
    """
    arrays = jax.tree.leaves(stacks)
    count = arrays[0].shape[0]
    if count == 1 or chunk is not None:
        return _in_chunks(one, min(chunk or 1, count), *stacks)
    largest = max(x[:1].size for x in arrays)
    some = functools.partial(_in_chunks, one)
    return some_at_a_time(count, largest, some, jax.vmap(one), *stacks)


def _in_chunks(one: Callable[..., Any], chunk: int, *stacks: Any) -> Any:
    if jax.tree.leaves(stacks)[0].shape[0] == 1:
        made = one(*jax.tree.map(lambda x: x[0], stacks))
        return jax.tree.map(lambda x: x[None], made)
    size = None if chunk == 1 else chunk  # a stack of one is no matrix to a compiler
    return jax.lax.map(lambda xs: one(*xs), stacks, batch_size=size)


def _stepped(rule: Any, h: NumbersOf, g: Array, slots: Slots, p: Any) -> tuple[Array, Slots]:
    with reading(rule, p):
        u, new = rule(g, tuple(slots), p, h(rule))
    if jnp.shape(u) != g.shape:
        raise ValueError(
            f"the rule {core.show(rule)} must return an update of the shape {g.shape}, got "
            f"{jnp.shape(u)}."
        )
    return u, _like(slots, new, rule)


def _checked(rule: Any, h: NumbersOf, g: Array, slots: Slots, p: Any) -> Slots:
    with reading(rule, p):
        return _like(slots, rule(g, tuple(slots), p, h(rule)), rule)


def _like(slots: Slots, new: Any, rule: Any) -> Slots:
    wanted, made = (jax.tree.map(jnp.shape, tuple(x)) for x in (slots, new))
    if made != wanted:
        raise ValueError(
            f"the rule {core.show(rule)} must return slots of the shapes {list(wanted)}, got "
            f"{list(made)}."
        )
    return tuple(new)


def _renewed(slots: Slots, h: NumbersOf, t: Array, turn: Array, how: How) -> Slots:
    """What is done in the first step for all matrices, and then in every k-th for all of them, or
    in each step for a k-th part: for the first of them where `t` is `turn`, up to multiples of k.
    Under a conditional of its own even if `t` is one of many."""
    count, phase = jax.tree.leaves(slots)[0].shape[0], (t - turn) % how.every
    staggered = how.staggered and how.every > 1
    now = phase < min(count, how.every) if staggered else phase == 0

    def done(fn: Any, slots: Slots) -> Slots:
        made: Slots = _each(lambda *s: _like(s, fn(s, h(fn)), fn), how.chunk, slots)
        return made

    def start() -> Slots:
        return done(how.start or how.renew, slots)

    def renew() -> Slots:
        if not staggered:
            made: Slots = jax.tree.map(
                functools.partial(choose, now), done(how.renew, slots), slots
            )
            return made
        chosen = phase + how.every * jnp.arange(
            -(-count // how.every), dtype=phase.dtype
        )  # some may not be there
        some = jax.tree.map(lambda x: jnp.take(x, chosen, axis=0, mode="clip"), slots)
        back: Slots = jax.tree.map(
            lambda x, y: x.at[chosen].set(y, mode="drop"), slots, done(how.renew, some)
        )
        return back

    made: Slots = rarely(
        now | (t == 0), lambda: either(t == 0, start, renew, slots), lambda: slots, slots
    )
    return made
