"""Checks that a state belongs to a transformation, and splits it by leaf."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gradx.core import trees as gtree
from gradx.core.updates import safe_increment
from gradx.numbers.live import HyperparamsState


def check_state(state: Any, expected: Any, where: str, keys: Collection[Any] | None = None) -> None:
    """Raises ValueError for the state of another part; one of Optax's own class is welcome.

    With `keys`, its only field must be a dictionary with these. A part without a state accepts
    anything (`None`, an empty dictionary, a number), as in Optax, except the state of another part:
    momentum, say, of an optimizer that was built with it before.
    """
    found = type(state).__name__, getattr(state, "_fields", None)
    if not expected._fields and not (found[1] and jax.tree.leaves(state)):
        return
    if found == (expected.__name__, expected._fields):
        if keys is not None:
            check_keys(state[0], keys, where)
        return
    if found[0] != expected.__name__:
        told = f"of type {found[0]} instead of {expected.__name__}"
    else:
        told = f"{found[0]} with the fields {found[1]} instead of {expected._fields}"
    raise wrong_state(where, told)


def need_params(params: Any, where: str) -> None:
    """Raises ValueError if `update` was not given the parameters."""
    if params is None:
        raise ValueError(f"{where}: needs the parameters: call update(updates, state, params).")


def check_wrapping(state: Any, live: Collection[str], counted: bool, where: str) -> None:
    """Raises ValueError unless a rule's state has these live values, and a count if it needs one.

    `hyperparams` would report a value too many, which nothing uses.
    """
    wrapped = isinstance(state, HyperparamsState)
    found = set(state.hyperparams) if wrapped else set()
    told = []
    if extra := sorted(found - set(live)):
        told.append(
            f"with the live values {extra}, which are constants, schedules or from elsewhere here"
        )
    if missing := sorted(set(live) - found):
        told.append(f"without the live values {missing}, which are tunable(…) here")
    if (wrapped and state.count is not None) != counted:
        told.append(
            "without a count, which a schedule needs here"
            if counted
            else "with the count of a schedule, of which there is none here"
        )
    if not told and wrapped and not live and not counted:
        told.append("of type HyperparamsState, without anything in it")
    if told:
        raise wrong_state(where, " and ".join(told))


def opened(name: str, kind: Any, flat: gtree.Flat, value: Any, where: str) -> list[Any]:
    """Splits a field of a state by leaf: into arrays, or tuples or lists of them.

    A field of several trees, the named tuple `kind`, has several arrays for each leaf.

    Raises:
      ValueError: the field is another tree, perhaps one with more leaves below one of these.
    """
    if kind is not None:
        if not isinstance(value, kind):
            told = f"whose {name} is of type {type(value).__name__} instead of {kind.__name__}"
            raise wrong_state(where, told)
        trees = [opened(f"{name}.{k}", None, flat, getattr(value, k), where) for k in kind._fields]
        return [kind(*arrays) for arrays in zip(*trees, strict=True)]
    found = gtree.flatten_like(flat, value, f"the state's {name}", where)
    for i, x in enumerate(found):
        arrays = x is None or isinstance(as_tuple(x), tuple | list)
        if not arrays and not jax.tree_util.all_leaves([x]):
            told = f"whose {name} has a tree in it, {type(x).__name__}"
            path = flat.paths[i]
            raise wrong_state(where, f"{told}, where the updates have the one leaf {path!r}")
    return found


def closed(kind: Any, flat: gtree.Flat, found: list[Any]) -> Any:
    """The field of a state from its parts at all leaves: the inverse of `opened`."""
    if kind is None:
        return flat.unflatten(found)
    found = [x if isinstance(x, kind) else kind(*[x] * len(kind._fields)) for x in found]
    return kind(*(flat.unflatten([getattr(x, k) for x in found]) for k in kind._fields))


def as_tuple(stored: Any) -> Any:
    """Several arrays of one leaf as a tuple; Flax NNX keeps them in a container of its own."""
    is_numbered = isinstance(stored, Mapping) and all(isinstance(k, int) for k in stored)
    return tuple(stored[k] for k in sorted(stored)) if is_numbered else stored


def as_stored(new: Any, stored: Any) -> Any:
    """The inverse of `as_tuple`: new arrays in the container of the old ones."""
    if not isinstance(stored, Mapping):
        return new
    structure: Any = jax.tree.structure(stored)
    return structure.unflatten(jax.tree.leaves(new))


def counted(count: Any, gate: Any) -> Any:
    """The count after this step, or as it was where the gate is closed."""
    after = safe_increment(count)
    return after if gate is None else jnp.where(gate, after, count)


def check_keys(state: Any, keys: Collection[Any], where: str) -> None:
    """Raises ValueError unless a state is a dictionary with these keys."""
    if not isinstance(state, Mapping) or set(state) != set(keys):
        found = f"keys {list(state)}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise wrong_state(where, f"with {found} instead of a dictionary with keys {list(keys)}")


def wrong_state(where: str, told: str) -> ValueError:
    """The error of a state that was made by something else."""
    return ValueError(f"{where}: got a state {told}. Was it made by another chain's init?")
