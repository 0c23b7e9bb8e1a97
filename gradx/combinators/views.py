"""Other views of a tree: the whole of it as one vector, or each complex array as two real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import check_inner
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift.passes import check_array
from gradx.lift.states import check_state
from gradx.numbers.sources import Array

__all__ = [
    "SplitRealAndImaginaryArrays",
    "SplitRealAndImaginaryState",
    "flatten",
    "split_real_and_imaginary",
]


# ---------------------------------------------------------------- one vector


@core.recorded
def flatten(inner: Contract) -> Transform:
    r"""Applies a transformation to the whole tree as one vector.

    .. math:: u = \mathrm{tree}(T(\mathrm{vec}(g)))

    Whatever \(T\) does to each leaf (a norm, a trust ratio, a clip by block), it then does to all
    together. In Optax this is also a way to speed up trees of many small leaves. In gradx it costs
    more than it saves, since a vector has to be put together in every step.

    Args:
      inner: \(T\), gradx's or Optax's. Its state has vectors in place of trees, in the order of
        `jax.tree.leaves`, and of the widest dtype of the leaves.

    Raises:
      ValueError: `inner` is not a transformation; a leaf that is not a floating-point array; real
        and complex leaves in one tree.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.flatten(gradx.clip_by_block_rms(1.0))
      >>> grads = {"a": jnp.array([6.0]), "b": jnp.array([0.0, 0.0, 0.0])}
      >>> tx.update(grads, tx.init(grads))[0]["a"]
      Array([2.], dtype=float32)

    A leaf without a gradient (`None`) counts as zeros if `update` is given its parameter. Otherwise
    it is left out, which works only if \(T\) has no state for each element. Deviation from Optax:
    each update has its gradient's dtype, not the vector's.
    """
    where = core.where()
    check_inner(inner, where)
    wrapped = core.with_extra_args(inner)

    def init(params: Params) -> State:
        flat = gtree.flatten(params)
        return wrapped.init(_vector(flat, flat.values, where, "parameter"))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        flat = gtree.flatten(jax.tree.map(gtree.as_number, updates))
        seen, vector = list(flat.values), None
        if params is not None:
            values = gtree.flatten_like(flat, params, "the parameters", where)
            pairs = list(zip(flat.values, values, strict=True))
            for i, (g, p) in enumerate(pairs):
                if g is not None and p is not None and jnp.shape(g) != jnp.shape(p):
                    raise ValueError(
                        f"{where}: at {flat.paths[i]!r} the update has shape {jnp.shape(g)} and "
                        f"the parameter {jnp.shape(p)}."
                    )
            seen = [jnp.zeros_like(p) if g is None and p is not None else g for g, p in pairs]
            vector = _vector(flat, values, where, "parameter")
        moved, state = wrapped.update(_vector(flat, seen, where, "update"), state, vector, **extra)
        ends = np.cumsum([0 if x is None else np.size(x) for x in seen])
        new = [
            None if g is None else _piece(part, g)
            for part, g in zip(jnp.split(moved, ends[:-1]), flat.values, strict=False)
        ]
        return flat.unflatten(new), state

    def described(params: Params, state: State) -> list[Part]:
        flat = gtree.flatten(params)
        vector = jax.eval_shape(lambda x: _vector(flat, x, where, "parameter"), flat.values)
        return [Part("", inner, vector, state)]

    return Transform(init, update, parts=described)


def _vector(flat: gtree.Flat, values: Sequence[Any], where: str, what: str) -> Array:
    for i, x in enumerate(values):
        if x is not None:
            check_array(x, flat, i, where, what)
    arrays = [jnp.asarray(gtree.as_number(x)) for x in values if x is not None]
    if len({jnp.iscomplexobj(x) for x in arrays}) > 1:
        raise ValueError(
            f"{where}: the tree has real and complex leaves, which do not fit in one vector; "
            f"split_real_and_imaginary(flatten(…)) makes all of them real."
        )
    if not arrays:
        return jnp.zeros((0,), jnp.float32)
    dtypes = {x.dtype for x in arrays}
    dtype = dtypes.pop() if len(dtypes) == 1 else gtree.wide(*dtypes)
    return jnp.concatenate([_raveled(x).astype(dtype) for x in arrays])


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _raveled(x: Array) -> Array:
    return x.ravel()


@jax.jit
def _piece(part: Array, like: Array) -> Array:
    return part.reshape(like.shape).astype(like.dtype)


# ---------------------------------------------------------------- complex as real


class SplitRealAndImaginaryArrays(NamedTuple):
    """The two real arrays in place of a complex one.

    Attributes:
      real: its real part.
      imaginary: its imaginary part.
    """

    real: Array
    imaginary: Array


class SplitRealAndImaginaryState(NamedTuple):
    """The state of `split_real_and_imaginary`.

    Attributes:
      inner_state: the inner state, with a pair of real arrays for each complex one.
    """

    inner_state: Any


@core.recorded
def split_real_and_imaginary(inner: Contract) -> Transform:
    r"""Applies a transformation to each complex array as two real ones.

    .. math:: u = T(\mathrm{Re}\, g) + i\, T(\mathrm{Im}\, g)

    Real and imaginary parts are then parameters of their own, with second moments of their own;
    without this, gradx's rules treat a complex number as one, by \(|g|^2\). Real leaves pass as
    they are. `jax.grad` of a real loss gives the conjugate of the direction of ascent: conjugate it
    before `update`.

    Args:
      inner: \(T\), gradx's or Optax's.

    Raises:
      ValueError: `inner` is not a transformation.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.split_real_and_imaginary(gradx.sign_sgd(0.5))
      >>> tx.update(jnp.array([3.0 - 4.0j]), tx.init(jnp.ones(1, complex)))[0]
      Array([-0.5+0.5j], dtype=complex64)
    """
    where = core.where()
    check_inner(inner, where)
    wrapped = core.with_extra_args(inner)

    def init(params: Params) -> SplitRealAndImaginaryState:
        return SplitRealAndImaginaryState(wrapped.init(jax.tree.map(_split, params)))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SplitRealAndImaginaryState]:
        check_state(state, SplitRealAndImaginaryState, where)
        pairs, inner_state = wrapped.update(
            jax.tree.map(_split, updates),
            state.inner_state,
            jax.tree.map(_split, params),
            **extra,
        )
        merged = jax.tree.map(_merge, pairs, is_leaf=_is_split)
        return merged, type(state)(inner_state)

    def described(params: Params, state: State) -> list[Part]:
        pairs = jax.eval_shape(lambda p: jax.tree.map(_split, p), params)
        return [Part("", inner, pairs, state.inner_state)]

    return Transform(init, update, parts=described)


def _split(x: Any) -> Any:
    if not gtree.is_inexact(x) or not jnp.iscomplexobj(x):
        return x
    return SplitRealAndImaginaryArrays(jnp.real(x), jnp.imag(x))


def _is_split(x: Any) -> bool:
    return isinstance(x, SplitRealAndImaginaryArrays)


def _merge(x: Any) -> Any:
    # Not real + 1j * imaginary, which makes NaN of an infinite part.
    return jax.lax.complex(x.real, x.imaginary) if _is_split(x) else x
