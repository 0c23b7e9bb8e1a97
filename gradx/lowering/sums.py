"""Several sums over one array, and whether it is finite, with as few reads as possible."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gradx.lowering.policy import by_target
from gradx.lowering.varying import varies_over, vary

Array = jax.Array


def sums_of(**summands: Array) -> dict[str, Array]:
    """The sum of each of several real arrays, which are of one shape and made of the same arrays.

    On GPUs the kernel that updates an array can also form one sum of what is made of it. With a
    second sum XLA copies the array. So there all sums are one reduction.
    """
    return dict(zip(summands, _sums(list(summands.values())), strict=True))


def in_one_read(mask: Array, arrays: list[Array]) -> tuple[Array, list[Array]]:
    """Row by row, how many of a mask are True, in int32, and the sums of real arrays of one dtype;
    in as few loops as possible over what all of these are made of.

    For a pass that only reads (else see `sums_of`). On CPUs it is one reduction of several
    operands. If an array is sharded along its rows, that gathers it. So accelerators have complex
    numbers of two sums each; the first array is made of what the mask is.
    """
    shape = mask.shape or (1,)
    mask, arrays = mask.reshape(shape), [x.reshape(shape) for x in arrays]
    if len(set(map(varies_over, (mask, *arrays)))) > 1:  # else all would vary as one does
        return jnp.sum(mask, -1, dtype=jnp.int32), [jnp.sum(x, -1) for x in arrays]
    return by_target("paired", _in_pairs, _counted, mask, arrays)


def _counted(mask: Array, arrays: list[Array]) -> tuple[Array, list[Array]]:
    count, *sums = _at_once([mask.astype(jnp.int32), *arrays], (mask.ndim - 1,))
    return count, sums


def _in_pairs(mask: Array, arrays: list[Array]) -> tuple[Array, list[Array]]:
    every = [mask.astype(arrays[0].dtype), *arrays]
    pairs = [jnp.sum(jax.lax.complex(*every[i : i + 2]), -1) for i in range(0, len(every) - 1, 2)]
    count, *sums = [part for pair in pairs for part in (pair.real, pair.imag)]
    alone = [jnp.sum(every[-1], -1)] * (len(every) % 2)
    return count.astype(jnp.int32), [*sums, *alone]


@jax.custom_jvp
def _sums(arrays: list[Array]) -> list[Array]:
    if len(set(map(varies_over, arrays))) > 1:  # in one reduction all would vary as one does
        return _one_by_one(arrays)
    return by_target("sums", _at_once, _one_by_one, arrays)


@_sums.defjvp
def _(primals: tuple[list[Array]], tangents: tuple[list[Array]]) -> tuple[list[Array], list[Array]]:
    return _sums(*primals), _one_by_one(*tangents)


def _at_once(arrays: list[Array], axes: tuple[int, ...] | None = None) -> list[Array]:
    axes = tuple(range(arrays[0].ndim)) if axes is None else axes
    starts = [vary(jnp.zeros((), x.dtype), varies_over(x)) for x in arrays]
    return list(jax.lax.reduce(arrays, starts, _plus, axes))


def _plus(xs: Sequence[Array], ys: Sequence[Array]) -> list[Array]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


def _one_by_one(arrays: list[Array]) -> list[Array]:
    return [jnp.sum(x) for x in arrays]


def all_finite(arrays: list[Array]) -> Array:
    """Whether no element of any of the arrays is infinite or NaN, bool ().

    A finite sum has only finite terms, and XLA for CPUs forms it in one read, without a temporary.
    If a sum is not finite, perhaps from overflow, every element is looked at.
    """
    return by_target("finite_by_sum", _by_sum, _by_element, arrays)


def _by_sum(arrays: list[Array]) -> Array:
    sure = _all([_finite_sum(x) for x in arrays])
    finite: Array = jax.lax.cond(sure, lambda: sure, lambda: _by_element(arrays))
    return finite


def _by_element(arrays: list[Array]) -> Array:
    return _all([_finite(x) for x in arrays])


def _all(each: list[Array]) -> Array:
    return functools.reduce(jax.lax.bitwise_and, each, jnp.array(True))


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _finite_sum(x: Array) -> Array:
    return jnp.isfinite(jnp.sum(x))


@jax.jit
def _finite(x: Array) -> Array:
    return jnp.all(jnp.isfinite(x))
