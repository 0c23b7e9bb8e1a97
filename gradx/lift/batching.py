"""Runs a rule on all matrices of one shape together, on one device or several."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import trees as gtree
from gradx.lift.matrices import Matrix
from gradx.lift.passes import widen
from gradx.lift.sharing import Batches, Share, run_shared, with_automatic_axes
from gradx.lift.stages import LeafState, Numbers, check_form
from gradx.lowering.conditional import choose, either, rarely
from gradx.lowering.stacks import alone_or_stacked, some_at_a_time, unknown_places
from gradx.numbers.namespace import namespace, reading, suited
from gradx.numbers.sources import Array

NumbersOf = Callable[[Any], Numbers]  # a function of the rule -> the `h` that it reads


class How(NamedTuple):
    """How to run the matrices of one shape; it is part of a program."""

    chunk: int | None = None
    share: Share | None = None
    batches: Batches = ()  # the leaves that are sent together, if devices share
    renew: Callable[[Any, Numbers], Any] | None = None
    start: Callable[[Any, Numbers], Any] | None = None
    every: int = 1
    staggered: bool = False
    gather: Callable[[Array, Any, Any, Numbers], Any] | None = None


def together(
    program: Any, numbers: Any, gs: list[Array], ps: list[Array] | None, states: list[LeafState]
) -> list[tuple[Array, LeafState]]:
    """Runs the rule on all matrices of one shape; updates are in float32 or wider."""
    like = list(zip(gs, states, strict=True))
    places = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    done: list[tuple[Array, LeafState]] = with_automatic_axes(
        functools.partial(_together, program), places, numbers, gs, ps, states
    )
    return done


@functools.partial(jax.jit, static_argnums=0)
def _together(
    program: Any, numbers: Any, gs: list[Array], ps: list[Array] | None, states: list[LeafState]
) -> list[tuple[Array, LeafState]]:
    """As a stack, which compiles fast and can be shared, or leaf by leaf, where that is faster."""
    _, _, layouts, _, how = program
    m, _ = layouts[0]
    if how.share is not None and sum(m.shape[0] for m, _ in layouts):
        return _shared(program, numbers, gs, ps, states)
    if len(gs) == 1:
        return _stacked(program, numbers, gs, ps, states)
    apart, stacked = (functools.partial(way, program) for way in (_apart, _stacked))
    size, renewed = m.rows * m.columns, how.renew is not None
    return alone_or_stacked(size, apart, stacked, numbers, gs, ps, states, renewed=renewed)


def _apart(
    program: Any,
    begin: Callable[[Array, Array], Array],
    numbers: Any,
    gs: list[Array],
    ps: list[Array] | None,
    states: list[LeafState],
) -> list[tuple[Array, LeafState]]:
    rule, static, layouts, like_leaf, how = program
    made: list[tuple[Array, LeafState]] = []
    traced, t, turn = numbers
    for i, (m, shape) in enumerate(layouts):
        alone = rule, static, ((m, shape),), like_leaf, how
        p = None if ps is None else [ps[i]]
        g = begin(gs[i], made[-1][0]) if made else gs[i]
        made += _stacked(alone, (traced, t, turn), [g], p, [states[i]])
        turn = turn + m.shape[0] * how.staggered
    return made


@functools.partial(jax.jit, static_argnums=0)  # equal leaves share a trace
def _stacked(
    program: Any, numbers: Any, gs: list[Array], ps: list[Array] | None, states: list[LeafState]
) -> list[tuple[Array, LeafState]]:
    rule, static, layouts, like_leaf, how = program
    made = _run(rule, static, how)(numbers, *_stacks(layouts, like_leaf, gs, ps, states))
    places = _places([m.shape[0] for m, _ in layouts], [*gs, *jax.tree.leaves(numbers)])
    return _leaves(layouts, like_leaf, places, gs, states, *made)


def _shared(
    program: Any, numbers: Any, gs: list[Array], ps: list[Array] | None, states: list[LeafState]
) -> list[tuple[Array, LeafState]]:
    """Runs the rule on the devices that share, and gives each leaf its part of the results."""
    rule, static, layouts, like_leaf, how = program

    def alone(column: Any, i: int) -> Any:
        return column and [column[i]]

    def sent(i: int) -> Any:
        return _stacks([layouts[i]], like_leaf, *(alone(x, i) for x in (gs, ps, states)))

    batches = [[sent(i) for i in batch] for batch in how.batches]
    results = run_shared(how.share, _run(rule, static, how), numbers, batches)
    made: dict[int, tuple[Array, LeafState]] = {}
    for i, result in zip(itertools.chain(*how.batches), itertools.chain(*results), strict=True):
        ((u, new),) = _leaves([layouts[i]], like_leaf, [0], [gs[i]], [states[i]], *result)
        made[i] = u, jax.tree.map(_placed, new, states[i])
    return [made[i] for i in range(len(gs))]


def _stacks(
    layouts: Any, like_leaf: Any, gs: Any, ps: Any, states: list[LeafState]
) -> tuple[Any, Any, Any]:
    """Gradients, state and parameters, each array (matrices, …)."""
    columns = zip(like_leaf, *states, strict=True)
    return (
        _stack(layouts, True, *gs),
        type(states[0])(
            *(
                jax.tree.map(functools.partial(_stack, layouts, x), *column)
                for x, *column in columns
            )
        ),
        None if ps is None else _stack(layouts, True, *ps),
    )


def _leaves(
    layouts: Any, like_leaf: Any, places: Any, gs: Any, states: Any, us: Array, new: LeafState
) -> list[tuple[Array, LeafState]]:
    """The update and the new state of each leaf, out of the stacks."""
    made = []
    for (m, shape), at, g, old in zip(layouts, places, gs, states, strict=True):
        kept = type(old)(
            *(
                jax.tree.map(functools.partial(_kept, m, shape, at, like), *pair)
                for like, *pair in zip(like_leaf, new, old, strict=True)
            )
        )
        made.append((_placed(_part(m, shape, at, True, us), g), kept))
    return made


def _stack(layouts: Any, like_leaf: bool, *parts: Array) -> Array:
    """Stacks arrays of all leaves, in the leaf's shape or as the state keeps them for a matrix."""
    pairs = [(m, x) for (m, _), x in zip(layouts, parts, strict=True)]
    opened = [m.stack(widen(x)) if like_leaf else m.opened(x) for m, x in pairs]
    return opened[0] if len(opened) == 1 else jnp.concatenate(opened)


