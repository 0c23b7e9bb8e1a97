"""SM3: AdaGrad's sums of squares, bounded from above by one number for each row and each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import rsqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.scaling import descend

__all__ = ["ScaleBySM3State", "scale_by_sm3", "sm3"]


class ScaleBySM3State(NamedTuple):
    """The state of SM3.

    Attributes:
      mu: the bounds, real: for each parameter a list with one vector for each axis, (rows,) and
        (columns,) for a matrix, or with one number for a scalar.
      nu: the average of the updates, like the parameters.
    """

    mu: Updates
    nu: Updates


@core.recorded
def scale_by_sm3(
    b1: Hyper = 0.9, b2: Annotated[Hyper, Number("[0, 1]")] = 1.0, eps: Hyper = 1e-8
) -> Transform:
    r"""Rescales the updates by SM3's rule, AdaGrad with a bound for each slice of an array.

    .. math::
        s_i &= \min_{k} \mu_k(i) + |g_i|^2, \qquad \mu_k(r) \leftarrow \max_{i \in r} s_i \\
        \nu &\leftarrow \beta_1 \nu + (1 - \beta_1)\, g / \sqrt{s + \epsilon} \\
        u &= \nu

    \(\mu_k\) has a number for each slice \(r\) across axis \(k\), and \(\mu_k(i)\) is that of the
    slice with element \(i\). Elements with \(s_i = 0\) do not move.

    Args:
      b2: how much of the sum of squares is kept each step. Below 1 it is an average.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_sm3(b1=0.0)
      >>> state = tx.init(jnp.ones((2, 2)))
      >>> updates, state = tx.update(jnp.array([[3.0, 1.0], [0.0, 2.0]]), state)
      >>> state.mu
      [Array([9., 4.], dtype=float32), Array([9., 4.], dtype=float32)]
      >>> tx.update(jnp.array([[4.0, 0.0], [0.0, 0.0]]), state)[0]
      Array([[0.8, 0. ],
             [0. , 0. ]], dtype=float32)

    Reference: Anil et al., *Memory-efficient adaptive optimization*,
    https://arxiv.org/abs/1901.11150, algorithm SM3-II.
    """
    return leafwise(
        _sm3,
        init={"mu": _zero_bounds, "nu": zeros},
        state=ScaleBySM3State,
        hypers={"b1": b1, "b2": b2, "eps": eps},
        per_step=_weights,
        per_leaf=_bounds,
    )


def _zero_bounds(p: Array) -> list[Array]:
    others = [tuple(k for k in range(p.ndim) if k != axis) for axis in range(p.ndim)] or [()]
    # Zeros that are sharded as the parameter is, where its type says how.
    shapes = [jax.eval_shape(lambda x, axes=axes: jnp.sum(x, axes), p.real) for axes in others]
    return [jnp.zeros_like(shape) for shape in shapes]


def _weights(h: Numbers, t: Array | None) -> Mapping[str, Any]:
    if isinstance(h.b2, float):
        return {"fresh": 1.0 if h.b2 == 1 else 1 - h.b2}
    return {"fresh": jnp.where(h.b2 == 1, 1.0, 1 - h.b2)}


def _least(bounds: Sequence[Array], rank: int) -> Array:
    """The lowest of the bounds on each element."""
    spread = [
        jnp.expand_dims(bound, [k for k in range(rank) if k != axis])
        for axis, bound in enumerate(bounds)
    ]
    return reduce(jnp.minimum, spread)


def _bounds(g: Any, s: ScaleBySM3State, p: Any, h: Numbers) -> Mapping[str, Any]:
    """The new bounds of an array with two axes or more."""
    bounds = []
    if g.ndim < 2:
        return {}
    # Weighs the vectors and not the sums, which saves the reduction work.
    old = [bound * (h.b2 / h.fresh) for bound in jax.tree.leaves(s.mu)]
    for axis in range(len(old)):
        sums = abs_sq(g) + _least(old, g.ndim)
        others = [k for k in range(g.ndim) if k != axis]
        bounds.append(h.fresh * jnp.max(sums, axis=others, initial=0.0))
    return {"bounds": bounds}


def _sm3(g: Array, s: ScaleBySM3State, p: None, h: Numbers) -> tuple[Array, ScaleBySM3State]:
    sums = h.b2 * _least(jax.tree.leaves(s.mu), g.ndim) + h.fresh * abs_sq(g)
    structure: Any = jax.tree.structure(s.mu)  # Flax NNX makes another container of the list
    bounds = structure.unflatten([sums] if g.ndim < 2 else h.bounds)
    scaled = jnp.where(sums > 0, g * rsqrt(sums + h.eps), 0.0)
    nu = average(s.nu, scaled, h.b1)
    return nu, s._replace(mu=bounds, nu=nu)


@core.recorded
def sm3(
    learning_rate: Hyper, momentum: Annotated[Hyper, Number(symbol=r"\beta_1")] = 0.9
) -> Transform:
    r"""SM3: AdaGrad that stores only one number for each row and each column.

    .. math:: u = -\eta\, \nu, \qquad
              \nu \leftarrow \beta_1 \nu + (1 - \beta_1)\, g / \sqrt{s + \epsilon}

    The sums \(s\) are as in `scale_by_sm3`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.sm3(0.1)
      >>> tx.update(jnp.array([4.0]), tx.init(jnp.ones(1)))[0].round(4)
      Array([-0.01], dtype=float32)

    Reference: Anil et al., *Memory-efficient adaptive optimization*,
    https://arxiv.org/abs/1901.11150.
    """
    return chain(scale_by_sm3(momentum), descend(learning_rate))
