"""Matrices cut into blocks, and square factors, one for each block, that multiply the blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.numbers.sources import Array


class Cut(NamedTuple):
    """Blocks of one length, next to each other along an axis."""

    begin: int
    many: int
    length: int
    first: int  # the number of the first block

    @property
    def part(self) -> slice:
        return slice(self.begin, self.begin + self.many * self.length)

    @property
    def numbers(self) -> slice:
        return slice(self.first, self.first + self.many)


def cuts(size: int, block: int) -> list[Cut]:
    """The whole blocks along an axis, and a shorter last one, which is not padded."""
    whole, remainder = divmod(size, block)
    both = [Cut(0, whole, block, 0), Cut(whole * block, 1, remainder, whole)]
    return [cut for cut in both if cut.many and cut.length]


def side_shape(size: int, other: int, block: int) -> tuple[int, int]:
    """The shape of all blocks' factors for one axis: `size` is its length, `other` the other's."""
    return size, -(-other // block) * min(size, block)


def by_block(fn: Callable[..., Array], block: int, *matrices: Array) -> Array:
    """Applies `fn` to the blocks (i, rows, j, columns) of each shape, and joins its results."""
    rows, columns = matrices[0].shape
    bands = []
    for r in cuts(rows, block):
        across = []
        for c in cuts(columns, block):
            split = r.many, r.length, c.many, c.length
            new = fn(r, c, *(x[r.part, c.part].reshape(split) for x in matrices))
            across.append(new.reshape(r.many * r.length, -1))
        bands.append(jnp.concatenate(across, axis=1))
    return jnp.concatenate(bands)


def outer(g: Array, block: int) -> Array:
    """G Gᴴ of each block, in the layout of the state."""
    width = min(g.shape[0], block)

    def products(r: Cut, c: Cut, x: Array) -> Array:
        product = jnp.einsum("iajb,icjb->iajc", x, x.conj(), precision=jax.lax.Precision.HIGHEST)
        return jnp.pad(product, ((0, 0), (0, 0), (0, 0), (0, width - r.length)))

    return by_block(products, block, g)


def factors_of(side: Array, r: Cut, block: int) -> Array:
    """The factors (i, rows, j, rows) of all blocks of one height."""
    width = min(side.shape[0], block)
    return side[r.part].reshape(r.many, r.length, -1, width)[..., : r.length]


def times(side: Array, x: Array, block: int) -> Array:
    """Multiplies each block from the left by its factor."""

    def product(r: Cut, c: Cut, x: Array) -> Array:
        factors = factors_of(side, r, block)[:, :, c.numbers]
        return jnp.einsum("iajc,icjb->iajb", factors, x, precision=jax.lax.Precision.HIGHEST)

    return by_block(product, block, x)


def norms(x: Array) -> Array:
    """The Frobenius norm of each block, without overflow or underflow of the squares."""
    largest = jnp.max(jnp.abs(x), axis=(1, 3), keepdims=True)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return scale * sqrt(jnp.sum(abs_sq(x / scale), axis=(1, 3), keepdims=True))