def _part(m: Matrix, shape: tuple[int, ...], at: Any, like_leaf: bool, x: Array) -> Array:
    """The part of a stack that belongs to the leaf that begins at `at`."""
    mine = jax.lax.dynamic_slice_in_dim(x, at, m.shape[0])
    return m.unstack(mine, shape) if like_leaf else m.kept(mine)


def _kept(
    m: Matrix, shape: tuple[int, ...], at: Any, like_leaf: bool, x: Array, old: Array
) -> Array:
    return _part(m, shape, at, like_leaf, x).astype(old.dtype)


def _places(counts: list[int], arrays: list[Array]) -> list[Any]:
    """Where in the stack each leaf begins."""
    places = [sum(counts[:i]) for i in range(len(counts))]
    numbers = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.number) and x.size]
    known = len(counts) == 1 or not numbers
    return places if known else unknown_places(places, numbers[0])


def _placed(x: Array, like: Array) -> Array:
    """`x`, sharded like `like`; a product may lose the sharding, and the choice costs nothing."""
    return jnp.where(jnp.zeros_like(like, bool), like.astype(x.dtype), x)


# ---------------------------------------------------------------- the rule


def _run(rule: Callable[..., Any], static: Any, how: How) -> Callable[..., Any]:
    """The rule for each of the stacked matrices, in chunks."""

    @gtree.mixing
    def some(numbers: Any, *stacks: Any) -> Any:
        traced, t, turn = numbers
        # For each function of the rule, since errors name it.
        h = functools.partial(namespace, static, suited(traced, stacks[0]))
        if how.gather is not None:
            gathered = _each(functools.partial(_checked, how.gather, h), how.chunk, stacks)
            stacks = stacks[0], _renewed(gathered, h, t, turn, how), stacks[2]
        us, new = _each(functools.partial(_stepped, rule, h), how.chunk, stacks)
        return us, new if how.renew is None or how.gather else _renewed(new, h, t, turn, how)

    return some


