"""SPlus: the signs of the momentum in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.core import Count, Transform, Updates
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers
from gradx.linalg.eigenbasis import (
    averaged,
    cut,
    first_basis,
    first_factors,
    into,
    known,
    least_share,
    out_of,
    rounding_of_products,
    squares,
)
from gradx.linalg.polar import bounded
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import adam_for_others, or_by_name, with_fallback
from gradx.optimizers.matrix.orthogonal import scale_by_shape
from gradx.pieces.momentum import kept, momentum_of, remembered, slow_average
from gradx.pieces.scaling import scale
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["SplusState", "scale_by_splus", "splus"]

# The authors' `nonstandard_constant`. A matrix has 2η / (m + n), so η is some hundred times Adam's
# learning rate, and too large for leaves that are not matrices.
_OF_OTHERS = 0.001


class SplusState(NamedTuple):
    r"""The state of SPlus; for a leaf with m rows and n columns.

    On a side longer than `max_precond_dim` the factor and the basis have the shape (0, 0). For a
    leaf that holds several matrices, each array has an axis in front that counts them.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, like the parameters; with `b3` two averages, as `Averages`.
      row_factor: the average of \(G G^*\), (m, m).
      column_factor: the average of \(G^* G\), (n, n).
      row_basis: the eigenvectors of `row_factor` at the last renewal, as columns, (m, m).
      column_basis: the same for `column_factor`, (n, n).
    """

    count: Count
    mu: Updates
    row_factor: Updates
    column_factor: Updates
    row_basis: Updates
    column_basis: Updates


@core.recorded
def scale_by_splus(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 0.0,
    precondition_frequency: int = 100,
    max_precond_dim: int = 10000,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    rtol: Hyper | None = None,
    staggered: bool = False,
    axes: Any = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Replaces each matrix by the signs of its momentum, taken in Shampoo's eigenbasis.

    .. math::
        M &\leftarrow \beta_1 M + (1 - \beta_1) G \\
        U &= Q_L \operatorname{sign}_\epsilon(Q_L^* M Q_R)\, Q_R^*, \qquad
            \operatorname{sign}_\epsilon(X)_{ij} =
            X_{ij} / \left(|X_{ij}| + \epsilon \max_{kl} |X_{kl}|\right) \\
        L &\leftarrow \beta_2 L + (1 - \beta_2) G G^*, \qquad
        R \leftarrow \beta_2 R + (1 - \beta_2) G^* G

    with 0/0 = 0. \(Q_L\) and \(Q_R\) begin as identities, so the first update is the signs of
    \(G\). At the end of the first step, and of each \(k\)-th step from there, they become the
    eigenvectors of \(L\) and \(R\). However old they are, no element of \(Q_L^* U Q_R\) is larger
    than 1. The first eigenvectors come from a single gradient, and are arbitrary in the directions
    that it lacks.

    Args:
      eps: It is relative to the largest element, so the size of the gradients makes no difference.
        0 gives the sign, as the authors have it.
      precondition_frequency: It is \(k\), a whole number from 1 on.
      max_precond_dim: On a longer one \(Q\) is the identity. With 0 the update is the sign of the
        momentum.
      rtol: the share of all \(|Q_L^* M Q_R|^2\) below which a row or a column is taken for rounding
        error and gets no step. Neither does an element below a tenth of the root of this share,
        times what its row and its column predict. By default the square of 100 units of rounding,
        1e-10 in float32. With 0, as the authors have it, rounding errors get steps as large as any.
      staggered: renew the bases of \(1/k\) of the matrices of each shape in every step, instead of
        all bases in every \(k\)-th, so that no step takes longer than others.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range; at `init`, a leaf that is not a matrix, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_splus(eps=1e-5)
      >>> g = jnp.array([[6.0, -4.0], [8.0, 3.0]])
      >>> state = tx.init(g)
      >>> signs, state = tx.update(g, state)
      >>> signs.round(2)
      Array([[ 1., -1.],
             [ 1.,  1.]], dtype=float32)
      >>> updates, state = tx.update(g, state)
      >>> updates.round(2)  # orthogonal, since g is diagonal in its own eigenvectors
      Array([[ 0.6, -0.8],
             [ 0.8,  0.6]], dtype=float32)

    Reference: Frans, Levine and Abbeel, *A stable whitening optimizer for efficient neural network
    training*, https://arxiv.org/abs/2506.07254, and the authors' code,
    https://github.com/kvfrans/splus. That code renews the bases in the steps 1, k, 2k, ..., this
    one in 1, k + 1, 2k + 1, ...; it has no `rtol`; it adds `eps` to the factors before it takes
    their eigenvectors, which does not change these.
    """
    slow = slow_average(b3, alpha)
    return matrixwise(
        _splus,
        init=partial(first_factors, limit=steps("max_precond_dim", max_precond_dim, 0)),
        state=SplusState,
        like_leaf={"mu": kept(mu_dtype, slow)},
        hypers={"b1": b1, "b2": b2, "eps": eps, **slow, **cut(rtol)},
        axes=axes,
        renew=_renew,
        every=steps("precondition_frequency", precondition_frequency, 1),
        staggered=staggered,
        chunk=chunk,
        share=share,
    )


