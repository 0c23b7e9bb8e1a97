"""Weight decay, in the three ways of the papers, and a mask that leaves out biases and norms."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax

from gradx import core
from gradx.combinators.chain import identity
from gradx.combinators.partition import masked
from gradx.core import Count, Transform, ranges
from gradx.core import trees as gtree
from gradx.core.meaning import Number, Option
from gradx.core.vocabulary import RANGES
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers import sources
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.scaling import descend

__all__ = ["WeightDecaySchedule", "add_decayed_weights", "weights_only"]


DecayKind: TypeAlias = Annotated[
    Literal["learning_rate", "schedule", "independent"],
    Option(r"what \(\lambda\) is multiplied by (see `adamw`)"),
]


class WeightDecaySchedule(NamedTuple):
    """The state of `add_decayed_weights` with a schedule.

    Attributes:
      count: the updates done so far, int32 ().
    """

    count: Count


@core.recorded
def add_decayed_weights(
    weight_decay: Annotated[Hyper, Number("(-inf, inf)")] = 0.0,
    mask: Any = None,
    *,
    flip_sign: bool = False,
) -> Transform:
    r"""Weight decay: adds the parameters, scaled, to the updates.

    .. math:: u \leftarrow u + \lambda \theta

    Args:
      mask: where to add it: a tree of bools or a prefix of it, a function that makes one, or
        `by_path`; `gradx.weights_only` leaves out biases and norms. By default everywhere.
      flip_sign: subtract instead, to shrink the parameters where nothing negates the updates
        afterwards.

    Raises:
      ValueError: `update` is called without the parameters, unless \(\lambda\) is the constant 0.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.add_decayed_weights(0.1)
      >>> p = jnp.array([2.0])
      >>> tx.update(jnp.zeros(1), tx.init(p), p)[0]
      Array([0.2], dtype=float32)

    Reference: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*,
    https://arxiv.org/abs/1711.05101.
    """
    if ranges.is_zero(weight_decay):
        tx = identity()
    else:
        tx = leafwise(
            _subtract if flip_sign else _add,
            state=WeightDecaySchedule if sources.is_scheduled(weight_decay) else optax.EmptyState,
            hypers={"weight_decay": weight_decay},
            needs_params=True,
        )
    return tx if mask is None else masked(tx, mask)


def _add(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    return g + h.weight_decay * p, s


def _subtract(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    return g - h.weight_decay * p, s


# Last names in paths of leaves that are not weights, in Flax, Haiku, Equinox and PyTorch trees.
_NO_WEIGHTS = {"bias", "b", "scale", "offset", "beta", "gamma"}
_NORM = re.compile(r"(layer|batch|group|instance|rms)?norms?|ln|bn|gn")


@core.registered
def weights_only(params: Any) -> Any:
    """A mask that leaves out biases and the parameters of normalisation layers.

    A leaf is out if it has fewer than two axes, if its name is ``bias``, ``b``, ``scale``,
    ``offset``, ``beta`` or ``gamma``, or if a word in its path is a norm (``LayerNorm_0``,
    ``norm1``, ``ln_f``, ``bn2``). So it also holds for stacked layers, whose biases have two axes.

    Args:
      params: a tree of parameters.

    Returns:
      A tree of bools, for the `mask` of gradx's and Optax's optimizers.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.weights_only({"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}})
      {'dense': {'bias': False, 'kernel': True}}
      >>> tx = gradx.adamw(1e-3, weight_decay=0.1, mask=gradx.weights_only)
    """
    return gtree.map_with_path(_is_weight, params)


def _is_weight(path: str, leaf: Any) -> bool:
    *outer, name = path.split("/")
    words = [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", "/".join(outer))]
    joined = [a + b for a, b in pairwise(words)]  # LayerNorm
    norm = any(_NORM.fullmatch(word) for word in (*words, *joined))
    return jnp.ndim(leaf) >= 2 and name.lower() not in _NO_WEIGHTS and not norm


def scale_and_decay(
    learning_rate: Hyper, weight_decay: Hyper, mask: Any, decay: DecayKind
) -> tuple[Transform, ...]:
    r"""The last elements of every optimizer with decoupled weight decay.

    .. math::
        \text{learning\_rate:} &\quad \theta \leftarrow \theta - \eta_t (u + \lambda \theta) \\
        \text{schedule:}       &\quad \theta \leftarrow \theta - \eta_t u - s_t \lambda \theta,
                                \quad \eta_t = \eta s_t \\
        \text{independent:}    &\quad \theta \leftarrow \theta - \eta_t u - \lambda \theta
    """
    # Checked here for factories outside gradx: `add_decayed_weights` takes any number.
    where = core.where()
    weight_decay = sources.within(weight_decay, RANGES["weight_decay"], "weight_decay", where)
    rate = descend(learning_rate)
    if decay == "learning_rate":
        return add_decayed_weights(weight_decay, mask), rate
    if decay == "schedule":
        shapes = _shapes(learning_rate)
        weight_decay = sources.scaled(weight_decay, *shapes) if shapes else weight_decay
    return rate, add_decayed_weights(weight_decay, mask, flip_sign=True)


def _shapes(learning_rate: Hyper) -> tuple[Hyper, ...]:
    """The scheduled factors of a learning rate, without the peak value that they multiply."""
    if isinstance(learning_rate, sources.Scaled):
        return tuple(f for f in learning_rate.factors if sources.is_scheduled(f))
    if sources.is_scheduled(learning_rate):
        raise ValueError(
            f"{core.where()}: decay='schedule' has to know which part of the learning rate is the "
            f"schedule: write learning_rate=scaled(peak_value, shape), with a shape that is 1 at "
            f"its peak."
        )
    return ()
