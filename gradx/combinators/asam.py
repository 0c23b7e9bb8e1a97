"""ASAM: sharpness-aware minimisation whose adversary goes by the sizes of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.sam import sam
from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.meaning import Number, Option
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.leafwise import leafwise
from gradx.lift.masks import mask_flags
from gradx.lift.stages import Decided, LeafState, Numbers, Sums
from gradx.numbers.sources import Array, Hyper

__all__ = ["asam", "asam_adversary"]

Rho: TypeAlias = Annotated[
    Hyper, Number("[0, inf)", r"\rho", "how far uphill, in multiples of the parameters' sizes")
]
Eta: TypeAlias = Annotated[
    Hyper, Number("[0, inf)", r"\eta", "the size that a parameter at 0 counts as")
]
Sized: TypeAlias = Annotated[
    Any,
    Option(
        "the leaves whose size counts: a tree of bools or a prefix of it, a function that makes "
        "one, or `by_path`; by default all. The others move as in SAM"
    ),
]


@core.recorded
def asam_adversary(
    rho: Rho = 0.5, eta: Eta = 0.01, mask: Sized = None, *, axis_name: Any = None
) -> Transform:
    r"""The adversary of ASAM, for `sam`: it moves each parameter in proportion to its size.

    .. math:: u = -\rho\, \frac{T^2 g}{\lVert T g \rVert}, \qquad
              T = |\theta| + \eta \quad (1 \text{ where the mask is False})

    `sam` goes the opposite way, uphill. Gradients that are all zero give zero updates.

    Raises:
      ValueError: `update` is called without the parameters; the mask does not fit.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.asam_adversary(rho=5.0, eta=0.0)
      >>> p = jnp.array([3.0, 1.0])
      >>> tx.update(jnp.array([1.0, 4.0]), tx.init(p), p)[0]
      Array([-9., -4.], dtype=float32)

    Reference: Kwon et al., *ASAM: adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks*, https://arxiv.org/abs/2102.11600, with the norm \(p = 2\).
    """
    where = core.where()

    def facts(leaves: gtree.Flat, extra: Any) -> list[Mapping[str, Any]]:
        flags = mask_flags(mask, leaves.unflatten(leaves.values), where)
        return [{"sized": flag} for flag in flags]

    return leafwise(
        _asam,
        hypers={"rho": rho, "eta": eta},
        flags={"sized": True} if mask is None else {},
        facts=None if mask is None else facts,
        measure=_sized_square,
        per_tree=_asam_factor,
        whole_tree=(),
        axis_name=axis_name,
        needs_params=True,
    )


def _size(p: Array, h: Numbers) -> Any:
    return jnp.abs(p) + h.eta if h.sized else 1.0


def _sized_square(g: Array, s: LeafState, p: Array, h: Numbers) -> Mapping[str, Array]:
    return {"square": jnp.sum(abs_sq(_size(p, h) * g))}


def _asam_factor(h: Numbers, sums: Sums) -> Decided:
    norm = sqrt(sums["square"])
    return {"factor": -1 / jnp.where(norm > 0, norm, 1.0)}, {}


def _asam(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    return h.rho * h.factor * g * _size(p, h) ** 2, s


@core.recorded
def asam(
    optimizer: Contract,
    rho: Rho = 0.5,
    eta: Eta = 0.01,
    mask: Sized = None,
    sync_period: int = 2,
    opaque_mode: bool = False,
    batch_axis_name: Any = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""ASAM: `sam` with a neighbourhood that scales with the parameters.

    .. math::
        \epsilon &= \rho\, \frac{T^2 \nabla f(\theta)}{\lVert T\, \nabla f(\theta) \rVert}, \qquad
        T = |\theta| + \eta \quad (1 \text{ where the mask is False}) \\
        \theta &\leftarrow \theta + O(\nabla f(\theta + \epsilon))

    It is ``sam(optimizer, asam_adversary(rho, eta, mask), …)``, and a step takes two calls of
    `update`, as there. Use it in place of `sam` where the scale of a layer has no meaning, as
    before a normalisation.

    Args:
      optimizer: \(O\), gradx's or Optax's; it sees the parameters \(\theta\), without \(\epsilon\).
      sync_period: \(k \ge 1\), in calls, of which \(k - 1\) go uphill (see `sam`).
      opaque_mode: do the whole step in one call with `grad_fn` (see `sam`).
      batch_axis_name: the mapped axis over which to average what `grad_fn` gives (see `sam`).

    Raises:
      ValueError: as for `sam` and `asam_adversary`.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.asam(gradx.sgd(0.5), rho=0.1, eta=0.0)
      >>> params = jnp.ones(1)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = jax.grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = gradx.apply_updates(params, updates)
      ...     print(params.round(2))
      [1.1]
      [-0.1]

    Reference: Kwon et al., *ASAM: adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks*, https://arxiv.org/abs/2102.11600, with the defaults of the
    authors' code (https://github.com/SamsungLabs/ASAM). There the mask is True for parameters that
    are called weight, so that biases move as in SAM.
    """
    # Its state stays, so that a schedule of rho goes on.
    adversary = asam_adversary(rho, eta, mask, axis_name=axis_name)
    return sam(optimizer, adversary, sync_period, False, opaque_mode, batch_axis_name)
