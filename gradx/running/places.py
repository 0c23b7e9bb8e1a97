"""Where each array of a state belongs: its part of the chain, its field, and its parameter.

Containers do not count: an array has the same place in dictionaries, in Flax NNX's states, and at
any position in a chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gradx.core import trees as gtree
from gradx.core.known import AVERAGES
from gradx.running.restart import RestartMomentsState
from gradx.running.restore_points import RestorePoint

LIVE = "hyperparams"  # the field for live numbers, of every class of state that has them


@dataclass(frozen=True, eq=False)
class Holder:
    """A named tuple in a state: what one part of the chain keeps.

    Attributes:
      kind: the name of its class; empty for arrays that are in no named tuple.
      labels: the keys of dictionaries on the way, such as the labels of `partition`.
      restarts: whether it is inside `restart_moments`, where counts begin anew with the moments.
      averages: whether it averages the parameters, and counts from where the average was added.
    """

    kind: str
    labels: tuple[str, ...]
    restarts: bool = False
    averages: bool = False


@dataclass(frozen=True, eq=False)
class Place:
    """One array of a state.

    Attributes:
      holder: the innermost named tuple around it that is not a part of the parameters.
      field: the holder's field.
      path: the way from there: a parameter's path, the name of a live number, or empty.
      param: the path of the parameter that it belongs to, if it does.
      tree: which tree it is in where a field has several like the parameters, such as the snapshots
        of `lawa_params`; else empty.
      value: the array.
    """

    holder: Holder
    field: str
    path: str
    param: str | None
    tree: str
    value: Any

    @property
    def kind(self) -> tuple[str, str, str]:
        """What it is, wherever it is."""
        return self.holder.kind, self.field, self.path

    @property
    def is_count(self) -> bool:
        scalar = not self.path and jnp.shape(self.value) == ()
        return self.field == "count" and scalar and not gtree.is_inexact(self.value)

    @property
    def is_live(self) -> bool:
        """Whether it is a live number, or one that `inject_hyperparams` keeps."""
        return self.field == LIVE

    @property
    def is_snapshot(self) -> bool:
        """Whether a guard goes back to it: it fits no other state, and is taken anew."""
        return self.holder.kind == RestorePoint.__name__ and self.field != "restores"

    @property
    def name(self) -> str:
        """``adam/ScaleByAdamState.mu[dense/kernel]``."""
        if not self.holder.kind:
            return self.path
        name = "/".join((*self.holder.labels, f"{self.holder.kind}.{self.field}"))
        return f"{name}[{self.path}]" if self.path else name


def places(state: Any, params: Any) -> list[Place]:
    """The place of each array of a state of these parameters, in the order of `jax.tree.leaves`."""
    flat = gtree.flatten(params)
    leaves = dict(zip(flat.paths, flat.values, strict=True))
    of_params = _named_tuples(params)

    def is_holder(x: Any) -> bool:
        return hasattr(x, "_fields") and type(x) not in of_params

    def below(x: Any, holder: Holder) -> Iterator[Place]:
        def is_inner(y: Any) -> bool:
            return y is not x and is_holder(y)

        paths, _ = gtree.key_paths(x, is_inner)
        for path, y in zip(paths, jax.tree.leaves(x, is_leaf=is_inner), strict=True):
            if is_inner(y):
                keys = [gtree.key_name(key) for key in path if hasattr(key, "key")]
                yield from below(y, of(y, (*holder.labels, *keys), holder))
                continue
            field, rest = (gtree.key_name(path[0]), path[1:]) if holder.kind else ("", path)
            yield Place(holder, field, gtree.path_name(rest), *_param_of(field, rest, y, leaves), y)

    def of(x: Any, labels: tuple[str, ...], around: Holder) -> Holder:
        restarts = around.restarts or around.kind == RestartMomentsState.__name__
        return Holder(type(x).__name__, labels, restarts, AVERAGES.get(x) is not None)

    outermost = Holder("", ())
    return list(below(state, of(state, (), outermost) if is_holder(state) else outermost))


def _named_tuples(params: Any) -> set[type]:
    """The classes of named tuples that the parameters consist of."""
    found: set[type] = set()

    def note(x: Any) -> bool:
        found.update([type(x)] * hasattr(x, "_fields"))
        return False

    jax.tree.flatten(params, is_leaf=note)
    return found


def _param_of(
    field: str, keys: Sequence[Any], x: Any, params: Mapping[str, Any]
) -> tuple[str | None, str]:
    """The parameter's path, and the positions before it in tuples of trees."""
    if field == LIVE:  # a live number may have the name of a parameter
        return None, ""
    for i in range(len(keys) + 1):
        tree, path = gtree.path_name(keys[:i]), gtree.path_name(keys[i:])
        if not path and "" in params:  # there is one parameter, without a name
            alike = jnp.shape(x) == jnp.shape(params[""]) and gtree.is_inexact(x)
            return ("", tree) if alike else (None, "")
        found = next((begin for begin in gtree.beginnings(path) if begin in params), None)
        if found is not None:
            return found, tree
        if not hasattr(keys[i] if i < len(keys) else None, "idx"):
            break
    return None, ""