def _each(one: Callable[..., Any], chunk: int | None, stacks: Any) -> Any:
    """`one` for each of the stacked matrices; without `chunk` as many at a time as is best."""
    arrays = jax.tree.leaves(stacks)
    count = arrays[0].shape[0]
    if count == 1 or chunk is not None:
        return _in_chunks(one, min(chunk or 1, count), *stacks)
    largest = max(x[:1].size for x in arrays)
    some = functools.partial(_in_chunks, one)
    return some_at_a_time(count, largest, some, jax.vmap(one), *stacks)


def _in_chunks(one: Callable[..., Any], chunk: int, *stacks: Any) -> Any:
    count = jax.tree.leaves(stacks)[0].shape[0]
    if count == 1:
        made = one(*jax.tree.map(lambda x: x[0], stacks))
        return jax.tree.map(lambda x: x[None], made)
    shapes: Any = None  # of the results for one matrix

    def not_empty(xs: Any) -> list[Array]:
        nonlocal shapes
        made = one(*xs)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made)
        return [x for x in jax.tree.leaves(made) if x.size]

    size = None if chunk == 1 else chunk  # a compiler does not see that a stack of one is a matrix
    # `map` does not put chunks of empty arrays together again.
    found = iter(jax.lax.map(not_empty, stacks, batch_size=size))
    return jax.tree.map(
        lambda x: next(found) if x.size else jnp.zeros((count, *x.shape), x.dtype), shapes
    )


def _stepped(rule: Any, h: NumbersOf, g: Array, s: LeafState, p: Any) -> tuple[Array, LeafState]:
    with reading(rule, p):
        u, new = rule(g, s, p, h(rule))
    if jnp.shape(u) != g.shape:
        raise ValueError(
            f"the rule {core.show(rule)} must return an update of the shape {g.shape}, got "
            f"{jnp.shape(u)}."
        )
    return u, _like(s, new, rule)


def _checked(rule: Any, h: NumbersOf, g: Array, s: LeafState, p: Any) -> LeafState:
    with reading(rule, p):
        return _like(s, rule(g, s, p, h(rule)), rule)


def _like(old: LeafState, new: Any, rule: Any) -> LeafState:
    check_form(rule, new, old)
    wanted, made = (jax.tree.map(jnp.shape, x) for x in (old, new))
    if made != wanted:
        raise ValueError(
            f"the rule {core.show(rule)} must return a state of the shapes {wanted}, got {made}."
        )
    return new


def _renewed(state: LeafState, h: NumbersOf, t: Array, turn: Array, how: How) -> LeafState:
    """Runs `start` at step 0; after that `renew` every k steps, or on 1/k of the matrices each step
    if staggered: on the i-th where `t - turn` is i modulo k. It is a conditional under `vmap` too.
    """
    count, phase = jax.tree.leaves(state)[0].shape[0], (t - turn) % how.every
    staggered = how.staggered and how.every > 1
    now = phase < min(count, how.every) if staggered else phase == 0

    def done(fn: Any, state: LeafState) -> LeafState:
        return _each(lambda s: _like(s, fn(s, h(fn)), fn), how.chunk, (state,))

    def start() -> LeafState:
        return done(how.start or how.renew, state)

    def renew() -> LeafState:
        if not staggered:
            return jax.tree.map(functools.partial(choose, now), done(how.renew, state), state)
        chosen = phase + how.every * jnp.arange(
            -(-count // how.every), dtype=phase.dtype
        )  # some may be past the end, and are dropped
        some = jax.tree.map(lambda x: jnp.take(x, chosen, axis=0, mode="clip"), state)
        return jax.tree.map(
            lambda x, y: x.at[chosen].set(y, mode="drop"), state, done(how.renew, some)
        )

    return rarely(now | (t == 0), lambda: either(t == 0, start, renew, state), lambda: state, state)