def _splus(g: Array, s: SplusState, p: None, h: Numbers) -> tuple[Array, SplusState]:
    g, rows, columns = bounded(g), s.row_basis, s.column_basis
    mu = remembered(s.mu, g, h)
    m = into(momentum_of(mu, h), rows, columns)
    signal = known(squares(m), least_share(h, rounding_of_products(m.real.dtype)), rows, columns)
    u = out_of(jnp.where(signal, _signs(m, h.eps), 0), rows, columns)
    left, right = averaged(g, s.row_factor, s.column_factor, h.b2)
    return u, s._replace(mu=mu, row_factor=left, column_factor=right)


def _signs(x: Array, eps: Any) -> Array:
    size = jnp.abs(x)
    soft = size + eps * jnp.max(size, initial=0.0)
    # A division, since a product with the reciprocal would not be 1 or -1 to the last bit.
    return jnp.where(soft > 0, x / jnp.where(soft > 0, soft, 1.0), 0.0)


def _renew(s: SplusState, h: Numbers) -> SplusState:
    return s._replace(
        row_basis=first_basis(s.row_factor), column_basis=first_basis(s.column_factor)
    )


@core.recorded
def splus(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 0.0,
    weight_decay: Hyper = 0.01,
    weight_decay_mask: Any = None,
    precondition_frequency: int = 100,
    max_precond_dim: int = 10000,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    rtol: Hyper | None = None,
    decay: DecayKind = "learning_rate",
    staggered: bool = False,
    axes: Any = None,
    fallback: Contract | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""SPlus: signs in Shampoo's eigenbasis for the matrices, and Adam for all other leaves.

    .. math::
        u = -\frac{2 \eta_t}{m + n} \left(Q_L \operatorname{sign}_\epsilon(Q_L^* M Q_R)\, Q_R^*
            + \lambda \theta\right)

    for \(m\) rows and \(n\) columns, with the momentum and bases of `scale_by_splus`. So the decay
    depends on the shape, too. Adam has a thousandth of the learning rate.

    Args:
      learning_rate: It differs from Adam's: the authors begin with 0.2, or with Adam's times twice
        the width of the network, and keep it for all widths.
      eps: It is relative to the largest element (see `scale_by_splus`).
      weight_decay: how strongly the matrices are drawn to zero.
      max_precond_dim: A longer one has the identity for its basis.
      decay: the factor of \(\lambda\) (see `adamw`): \(2 \eta_t / (m + n)\), the schedule alone, or
        nothing.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with 0.001 `learning_rate`, the betas (0.9, 0.999), eps 1e-8 and no
        weight decay.

    Raises:
      ValueError: a number out of range; at `init`, axes that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.splus(0.5, weight_decay=0.0)
      >>> params = {"mlp": jnp.array([[6.0, -4.0], [8.0, 3.0]]), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["mlp"]
      Array([[-0.25,  0.25],
             [-0.25, -0.25]], dtype=float32)
      >>> updates["bias"]
      Array([-0.0005, -0.0005], dtype=float32)

      Steps this large leave noise in the parameters. To evaluate or deploy, take their average,
      which the authors count as part of the method; `ema` keeps it, corrected for its start:

      >>> average = gradx.ema(0.999)
      >>> state, kept = tx.init(params), average.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      ...     params = gradx.apply_updates(params, updates)
      ...     averaged, kept = average.update(params, kept)
      >>> averaged["bias"].round(5)  # of 0.9995 and 0.999
      Array([0.99925, 0.99925], dtype=float32)

    Reference: Frans, Levine and Abbeel, *A stable whitening optimizer for efficient neural network
    training*, https://arxiv.org/abs/2506.07254. Deviations from the authors' code,
    https://github.com/kvfrans/splus, beside those of `scale_by_splus`: the average of the
    parameters is not in the state. Other leaves have Adam; there they have the sign of the momentum
    (``fallback=signum(0.001 * learning_rate, beta=b1)``) and decay. Embeddings are among the other
    leaves. A matrix with a side longer than `max_precond_dim` is not: its factor is \(2 / (m +
    n)\), not 0.001.
    """
    inner = or_by_name(axes)
    rule = scale_by_splus(
        b1,
        b2,
        eps,
        precondition_frequency,
        max_precond_dim,
        mu_dtype,
        b3=b3,
        alpha=alpha,
        rtol=rtol,
        staggered=staggered,
        axes=inner,
        chunk=chunk,
        share=share,
    )
    ends = scale_and_decay(learning_rate, weight_decay, weight_decay_mask, decay)
    by_shape = scale_by_shape(inner, convention="splus")
    # The shape scales the learning rate, and so the decay, if that is multiplied by the rate.
    ends = (*ends, by_shape) if decay == "learning_rate" else (by_shape, *ends)
    if fallback is None:
        others = adam_for_others(learning_rate, b1=0.9, b2=0.999, mu_dtype=mu_dtype)
        fallback = chain(others, scale(_OF_OTHERS))
    return with_fallback("splus", chain(rule, *ends), "others", fallback, axes)
