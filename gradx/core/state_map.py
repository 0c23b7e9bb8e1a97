"""Maps a function over the parts of a state that are like the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from gradx import core
from gradx.contract import MaskedNode, OptState
from gradx.core import trees as gtree
from gradx.core.calls import checked

__all__ = ["tree_map_params"]


def _marker() -> Any:
    """The object that Optax gives `init` in place of parameters: an empty tree of its own class.

    Wherever `init` returns it, the state has a tree like the parameters. It has no public name, so
    it is taken from a call of Optax's own function.
    """
    received: list[Any] = []
    optax.tree_map_params(received.append, lambda x: x, None)
    return received[0]


MARKER = _marker()


@checked
def tree_map_params(
    initable: Any,
    f: Callable[..., Any],
    state: OptState,
    /,
    *rest: Any,
    transform_non_params: Callable[..., Any] | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
) -> OptState:
    """Applies a function to everything in a state that belongs to one parameter.

    It gives every array that an optimizer keeps for a parameter the parameter's sharding, name or
    dtype, whatever the optimizer is.

    Args:
      initable: the transformation that made the state, gradx's or Optax's, or its `init`.
      f: `(array, *values) -> new`, called at each array of the state that belongs to a parameter,
        with the values that `rest` has for this parameter.
      state: the state.
      *rest: trees like the parameters.
      transform_non_params: `array -> new`, called at all other arrays (counts, live values); by
        default they stay.
      is_leaf: what else counts as a leaf of the parameters. By default what a mask hides
        (`MaskedNode`) does not, and stays as it is.

    Returns:
      A tree of the state's structure.

    Raises:
      ValueError: the state is not one of this transformation, or a tree of `rest` does not fit the
        parameters; the message names the path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> tx = gradx.trace(gradx.tunable(0.9))
      >>> names = {"kernel": "in,out", "bias": "out"}
      >>> gradx.tree_map_params(
      ...     tx, lambda _, name: name, tx.init(params), names, transform_non_params=lambda _: ""
      ... ).inner_state
      TraceState(trace={'bias': 'out', 'kernel': 'in,out'})
    """
    init = getattr(initable, "init", initable)
    structure: Any
    marks, structure = jax.tree.flatten(init(MARKER), is_leaf=_is_marker)
    try:
        parts = structure.flatten_up_to(state)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"tree_map_params: the state is not one of {core.show(initable)}: {error}"
        ) from error
    other = transform_non_params or (lambda x: x)
    new = [
        _map_leaves(f, part, rest, is_leaf) if _is_marker(mark) else other(part)
        for mark, part in zip(marks, parts, strict=True)
    ]
    return structure.unflatten(new)


def _is_marker(x: Any) -> bool:
    return isinstance(x, type(MARKER))


def _map_leaves(
    f: Callable[..., Any], part: Any, rest: tuple[Any, ...], is_leaf: Callable[[Any], bool] | None
) -> Any:
    """`f` over a tree like the parameters; a mask may hide some leaves."""

    def is_chosen(x: Any) -> bool:
        return is_leaf is not None and is_leaf(x)

    def is_hidden(x: Any) -> bool:
        return (x is None or isinstance(x, MaskedNode)) and not is_chosen(x)

    values, structure = jax.tree.flatten(part, is_leaf=lambda x: is_chosen(x) or is_hidden(x))
    flat = gtree.Flat(part, values, structure)
    try:
        columns = [
            gtree.flatten_like(flat, tree, "the tree", "tree_map_params", "the parameters")
            for tree in rest
        ]
    except ValueError as error:
        several = _several(f, part, rest)
        if several is None:
            raise error
        return several
    return flat.unflatten(
        [x if is_hidden(x) else f(x, *of) for x, *of in zip(values, *columns, strict=True)]
    )


def _several(f: Callable[..., Any], part: Any, rest: tuple[Any, ...]) -> Any:
    """`_map_leaves` for a state with several arrays for one parameter; `None` for another."""
    params = gtree.flatten(rest[0])
    try:
        arrays, *columns = (
            gtree.flatten_like(params, tree, "the state", "") for tree in (part, *rest)
        )
    except ValueError:
        return None
    pairs = zip(arrays, *columns, strict=True)
    return params.unflatten([jax.tree.map(lambda x, of=of: f(x, *of), xs) for xs, *of in pairs])
