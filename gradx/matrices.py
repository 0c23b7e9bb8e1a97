"""Which leaves are matrices, and which of their axes are the rows and the columns."""

from __future__ import annotations

import math
import operator
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx import tree as gtree
from gradx.sources import Array, ByPath

__all__ = ["MatrixAxes", "matrices_by_name"]

_FIELDS = ("reduction_axis", "output_axis")


class MatrixAxes(NamedTuple):
    """How a leaf is seen as a matrix, or as a stack of them.

    Attributes:
      rows: the axis of the inputs, or the axes that are flattened to it (those of a convolution's
        window and its channels).
      columns: the axis or axes of the outputs. An axis that is in neither counts matrices: the
        layers that `nn.scan` or `nnx.vmap` have stacked, or the heads of an attention.
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
        """Seen from the side from which it has at least as many columns as rows."""
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

    def kept(self, slots: Array) -> Array:
        """Arrays of all matrices as the state keeps them: one matrix needs no axis to count it."""
        return slots if self.outer or self.parts > 1 else slots[0]

    def opened(self, slots: Array) -> Array:
        return slots if self.outer or self.parts > 1 else slots[None]

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


def check_paths(choice: Any, flat: gtree.Flat, where: str) -> None:
    """Raises ValueError for a `by_path` that leaves a pattern or a leaf out; for `init`."""
    if isinstance(choice, ByPath) and gtree.array_paths(flat):
        choice.check(gtree.array_paths(flat), f"{where}: by_path")


def reasons(choice: Any, flat: gtree.Flat, where: str, name: str) -> dict[str, str]:
    """Path to why the leaf is a matrix, or none, and what matrices there are in it."""
    said = {}
    found = matrices(choice, flat, where, name, stacked=True)
    for path, x, m in zip(flat.paths, flat.values, found, strict=True):
        shape = jnp.shape(x)
        why = axes_by_name(path, shape)[1] if choice is matrices_by_name else f"by {name}"
        if m is not None:
            count = f"{m.shape[0]} of " * (m.shape[0] > 1)
            why = f"{why}: {count}{m.rows}×{m.columns}"
        said[path] = why
    return said


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
    given = [
        (int(n),) if isinstance(n, int | np.integer) else tuple(map(operator.index, n))
        for n in axes[:2]
    ]
    all_axes = [n for group in given for n in group]
    in_range = all(-len(shape) <= n < len(shape) for n in all_axes)
    rows, columns = [tuple(n % len(shape) for n in group) for group in given] if in_range else given
    chosen = rows + columns
    rest = tuple(n for n in range(len(shape)) if n not in chosen)
    twice = len(set(chosen)) < len(chosen)
    if not in_range or twice or not (rows and columns) or (rest and not stacked):
        each = "at most one" if stacked else "one"
        raise ValueError(
            f"{what}: at {flat.paths[i]!r} each axis of the shape {shape} must be in {each} of "
            f"{' and '.join(axes._fields[:2])}, and each of these must have an axis; got "
            f"{core.show(axes)}."
        )
    parts = getattr(axes, "parts", 1)
    side_by_side = math.prod(shape[n] for n in columns)
    if (
        not isinstance(parts, int)
        or parts < 1
        or side_by_side % parts
        or (parts > 1 and not stacked)
    ):
        raise ValueError(
            f"{what}: at {flat.paths[i]!r} parts must be a whole number that divides the "
            f"{side_by_side} columns; got {core.show(axes)}."
        )
    blocks, high = (math.prod(shape[n] for n in group) for group in (rest, rows))
    return Matrix(rest, rows, columns, blocks, high, side_by_side // parts, parts)


# ---------------------------------------------------------------- by name

# Whole words of a path: `lm_head` and `head_2` are a head, `heads` and `overhead` are not.
_NAMES = {
    "an embedding": r"embed|embedding|embeddings|embedder|wte|wpe|pos|position|vocab|token",
    "a head": r"head|logits|unembed|unembedding|readout|classifier",
    "a bias, a scale or a norm": r"bias|scale|norm|layernorm|rmsnorm|batchnorm|bn|ln",
}
_ATTENTION_IN = r"query|key|value|qkv|q|k|v|q_proj|k_proj|v_proj"
_ATTENTION_OUT = r"out|o|o_proj"


def _has(path: str, words: str) -> bool:
    return re.search(rf"(?:^|[^a-zA-Z])(?:{words})(?:$|[^a-zA-Z])", path, re.IGNORECASE) is not None


def axes_by_name(path: str, shape: tuple[int, ...]) -> tuple[MatrixAxes | None, str]:
    """How one leaf is seen, and why."""
    if len(shape) < 2:
        return None, "fewer than two axes"
    for kind, words in _NAMES.items():
        if _has(path, words):
            return None, kind
    if _has(path, r"conv\w*") and len(shape) > 2:
        return MatrixAxes(tuple(range(len(shape) - 1)), len(shape) - 1), "a convolution"
    if len(shape) == 2:
        return MatrixAxes(0, 1), "two axes"
    if _has(path, r"\w*attention|\w*attn") or _has(path, _ATTENTION_IN):
        if _has(path, _ATTENTION_IN):
            return MatrixAxes(-3, (-2, -1)), "heads side by side in the columns"
        if _has(path, _ATTENTION_OUT):
            return MatrixAxes((-3, -2), -1), "heads side by side in the rows"
    return MatrixAxes(-2, -1), "a stack of matrices"


def matrices_by_name(params: Any) -> Any:
    r"""Which leaves are matrices, as far as paths and shapes can tell: the default of `muon`.

    No matrices, by whole words of their path, are embeddings, heads (``lm_head``, ``logits``,
    ``classifier``), norms, scales and biases, and what has fewer than two axes. A leaf with two
    axes is one; a convolution (``Conv_0``) is flattened to one; the kernels of an attention with
    heads in an axis of their own are flattened over their heads; other leaves with more axes are
    stacks of matrices, in their last two axes.

    Args:
      params: the parameters, or anything with their shapes.

    Returns:
      A tree like them of `MatrixAxes`, with None for what is no matrix.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> params = {"embed": jnp.ones((9, 4)), "mlp": jnp.ones((4, 8)), "bias": jnp.ones(4)}
      >>> gradx.matrices_by_name(params)
      {'bias': None, 'embed': None, 'mlp': MatrixAxes(rows=0, columns=1, parts=1)}

    Deviation from Optax, whose `muon` takes every leaf with two axes for a matrix, embeddings and
    heads as well: pass ``muon_weight_dimension_numbers=gradx.MatrixAxes()`` for that.
    """
    flat = gtree.flatten(params)
    pairs = zip(flat.paths, flat.values, strict=True)
    return flat.unflatten(
        [None if x is None else axes_by_name(path, jnp.shape(x))[0] for path, x in pairs]
    )
