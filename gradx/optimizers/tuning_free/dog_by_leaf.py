"""Layer-wise DoG: each leaf has its own step size, of its own distance over its own gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.core import Params, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq, wide
from gradx.lift import mapped
from gradx.lift.averages import storage
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers, Sums
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.norms import quotient, squares_at_init

__all__ = ["ScaleByDistanceOverGradientsState", "scale_by_distance_over_gradients"]


class ScaleByDistanceOverGradientsState(NamedTuple):
    """The state of layer-wise DoG.

    Attributes:
      max_dist: the largest distance of each leaf from where it began, float32 or wider ().
      grad_sum_of_squares: the sum of each leaf's squared gradients, float32 or wider (1,).
      init_params: the parameters at `init`, like the parameters, in `param_dtype`.
    """

    max_dist: Updates
    grad_sum_of_squares: Updates
    init_params: Params


@core.recorded
def scale_by_distance_over_gradients(
    reps_rel: Annotated[float, Number("(0, inf)", r"\alpha")] = 1e-6,
    eps: Hyper = 1e-8,
    param_dtype: Any = jnp.float32,
    global_scale: Annotated[Hyper, Number("(-inf, inf)", "c")] = 1.0,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Scales each leaf by layer-wise DoG's step size: its distance over the root of its gradients.

    .. math::
        \bar r_i &\leftarrow \max(\bar r_i, \lVert \theta_i - \theta_{0,i} \rVert), \qquad
        G_i \leftarrow G_i + \lVert g_i \rVert^2 \\
        u_i &= c\, \frac{\bar r_i}{\sqrt{G_i + \epsilon}}\, g_i, \qquad
        \bar r_i = \alpha (1 + \lVert \theta_{0,i} \rVert) \text{ at first}

    Args:
      reps_rel: the first distance relative to the norm; the authors suggest 1e-4 for models with
        batch normalization.
      param_dtype: the dtype to keep \(\theta_0\) in; `None` for the parameter's, at least float32.
        A narrower dtype moves \(\theta_0\): give float64 if the parameters are float64.
      global_scale: a factor of the updates; -1 turns them downhill.
      axis_name: Call `init` inside or outside of it.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_distance_over_gradients(reps_rel=0.1, eps=0.0)
      >>> params = {"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(())}
      >>> grads = {"a": jnp.array([0.0, 5.0]), "b": jnp.array(2.0)}
      >>> tx.update(grads, tx.init(params), params)[0]
      {'a': Array([0. , 0.6], dtype=float32), 'b': Array(0.1, dtype=float32)}

    Reference: Ivgi et al., *DoG is SGD's best friend*, https://arxiv.org/abs/2302.12022, 2023,
    where it is L-DoG. Deviation from Optax: a scalar parameter has a scalar update; there it is
    (1,).
    """
    dtype = storage("param_dtype", param_dtype)
    return leafwise(
        _by_leaf,
        init=partial(_start, ratio=reps_rel, dtype=dtype),
        state=ScaleByDistanceOverGradientsState,
        hypers={"eps": eps, "global_scale": global_scale},
        measure_init=squares_at_init,
        axis_name=axis_name,
        needs_params=True,
    )


def _start(p: Array, sums: Sums, *, ratio: Any, dtype: Any) -> Mapping[str, Array]:
    stored = p.dtype if dtype is None else dtype
    stored = wide(stored, p.dtype) if jnp.iscomplexobj(p) else stored
    real = p.real.dtype
    first = ratio * (1 + sqrt(sums["squares"]))
    return {
        "max_dist": jnp.asarray(first, real),
        "grad_sum_of_squares": jnp.zeros(1, real),
        "init_params": jnp.array(p, stored),
    }


def _by_leaf(
    g: Array, s: ScaleByDistanceOverGradientsState, p: Array, h: Numbers
) -> tuple[Array, ScaleByDistanceOverGradientsState]:
    squares = jnp.sum(abs_sq(g)), jnp.sum(abs_sq(p - s.init_params.astype(p.dtype)))
    gradient, travelled = mapped.total(squares, h.span)
    distance = jnp.maximum(s.max_dist, sqrt(travelled))
    total = s.grad_sum_of_squares + gradient
    rate = h.global_scale * quotient(distance, sqrt(total[0] + h.eps))
    return rate * g, s._replace(max_dist=distance, grad_sum_of_squares=total)
