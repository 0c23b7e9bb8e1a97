"""Which leaves are matrices, and which of their axes are the rows and the columns."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx import tree as gtree
from gradx.sources import Array, ByPath

_FIELDS = ("reduction_axis", "output_axis")


class Matrix(NamedTuple):
    """A leaf of any rank, seen as a matrix. It is hashable: equal leaves share a program."""

    axes: tuple[int, ...]  # those of the rows, then those of the columns
    rows: int
    columns: int

    def flat(self, x: Array) -> Array:
        return x.transpose(self.axes).reshape(self.rows, self.columns)

    def unflat(self, x: Array, like: Array) -> Array:
        back = [self.axes.index(i) for i in range(like.ndim)]
        return x.reshape([like.shape[i] for i in self.axes]).transpose(back)


def matrices(choice: Any, flat: gtree.Flat, where: str, name: str) -> list[Matrix | None]:
    """Each leaf as a matrix, or None for one that is none.

    `choice`, the argument `name` of the factory `where`, is a pair of dimension numbers (a named
    tuple of `reduction_axis` and `output_axis`) for every leaf of two and more axes; a tree of
    them, with None for other leaves; a function that makes one; `by_path`; or None: the leaves with
    two axes.

    Raises:
      ValueError: the choice does not fit; the message names the path.
    """
    pairs = zip(flat.values, _chosen(choice, flat, f"{where}: {name}"), strict=True)
    return [
        None if x is None or numbers is None else _matrix(flat, i, numbers, f"{where}: {name}")
        for i, (x, numbers) in enumerate(pairs)
    ]


def check_paths(choice: Any, flat: gtree.Flat, where: str) -> None:
    """Raises ValueError for a `by_path` that leaves a pattern or a leaf out; for `init`."""
    if isinstance(choice, ByPath) and gtree.array_paths(flat):
        choice.check(gtree.array_paths(flat), f"{where}: by_path")


def _is_numbers(x: Any) -> bool:
    # By its fields, not by its class: those of Optax and of several rules are welcome.
    return getattr(x, "_fields", None) == _FIELDS


def _chosen(choice: Any, flat: gtree.Flat, what: str) -> list[Any]:
    if choice is None:
        return [(0, 1) if x is not None and jnp.ndim(x) == 2 else None for x in flat.values]
    if _is_numbers(choice):
        return [choice if x is not None and jnp.ndim(x) >= 2 else None for x in flat.values]
    if isinstance(choice, ByPath):
        # Without the check of `check_paths`, since in `update` a gradient may be missing.
        pairs = zip(flat.paths, flat.values, strict=True)
        return [None if x is None else choice.pick(path) for path, x in pairs]
    tree = choice(flat.tree) if callable(choice) else choice
    return gtree.broadcast(tree, flat.tree, what, lambda x: x is None or _is_numbers(x))


def _matrix(flat: gtree.Flat, i: int, numbers: Any, what: str) -> Matrix:
    if not (_is_numbers(numbers) or numbers == (0, 1)):
        raise ValueError(
            f"{what} must be None or a pair of dimension numbers ({', '.join(_FIELDS)}) for each "
            f"leaf; at {flat.paths[i]!r} it is {core.show(numbers)}."
        )
    shape = jnp.shape(flat.values[i])
    given = [
        (int(n),) if isinstance(n, int | np.integer) else tuple(map(operator.index, n))
        for n in numbers
    ]
    all_axes = [n for axes in given for n in axes]
    in_range = all(isinstance(n, int) and -len(shape) <= n < len(shape) for n in all_axes)
    rows, columns = [tuple(n % len(shape) for n in axes) for axes in given] if in_range else given
    if not in_range or sorted(rows + columns) != [*range(len(shape))] or not (rows and columns):
        raise ValueError(
            f"{what}: at {flat.paths[i]!r} each axis of the shape {shape} must be in one of "
            f"{' and '.join(_FIELDS)}, and each of these must have an axis; got "
            f"{core.show(numbers)}."
        )
    return Matrix(
        rows + columns, math.prod(shape[n] for n in rows), math.prod(shape[n] for n in columns)
    )
