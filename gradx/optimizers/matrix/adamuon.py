"""AdaMuon: Muon on the signs of the momentum, rescaled by Adam's second moment."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, real_zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sequence import joined
from gradx.lift.sharing import Sharing
from gradx.lift.stages import LeafState, Numbers
from gradx.linalg import polar
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.optimizers.matrix.orthogonal import (
    Normalisation,
    NSCoefficients,
    momentum,
    orthogonalise,
    signs,
)
from gradx.pieces.weight_decay import DecayKind

__all__ = ["AdaMuonState", "adamuon", "scale_by_adamuon"]


class AdaMuonState(NamedTuple):
    """The state of AdaMuon.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters; with `b3` two averages, as `Averages`.
      nu: the average of the squares of polar factors, like the parameters, real.
      ns_coeffs: the coefficients of the polynomials, float32 (3,) or (steps, 3).
    """

    count: Count
    mu: Updates
    nu: Updates
    ns_coeffs: Array


class _Squares(NamedTuple):
    nu: Updates


@core.recorded
def scale_by_adamuon(
    ns_coeffs: NSCoefficients = "standard",
    ns_steps: int = 5,
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    nesterov: bool = True,
    consistent_rms: Annotated[Hyper, Number("(0, inf)", r"\rho")] = 0.2,
    preconditioning: Normalisation = "frobenius",
    axes: Any = None,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Replaces each matrix by the polar factor of its momentum's signs, and rescales each element.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) G, \qquad O \approx U V^\top, \qquad
            \operatorname{sign}((1 - \beta_1) G + \beta_1 \mu) = U S V^\top \\
        \nu &\leftarrow \beta_2 \nu + (1 - \beta_2) |O|^2, \qquad
            \hat O = O / (\sqrt\nu + \epsilon) \\
        u &= \rho \sqrt{mn}\; \hat O / \lVert \hat O \rVert_F

    Args:
      eps: It is also the `eps` of `scale_by_muon`.
      nesterov: False for \(\operatorname{sign}(\mu)\).
      consistent_rms: the root mean square of each matrix of updates. It may be a live value.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range, an unknown preset; at `init`, a leaf that is not a matrix,
        with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_adamuon("exact")
      >>> g = jnp.array([[3.0, 0.0], [4.0, 0.1]])
      >>> tx.update(g, tx.init(g))[0].round(4)
      Array([[ 0.2, -0.2],
             [ 0.2,  0.2]], dtype=float32)

    Reference: Si, Zhang and Shen, *AdaMuon: Adaptive Muon optimizer*,
    https://arxiv.org/abs/2507.11005. The paper has one \(\beta\) for both averages and does not
    look ahead. The authors' code, https://github.com/Chongjie-Si/AdaMuon, does, and so does this by
    default. The averages are not corrected for their start at zero: only the signs of \(\mu\)
    matter, and the last line of the formula cancels any factor of \(\nu\).
    """
    return joined(
        AdaMuonState,
        momentum(b1, b3, alpha, mu_dtype, nesterov, bias_correction=False, name="b1"),
        leafwise(signs),
        orthogonalise(
            ns_coeffs,
            ns_steps,
            eps,
            preconditioning,
            axes=axes,
            axes_name="axes",
            dtype=dtype,
            gram=gram,
            chunk=chunk,
            share=share,
        ),
        leafwise(
            _by_element,
            init={"nu": real_zeros},
            state=_Squares,
            hypers={"b2": b2, "eps": eps},
        ),
        matrixwise(
            _aligned,
            hypers={"consistent_rms": consistent_rms},
            axes=axes,
            either_way=True,
            chunk=chunk,
            share=False,  # a sum of squares needs no whole matrix on one device
        ),
    )


def _by_element(o: Array, s: _Squares, p: None, h: Numbers) -> tuple[Array, _Squares]:
    nu = average(s.nu, abs_sq(o), h.b2)
    root = sqrt(nu) + h.eps
    return o / jnp.where(root > 0, root, 1.0), s._replace(nu=nu)


def _aligned(o: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    size = polar.norm(o)
    factor = h.consistent_rms * math.sqrt(o.size) / jnp.where(size > 0, size, 1.0)
    return o * factor, s


@core.recorded
def adamuon(
    learning_rate: Hyper,
    ns_coeffs: NSCoefficients = "standard",
    ns_steps: int = 5,
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    nesterov: bool = True,
    consistent_rms: Hyper = 0.2,
    preconditioning: Normalisation = "frobenius",
    decay: DecayKind = "learning_rate",
    axes: Any = None,
    fallback: Contract | None = None,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""AdaMuon: Muon with Adam's second moment for the matrices, and Adam for all other leaves.

    .. math::
        u = -\eta_t \left(\rho \sqrt{mn}\; \hat O / \lVert \hat O \rVert_F
            + \lambda \theta\right)

    with \(\hat O\) of `scale_by_adamuon`. Steps are as large as Adam's, so a learning rate and
    schedule that were tuned for Adam can stay.

    Args:
      learning_rate: For a small GPT-2 the authors begin with 6e-4, and a weight decay of 0.1.
      weight_decay: how strongly the matrices are drawn to zero.
      mu_dtype, b3, alpha, nesterov, consistent_rms: see `scale_by_adamuon`.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.95), eps 1e-8 and no weight
        decay.

    Raises:
      ValueError: a number out of range, an unknown preset; at `init`, axes that do not fit a leaf,
        with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adamuon(0.1, weight_decay=0.0)
      >>> params = {"mlp": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": jnp.array([[3.0, 0.0], [4.0, 0.1]]), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["mlp"]
      Array([[-0.02,  0.02],
             [-0.02, -0.02]], dtype=float32)

    Reference: Si, Zhang and Shen, *AdaMuon: Adaptive Muon optimizer*,
    https://arxiv.org/abs/2507.11005. In the authors' code, https://github.com/Chongjie-Si/AdaMuon,
    embeddings and heads decay, too, here with ``fallback=gradx.adamw(6e-4, b2=0.95,
    weight_decay=0.1, mask=gradx.weights_only)``.
    """
    rule = scale_by_adamuon(
        ns_coeffs,
        ns_steps,
        b1,
        b2,
        eps,
        mu_dtype,
        b3=b3,
        alpha=alpha,
        nesterov=nesterov,
        consistent_rms=consistent_rms,
        preconditioning=preconditioning,
        axes=or_by_name(axes),
        dtype=dtype,
        gram=gram,
        chunk=chunk,
        share=share,
    )
    return matrix_optimizer(
        "adamuon",
        rule,
        learning_rate,
        weight_decay,
        weight_decay_mask,
        decay,
        axes,
        fallback,
        b1=0.9,
        b2=0.95,
        mu_dtype=mu_dtype,
    )
