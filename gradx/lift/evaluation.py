"""Replaces each parameter by the one to evaluate, where a state in `AVERAGES` knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradx.core import Params
from gradx.core import trees as gtree
from gradx.core.known import Averaged, Found
from gradx.lift.stages import is_array


def columns(flat: gtree.Flat, found: Found[Averaged], where: str) -> list[list[Any]]:
    """What each tree of an average has beside each parameter.

    Raises:
      ValueError: it is not like the parameters.
    """
    return [_column(flat, tree, found, where) for tree in found.known.trees(found.state)]


def _column(flat: gtree.Flat, tree: Any, found: Found[Averaged], where: str) -> list[Any]:
    what = f"the average of {found.known.name}"
    try:
        return gtree.flatten_like(flat, tree, what, where, "the parameters")
    except ValueError:  # Flax NNX keeps the state in variables of another class
        other = gtree.flatten(tree)
        by_path = dict(zip(other.paths, other.values, strict=True))
        if not by_path or not set(by_path) <= set(flat.paths):
            raise
        return [by_path.get(path) for path in flat.paths]


def evaluated(
    flat: gtree.Flat,
    averages: Sequence[tuple[Found[Averaged], list[list[Any]]]],
    several: Callable[[str], ValueError],
) -> Params:
    """The parameters, replaced by their averages; those that nothing averages stay.

    Raises:
      ValueError: what `several` makes of the path of a parameter that has two averages.
    """
    new = list(flat.values)
    taken: set[int] = set()
    for found, beside in averages:
        for i, arrays in enumerate(zip(*beside, strict=True)):
            if not is_array(flat.values[i]) or not all(map(is_array, arrays)):
                continue
            if i in taken:
                raise several(flat.paths[i])
            taken.add(i)
            new[i] = found.known.at(flat.values[i], arrays, found.state)
    return flat.unflatten(new)
