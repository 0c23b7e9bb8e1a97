"""DoG and DoWG: step sizes from the distance travelled, divided by the gradients seen."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain, identity
from gradx.core import Params, Transform
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.numbers import hyper
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.norms import by_factor, quotient, squares_at_init
from gradx.pieces.scaling import descend
from gradx.pieces.weight_decay import add_decayed_weights

__all__ = [
    "DoGState",
    "DoWGState",
    "dog",
    "dowg",
    "scale_by_dog",
    "scale_by_dowg",
]


# ---------------------------------------------------------------- what they share


def _start(p: Array, sums: Sums | None = None) -> Mapping[str, Array]:
    return {"init_params": p}  # the lift copies it, since a donated state would free the parameters


def _squares(g: Array, s: DoGState | DoWGState, p: Array, h: Numbers) -> Mapping[str, Array]:
    return {"gradient": jnp.sum(abs_sq(g)), "distance": jnp.sum(abs_sq(p - s.init_params))}


def _decayed(weight_decay: Hyper | None, mask: Any) -> Transform:
    return identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)


# ---------------------------------------------------------------- DoG


InitStep = tuple[Literal["distance", "learning_rate", "heuristic"], float]


class DoGState(NamedTuple):
    """The state of DoG.

    Attributes:
      is_init_step: whether the next update is the first, bool ().
      init_params: the parameters at `init`, like the parameters.
      max_dist: the largest distance from them so far, float32 or wider ().
      sum_sq_norm_grads: the sum of the squared gradient norms, float32 or wider ().
    """

    is_init_step: Array
    init_params: Params
    max_dist: Array
    sum_sq_norm_grads: Array


@core.recorded
def scale_by_dog(init_step: InitStep, eps: Hyper = 1e-8, *, axis_name: Any = None) -> Transform:
    r"""Scales updates by DoG's step size: distance travelled over the root of squared gradients.

    .. math::
        \bar r &\leftarrow \max(\bar r, \lVert \theta - \theta_0 \rVert), \qquad
        G \leftarrow G + \lVert g \rVert^2 \\
        u &= \frac{\bar r}{\sqrt{G + \epsilon}}\, g

    The norms are taken over the whole tree.

    Args:
      init_step: how it begins, a pair of a word and a number in (0, inf). After ``"distance"`` the
        number is the first \(\bar r\). After ``"heuristic"`` it is \(\alpha\) in \(\bar r = \alpha
        (1 + \lVert \theta_0 \rVert)\). After ``"learning_rate"`` it is the factor of \(g\) until
        the parameters move.
      axis_name: Call `init` inside or outside of it.

    Raises:
      ValueError: an unknown word or a number out of range in `init_step`; `update` is called
        without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_dog(("distance", 0.5), eps=0.0)
      >>> params = jnp.zeros(2)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0]
      Array([0.3, 0.4], dtype=float32)

    Reference: Ivgi et al., *DoG is SGD's best friend*, https://arxiv.org/abs/2302.12022, 2023. The
    authors evaluate an average of the iterates. Deviation from Optax: with ``"learning_rate"`` the
    first factor holds until the parameters move. In Optax a first gradient (or learning rate) of
    zero leaves \(\bar r\) at zero for ever.
    """
    kind, value = _checked(init_step)
    return leafwise(
        by_factor,
        init=_start,
        state=DoGState,
        hypers={"eps": eps},
        flags={"first_rate": value if kind == "learning_rate" else None},
        measure=_squares,
        per_tree=_dog,
        measure_init=squares_at_init,
        scalars={
            "is_init_step": True,
            "max_dist": partial(_first_distance, kind=kind, value=value),
            "sum_sq_norm_grads": 0.0,
        },
        axis_name=axis_name,
        needs_params=True,
    )


def _checked(init_step: Any) -> tuple[str, Any]:
    kinds = ("distance", "learning_rate", "heuristic")
    pair = isinstance(init_step, tuple | list) and len(init_step) == 2
    if not pair or not isinstance(init_step[0], str) or init_step[0] not in kinds:
        raise ValueError(
            f"{core.where()}: init_step must be a pair of one of {', '.join(map(repr, kinds))} and "
            f"a number, got {core.show(init_step)}."
        )
    return init_step[0], hyper.constant("init_step[1]", init_step[1], "(0, inf)")


def _first_distance(sums: Sums, *, kind: str, value: Any) -> Any:
    if kind == "learning_rate":
        return 0.0
    return value * (1 + jnp.sqrt(sums.get("squares", 0.0))) if kind == "heuristic" else value


def _dog(h: Numbers, sums: Sums) -> Decided:
    distance = jnp.maximum(h.max_dist, sqrt(sums["distance"]))
    total = h.sum_sq_norm_grads + sums["gradient"]
    rate = quotient(distance, sqrt(total + h.eps))
    if h.first_rate is not None:
        rate = jnp.where(distance > 0, rate, h.first_rate)
    new = {"is_init_step": False, "max_dist": distance, "sum_sq_norm_grads": total}
    return {"factor": rate}, new


@core.recorded
def dog(
    learning_rate: Hyper = 1.0,
    init_step: InitStep = ("heuristic", 1e-6),
    eps: Hyper = 1e-8,
    weight_decay: Hyper | None = None,
    mask: Any = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""DoG: learning-rate-free gradient descent, by distance over gradients.

    .. math:: u_t = -\eta \frac{\max_{k \le t} \lVert \theta_k - \theta_0 \rVert}
              {\sqrt{\sum_{k \le t} \lVert g_k \rVert^2 + \epsilon}}\, g_t

    Args:
      learning_rate: a further factor of the step; 1 is the method.
      init_step: how it begins (see `scale_by_dog`). The authors suggest ``("heuristic", 1e-6)``, or
        1e-4 for a model with batch normalization. The heuristic reads all parameters that `init` is
        given, also those that never get a gradient.
      weight_decay: The decay is added to the gradient.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.dog(init_step=("distance", 0.5))
      >>> params = jnp.zeros(2)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0]
      Array([-0.3, -0.4], dtype=float32)

    Reference: Ivgi et al., *DoG is SGD's best friend*, https://arxiv.org/abs/2302.12022, 2023.
    """
    return chain(
        _decayed(weight_decay, mask),
        scale_by_dog(init_step, eps, axis_name=axis_name),
        descend(learning_rate),
    )


