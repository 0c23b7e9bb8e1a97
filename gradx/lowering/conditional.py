"""Conditionals that stay conditionals: inside `shard_map`, and under `vmap`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradx.lowering.policy import by_target
from gradx.lowering.varying import varies_over, vary

Array = jax.Array


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def choose(gate: Array, new: Array, old: Array) -> Array:
    """The new array if the gate is open, else the old one; in the old one's dtype."""
    return jnp.where(gate, new.astype(old.dtype), old)


def either(gate: Array, accept: Callable[[], Any], reject: Callable[[], Any], given: Any) -> Any:
    """`lax.cond`, also inside `shard_map`; `given` is the tree that the two functions work on."""
    return jax.lax.cond(gate, *_agreeing((gate, given), accept, reject))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def in_some_steps(change: Callable[[Any, Any], Any], gate: Array, old: Any, given: Any) -> Any:
    """`change(old, given)` if the gate is open, else `old`: arrays of the state, changed in place.

    On GPUs XLA copies an array for a conditional, even in steps that leave it as it is. So there
    it is a loop of one round or none, which changes its arrays in place.
    """
    new = jax.eval_shape(change, old, given)
    old = jax.tree.map(lambda x, n: vary(x, varies_over(n) | varies_over(gate)), old, new)
    return by_target(
        "in_some_steps",
        functools.partial(_loop, change),
        functools.partial(_branch, change),
        *(gate, old, given),
    )


@in_some_steps.defjvp
def _(change: Any, primals: Any, tangents: Any) -> Any:
    branch = functools.partial(_branch, change)  # a loop has no derivative in reverse
    return jax.jvp(branch, primals, tuple(tangents))


def _loop(change: Any, gate: Array, old: Any, given: Any) -> Any:
    closed = vary(jnp.zeros_like(gate), varies_over(gate))
    once = functools.partial(_once, change, closed, given)
    return jax.lax.while_loop(lambda carry: carry[0], once, (gate, old))[1]


def _once(change: Any, closed: Array, given: Any, carry: Any) -> Any:
    return closed, jax.tree.map(_as, change(carry[1], given), carry[1])


def _branch(change: Any, gate: Array, old: Any, given: Any) -> Any:
    def changed() -> Any:
        return jax.tree.map(_as, change(old, given), old)

    return either(gate, changed, lambda: old, (old, given))


def _as(new: Any, old: Any) -> Any:
    return vary(new.astype(old.dtype), varies_over(old))


def rarely(gate: Array, accept: Callable[[], Any], reject: Callable[[], Any], given: Any) -> Any:
    """`either` for work that is expensive and rare: it stays a conditional under `vmap`.

    Under `vmap` the gate is one of many, and `lax.cond` would run both branches and choose. Here
    `accept` runs if any gate is open; where its own is closed, it must give what `reject` gives.
    """
    return either(_any_of_batch(gate), accept, reject, given)


@jax.custom_jvp
def if_open(gate: Array, new: Any, old: Any) -> Any:
    """`new`, inside `accept` of `rarely`; under `vmap` `old` where its own gate is closed."""
    return _if_open(gate, new, old)


@if_open.defjvp
def _(primals: Any, tangents: Any) -> Any:
    gate, new, old = primals
    return jax.jvp(functools.partial(choose_tree, gate), (new, old), tuple(tangents[1:]))


@jax.custom_batching.custom_vmap
def _if_open(gate: Array, new: Any, old: Any) -> Any:
    return new


@_if_open.def_vmap
def _(size: int, batched: Any, gate: Array, new: Any, old: Any) -> tuple[Any, Any]:
    if not batched[0]:
        return _if_open(gate, new, old), batched[1]
    axes = [jax.tree.map(lambda b: 0 if b else None, b) for b in batched]
    made = jax.vmap(choose_tree, in_axes=tuple(axes), axis_size=size)(gate, new, old)
    return made, jax.tree.map(lambda _: True, made)


def choose_tree(gate: Array, new: Any, old: Any) -> Any:
    """`choose` for each array of a tree."""
    return jax.tree.map(functools.partial(choose, gate), new, old)


@jax.custom_batching.custom_vmap
def _any_of_batch(gate: Array) -> Array:
    return gate


@_any_of_batch.def_vmap
def _(size: int, batched: Any, gate: Array) -> tuple[Array, bool]:
    any_open: Array = _any_of_batch(jnp.any(gate, axis=0))
    return any_open, False


def _agreeing(given: Any, *branches: Callable[[], Any]) -> Sequence[Callable[[], Any]]:
    """Branches whose results vary over the same mapped axes, as `shard_map` requires."""
    if not any(varies_over(x) for x in jax.tree.leaves(given) if isinstance(x, jax.Array)):
        return branches
    axes = [jax.tree.map(varies_over, jax.eval_shape(branch)) for branch in branches]
    every = jax.tree.map(lambda *sets: frozenset().union(*sets), *axes)

    def agreeing(branch: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.tree.map(vary, branch(), every)

    return [agreeing(branch) for branch in branches]
