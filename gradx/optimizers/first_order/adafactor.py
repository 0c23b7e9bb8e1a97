"""Adafactor: the second moment of a matrix, estimated from its row means and column means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.ranges import Scalar, as_float
from gradx.core.roots import divide, rsqrt
from gradx.core.trees import abs_sq, finite_sq
from gradx.lift.averages import storage
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers import counting, hyper
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.clip import clip_by_block_rms
from gradx.pieces.moments import ema
from gradx.pieces.norms import scale_by_param_block_rms
from gradx.pieces.scaling import scale, scale_by_learning_rate
from gradx.pieces.weight_decay import add_decayed_weights

__all__ = ["FactoredState", "adafactor", "scale_by_factored_rms"]


class FactoredState(NamedTuple):
    """The state of Adafactor's second moment.

    A leaf keeps `v_row` and `v_col`, or `v`. The other fields are zeros of shape (1,).

    Attributes:
      count: the updates done so far, int32 ().
      v_row: the means over the longest axis: (rows,) for a matrix that is wider than high, real.
      v_col: the means over the second longest axis: (columns,), real.
      v: the second moment of a leaf that is not factored, like the parameter, real.
    """

    count: Count
    v_row: Updates
    v_col: Updates
    v: Updates


def _power(count: Array, exponent: Scalar) -> Array:
    """Adafactor's decay, 1 - t**-c. It begins with 0, so no bias correction is needed."""
    return 1 - (as_float(count) + 1.0) ** -exponent


@core.recorded
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Annotated[Hyper, Number("[0, 1]")] = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Annotated[Hyper, Number("(0, inf)", r"\epsilon")] = 1e-30,
    decay_rate_fn: Callable[[Any, Any], Any] = _power,
) -> Transform:
    r"""Divides each element by the root of its mean square, estimated from row and column means.

    .. math::
        \beta &= 1 - t^{-c} \\
        r_i &\leftarrow \beta r_i + (1 - \beta) \operatorname{mean}_j (|g_{ij}|^2 + \epsilon) \\
        c_j &\leftarrow \beta c_j + (1 - \beta) \operatorname{mean}_i (|g_{ij}|^2 + \epsilon) \\
        u_{ij} &= g_{ij} / \sqrt{r_i c_j / \operatorname{mean}_i r_i}

    A leaf whose two longest axes are not both long enough keeps a second moment of its own shape.

    Args:
      factored: whether to factor second moments at all.
      decay_rate: the exponent \(c\) of the second moment's decay.
      step_offset: how many updates, 0 or more, \(t\) does not count; until then \(t = 1\). For
        fine-tuning with the state of an earlier run.
      min_dim_size_to_factor: how long the second longest axis must be, at least 1.
      epsilon: a small number added to the squares.
      decay_rate_fn: calculates \(\beta\): `(count, decay_rate) -> beta`; the count begins with 0.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_factored_rms(min_dim_size_to_factor=2)
      >>> state = tx.init(jnp.ones((2, 3)))
      >>> state.v_row.shape, state.v_col.shape, state.v.shape
      ((2,), (3,), (1,))
      >>> g = jnp.array([[1.0, 2.0, -4.0], [3.0, 6.0, 12.0]])
      >>> tx.update(g, state)[0]
      Array([[ 1.,  1., -1.],
             [ 1.,  1.,  1.]], dtype=float32)

    Reference: Shazeer and Stern, *Adafactor*, https://arxiv.org/abs/1804.04235, algorithm 4. Zhai
    et al., *Scaling vision transformers*, https://arxiv.org/abs/2106.04560, bound \(\beta\), which
    `decay_rate_fn` can do.
    """
    least = math.ceil(hyper.constant("min_dim_size_to_factor", min_dim_size_to_factor, "[1, inf)"))
    offset = counting.steps("step_offset", step_offset, 0)
    return leafwise(
        _divide_by_rms,
        init=partial(_start, factored=factored, least=least),
        state=FactoredState,
        hypers={"decay_rate": decay_rate, "epsilon": epsilon},
        flags={"factored": factored, "min_dim_size_to_factor": least},
        per_step=partial(_weights, beta=decay_rate_fn, offset=offset),
        per_leaf=_means,
    )


def _axes(shape: Sequence[int], factored: bool, least: int) -> tuple[int, int] | None:
    """The second longest axis and the longest; `None` for a leaf that is not factored."""
    axes = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    if not factored or len(shape) < 2 or shape[axes[0]] < least:
        return None
    return axes[0], axes[1]


