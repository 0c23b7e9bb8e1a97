"""Transformations in sequence.

A sequence of stages is itself a stage (see `gradx.lift.stages`). So a whole chain, with its masks
and groups, runs in one pass over the leaves, unless a part of it has to see the whole tree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift.passes import staged, widen
from gradx.lift.sequence import NO_OLD_STATE, InSequence, stage_of
from gradx.lift.states import check_keys, check_state, wrong_state

__all__ = ["chain", "identity", "named_chain", "stateless", "stateless_with_tree_map"]


Contract: TypeAlias = optax.GradientTransformation


# ---------------------------------------------------------------- nothing, and a function


@core.recorded
def identity() -> Transform:
    r"""Returns the updates unchanged: a placeholder in a chain.

    .. math:: u = g

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.identity()
      >>> tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0]
      Array([1.], dtype=float32)
    """
    where = core.where()

    def unpack(state: State) -> Sequence[State]:
        check_state(state, optax.EmptyState, where)
        return ()

    def pack(states: Sequence[State], old: State) -> State:
        return optax.EmptyState() if old is NO_OLD_STATE else old

    return staged(InSequence((), pack, unpack, where), where)


@core.recorded
def stateless(f: Callable[[Updates, Params | None], Updates]) -> Transform:
    r"""Makes a transformation without state from a function of whole trees.

    .. math:: u = f(g, \theta)

    Args:
      f: `(updates, params) -> updates`; the parameters are `None` if `update` is not given them.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates))
      >>> tx.update({"w": jnp.array([-3.0])}, tx.init(None))[0]
      {'w': Array([-1.], dtype=float32)}
    """

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        return f(updates, params), optax.EmptyState()

    return Transform(lambda params: optax.EmptyState(), update)


@core.recorded
def stateless_with_tree_map(f: Callable[[Any, Any], Any]) -> Transform:
    r"""Makes a transformation without state from a function of single arrays.

    .. math:: u_i = f(g_i, \theta_i)

    Args:
      f: `(update, param) -> update`, given each leaf in its own dtype; the parameter is `None` if
        `update` is not given the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.stateless_with_tree_map(lambda u, p: u * jnp.abs(p))
      >>> tx.update(jnp.ones(1), tx.init(None), jnp.array([-2.0]))[0]
      Array([2.], dtype=float32)
    """
    where = core.where()

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        flat = gtree.flatten(updates)
        values = [None] * len(flat.values)
        if params is not None:
            values = gtree.flatten_like(flat, params, "the parameters", where)
        pairs = zip(flat.values, values, strict=True)
        new = [None if u is None else f(u, p) for u, p in pairs]
        return flat.unflatten(new), optax.EmptyState()

    return Transform(lambda params: optax.EmptyState(), update)


# ---------------------------------------------------------------- in sequence


@dataclass(frozen=True)
class InOrder:
    """The parts of a chain, by which it is described."""

    labelled: Sequence[tuple[str, Contract]]
    unpack: Callable[[State], Sequence[State]]

    @property
    def inside(self) -> list[Contract]:
        return [tx for _, tx in self.labelled]

    def __call__(self, params: Params, state: State) -> list[Part]:
        pairs = zip(self.labelled, self.unpack(state), strict=True)
        return [Part(label, tx, params, s) for (label, tx), s in pairs]


def _in_sequence(
    parts: Sequence[tuple[str, Contract]],
    pack: Callable[[Sequence[State]], State],
    unpack: Callable[[State], Sequence[State]],
) -> Transform:
    """A chain of the transformations; those that work leaf by leaf share passes."""
    where = core.where()
    for label, tx in parts:
        if not core.is_transform(tx):
            several = isinstance(tx, list | tuple) and all(map(core.is_transform, tx))
            raise ValueError(
                f"{where}: element {label} must be a gradient transformation (a pair of init and "
                f"update), got {core.show(tx)}.{' Give those one by one, *[…].' * several}"
            )

    stages = [stage_of(tx) for _, tx in parts]
    stage = InSequence(stages, lambda states, old: pack(states), unpack, where)
    return staged(stage, where, InOrder(tuple(parts), unpack))


@core.recorded
def chain(*args: Contract) -> Transform:
    r"""Applies transformations one after the other, such as a clip and then an optimizer.

    .. math:: u_0 = g, \qquad u_i = T_i(u_{i-1}), \qquad u = u_n

    Args:
      *args: any number of transformations, gradx's or Optax's; without any it is the identity.

    Returns:
      A transformation whose state is the tuple of its parts' states. Extra arguments reach every
      part that accepts them.

    Raises:
      ValueError: an element is not a transformation; in `update`, the state is another chain's.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.clip(0.5), gradx.scale(-0.1))
      >>> params = jnp.array([1.0, 2.0])
      >>> updates, state = tx.update(jnp.array([0.2, 3.0]), tx.init(params), params)
      >>> updates
      Array([-0.02, -0.05], dtype=float32)

    Deviation from Optax: neighbours that work leaf by leaf share one pass, in float32 or wider;
    a half-precision gradient is rounded once at the end of a pass instead of between its parts.
    """

    def unpack(state: State) -> Sequence[State]:
        plain = isinstance(state, tuple | list) and not hasattr(state, "_fields")
        if not plain or len(state) != len(args):
            found = f"of type {type(state).__name__}{f' of length {len(state)}' if plain else ''}"
            raise wrong_state(
                where, f"{found} instead of a tuple of {len(args)} states, one for each part"
            )
        return state

    where = core.where()
    return _in_sequence([(str(i), tx) for i, tx in enumerate(args)], tuple, unpack)


@core.recorded
def named_chain(*args: tuple[str, Contract]) -> Transform:
    r"""Applies named transformations one after the other; the state is a dictionary by name.

    .. math:: u_0 = g, \qquad u_i = T_i(u_{i-1}), \qquad u = u_n

    Args:
      *args: pairs of a name (a non-empty string, used once) and a transformation.

    Returns:
      A transformation whose state is an ordered dictionary of its parts' states.

    Raises:
      ValueError: an argument is not such a pair, or a name comes twice.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.named_chain(("clip", gradx.clip(0.5)), ("momentum", gradx.trace(0.9)))
      >>> list(tx.init(jnp.ones(2)))
      ['clip', 'momentum']
    """
    where = core.where()
    for pair in args:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f"{where}: needs pairs (name, transformation), got {pair!r}.")
    names = [name for name, _ in args]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{where}: names must be unique, but {twice} come more than once.")

    def unpack(state: State) -> Sequence[State]:
        check_keys(state, names, where)
        return [state[name] for name in names]

    def pack(states: Sequence[State]) -> State:
        return OrderedDict(zip(names, states, strict=True))

    return _in_sequence(args, pack, unpack)


# ---------------------------------------------------------------- half precision


def wide_throughout(tx: Transform) -> Transform:
    """The transformation with updates in float32 or wider from end to end, also between passes:
    those in half precision are rounded once, at the end."""

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        wide = jax.tree.map(lambda g: widen(g) if _narrow(g) else g, updates)
        new, state = tx.update(wide, state, params, **extra)
        return jax.tree.map(
            lambda u, g: u.astype(g.dtype) if _narrow(g) else u, new, updates
        ), state

    return Transform(tx.init, update, parts=tx.parts)


def _narrow(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact) and gtree.wide(dtype) != dtype
