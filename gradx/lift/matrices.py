"""Which leaves are matrices, and which of their axes are the rows and the columns."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import trees as gtree
from gradx.numbers.paths import ByPath
from gradx.numbers.sources import Array

__all__ = ["MatrixAxes"]

_FIELDS = ("reduction_axis", "output_axis")


@core.registered
class MatrixAxes(NamedTuple):
    """How a leaf is seen as a matrix, or as a stack of them.

    Attributes:
      rows: the axis of the inputs, or the axes that are flattened to it (those of a convolution's
        window and its channels).
      columns: the axis or axes of the outputs. An axis that is in neither counts matrices: layers
        that `nn.scan` or `nnx.vmap` stack, or the heads of an attention.
      parts: how many matrices stand side by side in the columns (3 for a fused QKV kernel).

    Example:
      >>> import gradx
      >>> gradx.MatrixAxes(rows=(0, 1, 2), columns=3)  # a convolution's kernel
      MatrixAxes(rows=(0, 1, 2), columns=3, parts=1)
    """

    rows: int | tuple[int, ...] = 0
    columns: int | tuple[int, ...] = 1
    parts: int = 1


class Matrix(NamedTuple):
    """A leaf of any rank, seen as matrices. It is hashable: equal leaves share a program."""

    outer: tuple[int, ...]  # the axes that count matrices
    row_axes: tuple[int, ...]
    column_axes: tuple[int, ...]
    blocks: int  # how many matrices the outer axes count
    rows: int
    columns: int
    parts: int = 1

    @property
    def axes(self) -> tuple[int, ...]:
        return self.outer + self.row_axes + self.column_axes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.blocks * self.parts, self.rows, self.columns

    def turned(self) -> Matrix:
        """The matrix with at least as many columns as rows: transposed, if need be."""
        if self.rows <= self.columns or self.parts > 1:
            return self
        return Matrix(
            self.outer, self.column_axes, self.row_axes, self.blocks, self.columns, self.rows
        )

    def stack(self, x: Array) -> Array:
        """The leaf as (count, rows, columns)."""
        x = x.transpose(self.axes).reshape(self.blocks, self.rows, self.parts, self.columns)
        return x.swapaxes(1, 2).reshape(self.shape)

    def unstack(self, x: Array, shape: tuple[int, ...]) -> Array:
        """The leaf of this shape again."""
        x = x.reshape(self.blocks, self.parts, self.rows, self.columns).swapaxes(1, 2)
        back = [self.axes.index(i) for i in range(len(shape))]
        return x.reshape([shape[i] for i in self.axes]).transpose(back)

    def kept(self, arrays: Array) -> Array:
        """Arrays of all matrices as the state keeps them: one matrix needs no axis to count it."""
        return arrays if self.outer or self.parts > 1 else arrays[0]

    def opened(self, arrays: Array) -> Array:
        return arrays if self.outer or self.parts > 1 else arrays[None]

    def flat(self, x: Array) -> Array:
        """The one matrix of a leaf that is not a stack of several."""
        return x.transpose(self.axes).reshape(self.rows, self.columns)

    def unflat(self, x: Array, like: Array) -> Array:
        return self.unstack(x, like.shape)


def matrices(
    choice: Any, flat: gtree.Flat, where: str, name: str, *, stacked: bool = False
) -> list[Matrix | None]:
    """Each leaf as a matrix, or None for one that is none.

    `choice`, the argument `name` of the factory `where`, is a `MatrixAxes` (or a named tuple of
    `reduction_axis` and `output_axis`) for every leaf of two and more axes; a tree of them, with
    None for other leaves; a function that makes one; `by_path`; or None: the leaves with two axes.
    Several matrices in one leaf are allowed if `stacked`.

    Raises:
      ValueError: the choice does not fit; the message names the path.
    """
    pairs = zip(flat.values, _chosen(choice, flat, f"{where}: {name}"), strict=True)
    return [
        None if x is None or axes is None else _matrix(flat, i, axes, f"{where}: {name}", stacked)
        for i, (x, axes) in enumerate(pairs)
    ]


def only_matrices(choice: Any, flat: gtree.Flat, where: str, name: str) -> list[Matrix | None]:
    """`matrices`, stacks too, for a rule that takes nothing else; None for a leaf that is None.

    Raises:
      ValueError: a leaf is no matrix; the message names the path.
    """
    found = matrices(choice, flat, where, name, stacked=True)
    for path, x, m in zip(flat.paths, flat.values, found, strict=True):
        if x is not None and m is None:
            raise ValueError(
                f"{where}: the leaf {path!r} of shape {jnp.shape(x)} is no matrix. Leave it out "
                f"with masked or partition, or say in {name} which of its axes are the rows and "
                f"the columns."
            )
    return found


def check_paths(choice: Any, flat: gtree.Flat, where: str) -> None:
    """Raises ValueError for a `by_path` that leaves a pattern or a leaf out; for `init`."""
    if isinstance(choice, ByPath) and gtree.array_paths(flat):
        choice.check(gtree.array_paths(flat), f"{where}: by_path")


def axis_numbers(given: Any) -> tuple[int, ...]:
    """One axis, or several, as a tuple; raises TypeError for anything else."""
    return tuple(map(whole_number, given if np.iterable(given) else (given,)))


def whole_number(n: Any) -> int:
    """An integer of Python or NumPy; raises TypeError for a bool or anything else."""
    if isinstance(n, bool):
        raise TypeError(f"{n} is no number")
    return operator.index(n)


def is_axes(x: Any) -> bool:
    # By its fields, not by its class: those of Optax and of several rules are welcome.
    return getattr(x, "_fields", None) in (_FIELDS, MatrixAxes._fields)


def _chosen(choice: Any, flat: gtree.Flat, what: str) -> list[Any]:
    if choice is None:
        return [MatrixAxes() if x is not None and jnp.ndim(x) == 2 else None for x in flat.values]
    if is_axes(choice):
        return [choice if x is not None and jnp.ndim(x) >= 2 else None for x in flat.values]
    if isinstance(choice, ByPath):
        # Without the check of `check_paths`, since in `update` a gradient may be missing.
        pairs = zip(flat.paths, flat.values, strict=True)
        return [None if x is None else choice.pick(path) for path, x in pairs]
    tree = choice(flat.tree) if callable(choice) else choice
    return gtree.broadcast(tree, flat.tree, what, lambda x: x is None or is_axes(x))


def _matrix(flat: gtree.Flat, i: int, axes: Any, what: str, stacked: bool) -> Matrix:
    if not is_axes(axes):
        raise ValueError(
            f"{what} must be None or MatrixAxes (or a pair of {' and '.join(_FIELDS)}) for each "
            f"leaf; at {flat.paths[i]!r} it is {core.show(axes)}."
        )
    shape = jnp.shape(flat.values[i])
    try:
        groups = [axis_numbers(group) for group in axes[:2]]
        parts = whole_number(getattr(axes, "parts", 1))
    except TypeError as error:
        raise ValueError(
            f"{what}: at {flat.paths[i]!r} the axes must be whole numbers or tuples of them, and "
            f"parts must be a whole number; got {core.show(axes)}."
        ) from error
    all_axes = [n for group in groups for n in group]
    in_range = all(-len(shape) <= n < len(shape) for n in all_axes)
    if in_range:
        groups = [tuple(n % len(shape) for n in group) for group in groups]
    rows, columns = groups
    outer = tuple(n for n in range(len(shape)) if n not in rows + columns)
    twice = len({*rows, *columns}) < len(rows + columns)
    if not in_range or twice or not (rows and columns) or (outer and not stacked):
        each = "at most one" if stacked else "one"
        raise ValueError(
            f"{what}: at {flat.paths[i]!r} each axis of the shape {shape} must be in {each} of "
            f"{' and '.join(axes._fields[:2])}, and each of these must have an axis; got "
            f"{core.show(axes)}."
        )
    side_by_side = math.prod(shape[n] for n in columns)
    if parts < 1 or side_by_side % parts or (parts > 1 and not stacked):
        raise ValueError(
            f"{what}: at {flat.paths[i]!r} parts must be a whole number that divides the "
            f"{side_by_side} columns; got {core.show(axes)}."
        )
    blocks, high = (math.prod(shape[n] for n in group) for group in (outer, rows))
    return Matrix(outer, rows, columns, blocks, high, side_by_side // parts, parts)