# ---------------------------------------------------------------- DoWG


class DoWGState(NamedTuple):
    """The state of DoWG.

    Attributes:
      init_params: the parameters at `init`, like the parameters.
      weighted_sq_norm_grads: the sum of squared gradient norms, each times the squared distance at
        its step, float32 or wider ().
      estim_sq_dist: the largest squared distance so far, float32 or wider ().
    """

    init_params: Params
    weighted_sq_norm_grads: Array
    estim_sq_dist: Array


@core.recorded
def scale_by_dowg(
    init_estim_sq_dist: Annotated[float | None, Number("(0, inf)")] = None,
    eps: Annotated[float, Number("(0, inf)")] = 1e-4,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Scales updates by DoWG's step size: squared distance over the root of weighted gradients.

    .. math::
        \bar r^2 &\leftarrow \max(\bar r^2, \lVert \theta - \theta_0 \rVert^2), \qquad
        V \leftarrow V + \bar r^2 \lVert g \rVert^2 \\
        u &= \frac{\bar r^2}{\sqrt{V} + \epsilon}\, g

    The norms are taken over the whole tree.

    Args:
      init_estim_sq_dist: the first \(\bar r^2\); by default `eps`.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_dowg(init_estim_sq_dist=0.25)
      >>> params = jnp.zeros(2)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0].round(4)
      Array([0.3, 0.4], dtype=float32)

    Reference: Khaled et al., *DoWG unleashed*, https://arxiv.org/abs/2305.16284, 2023.
    """
    first = eps if init_estim_sq_dist is None else init_estim_sq_dist
    return leafwise(
        by_factor,
        init=_start,
        state=DoWGState,
        flags={"eps": eps},
        measure=_squares,
        per_tree=_dowg,
        scalars={"weighted_sq_norm_grads": 0.0, "estim_sq_dist": first},
        axis_name=axis_name,
        needs_params=True,
    )


def _dowg(h: Numbers, sums: Sums) -> Decided:
    distance = jnp.maximum(h.estim_sq_dist, sums["distance"])
    total = h.weighted_sq_norm_grads + distance * sums["gradient"]
    new = {"weighted_sq_norm_grads": total, "estim_sq_dist": distance}
    return {"factor": distance / (sqrt(total) + h.eps)}, new


@core.recorded
def dowg(
    learning_rate: Hyper = 1.0,
    init_estim_sq_dist: Annotated[float | None, Number("(0, inf)")] = None,
    eps: Annotated[float, Number("(0, inf)")] = 1e-4,
    weight_decay: Hyper | None = None,
    mask: Any = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""DoWG: learning-rate-free gradient descent, by squared distance over weighted gradients.

    .. math:: u = -\eta \frac{\bar r^2}{\sqrt{V} + \epsilon}\, g

    with the distance and the sum of `scale_by_dowg`.

    Args:
      learning_rate: a further factor of the step; 1 is the method.
      init_estim_sq_dist: the first \(\bar r^2\); by default `eps`.
      weight_decay: The decay is added to the gradient.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.dowg(init_estim_sq_dist=0.25)
      >>> params = jnp.zeros(2)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0].round(4)
      Array([-0.3, -0.4], dtype=float32)

    Reference: Khaled et al., *DoWG unleashed*, https://arxiv.org/abs/2305.16284, 2023.
    """
    return chain(
        _decayed(weight_decay, mask),
        scale_by_dowg(init_estim_sq_dist, eps, axis_name=axis_name),
        descend(learning_rate),
    )