def _start(p: Array, *, factored: bool, least: int) -> Mapping[str, Array]:
    axes = _axes(p.shape, factored, least)
    nothing = jnp.zeros((1,), p.real.dtype)
    if axes is None:
        return {
            "v_row": nothing,
            "v_col": jnp.zeros((1,), p.real.dtype),
            "v": jnp.zeros_like(p.real),
        }
    short, long = axes
    rows, columns = (jax.eval_shape(partial(jnp.mean, axis=axis), p.real) for axis in (long, short))
    return {"v_row": jnp.zeros_like(rows), "v_col": jnp.zeros_like(columns), "v": nothing}


def _weights(h: Numbers, t: Array, *, beta: Any, offset: int) -> Mapping[str, Any]:
    keep = beta(jnp.maximum(t - 1 - offset, 0), h.decay_rate)
    return {"keep": keep, "add": 1 - keep}


def _means(g: Any, s: FactoredState, p: Any, h: Numbers) -> Mapping[str, Array]:
    axes = _axes(g.shape, h.factored, h.min_dim_size_to_factor)
    if axes is None:
        return {}
    short, long = axes
    means = jnp.mean(abs_sq(g), axis=long), jnp.mean(abs_sq(g), axis=short)
    # Bounded so that their sum is finite, too: the rows are divided by their mean.
    rows, columns = (jnp.minimum(x, jnp.finfo(x.dtype).max / max(2 * x.size, 1)) for x in means)
    return {"rows": rows, "columns": columns}


def _divide_by_rms(g: Array, s: FactoredState, p: None, h: Numbers) -> tuple[Array, FactoredState]:
    axes = _axes(g.shape, h.factored, h.min_dim_size_to_factor)
    if axes is None:
        v = h.keep * s.v + h.add * (finite_sq(g) + h.epsilon)
        return g * rsqrt(v), s._replace(v=v)
    short, long = axes
    row = h.keep * s.v_row + h.add * (h.rows + h.epsilon)
    column = h.keep * s.v_col + h.add * (h.columns + h.epsilon)
    # `row` no longer has the longest axis.
    of_all = jnp.mean(row, axis=short - (short > long), keepdims=True)
    of_row = jnp.expand_dims(rsqrt(divide(row, of_all)), long)
    of_column = jnp.expand_dims(rsqrt(column), short)
    return g * of_row * of_column, s._replace(v_row=row, v_col=column)


@core.recorded
def adafactor(
    learning_rate: Hyper | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Annotated[Hyper, Number("[0, 1]")] = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Annotated[Hyper | None, Number("(0, inf]", r"\tau")] = 1.0,
    momentum: Hyper | None = None,
    dtype_momentum: Any = jnp.float32,
    weight_decay_rate: Annotated[Hyper | None, Number("[0, inf)", r"\lambda")] = None,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
) -> Transform:
    r"""Adafactor: adaptive steps that store only one row and one column for each matrix.

    .. math::
        d &= \frac{v}{\max(1, \mathrm{RMS}(v) / \tau)}, \qquad
             v_{ij} = g_{ij} / \sqrt{r_i c_j / \operatorname{mean}_i r_i} \\
        u &= -\eta \max(\mathrm{RMS}(\theta), 10^{-3})\, d - \lambda \theta

    The means are as in `scale_by_factored_rms`. With a momentum, the first term of \(u\) is
    averaged.

    Args:
      learning_rate: It is relative to the size of each parameter; `None` for 1.
      min_dim_size_to_factor: how long the second longest axis of a leaf must be for it to be
        factored, at least 1.
      decay_rate: the exponent of the second moment's decay.
      decay_offset: how many updates, 0 or more, this decay does not count.
      multiply_by_parameter_scale: whether \(\eta\) is relative to the parameter's root mean square.
      clipping_threshold: the largest root mean square of a leaf's update; `None` does not clip.
      momentum: With `None` there is no such average.
      dtype_momentum: the dtype to keep that average in; float32 becomes float64 for float64
        parameters.
      weight_decay_rate: how strongly parameters are drawn to zero in each step. It is *not*
        multiplied by the learning rate.
      eps: a small number added to the squares.
      factored: whether to factor second moments at all.

    Raises:
      ValueError: `update` is called without the parameters, and needs them.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adafactor(0.1)
      >>> p = jnp.array([2.0, -2.0])
      >>> tx.update(jnp.array([5.0, 1.0]), tx.init(p), p)[0].round(4)
      Array([-0.2, -0.2], dtype=float32)

    Reference: Shazeer and Stern, *Adafactor: adaptive learning rates with sublinear memory cost*,
    https://arxiv.org/abs/1804.04235, algorithms 4 and 5. The paper's learning rate, which decays
    by itself, is \(\min(10^{-2}, 1/\sqrt t)\).
    """
    dtype = storage("dtype_momentum", dtype_momentum)
    parts = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        parts.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        parts.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(scale_by_param_block_rms())
    if momentum is not None:
        parts.append(ema(momentum, False, None if dtype == jnp.float32 else dtype))
    if weight_decay_rate is not None:
        parts.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*parts, scale(-1.0))
