"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Count, Transform, Updates
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, weight_so_far
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
    largest_first,
    least_share,
    moved,
    orthogonal,
    out_of,
    power,
    rounding_of_products,
)
from gradx.linalg.polar import bounded
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.pieces.momentum import kept, momentum_of, remembered, slow_average
from gradx.pieces.weight_decay import DecayKind

__all__ = ["SoapState", "scale_by_soap", "soap"]


class SoapState(NamedTuple):
    r"""The state of SOAP; for a leaf with m rows and n columns.

    On a side longer than `max_precond_dim` the factor and the basis have the shape (0, 0). For a
    leaf that holds several matrices, each array has an axis in front that counts them.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, in the bases, like the parameters; with `b3` two averages, as
        `Averages`.
      nu: the second moment, in the bases, like the parameters, real.
      row_factor: the average of \(G G^*\), (m, m).
      column_factor: the average of \(G^* G\), (n, n).
      row_basis: the approximate eigenvectors of `row_factor`, as columns, (m, m).
      column_basis: the same for `column_factor`, (n, n).
    """

    count: Count
    mu: Updates
    nu: Updates
    row_factor: Updates
    column_factor: Updates
    row_basis: Updates
    column_basis: Updates


@core.recorded
def scale_by_soap(
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    rtol: Hyper | None = None,
    shampoo_beta: Hyper | None = None,
    bias_correction: bool = True,
    staggered: bool = False,
    axes: Any = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Rescales each matrix by Adam's rule, in the eigenbasis of Shampoo's preconditioner.

    .. math::
        H &= Q_L^* G Q_R, \qquad
        M \leftarrow \beta_1 M + (1 - \beta_1) H, \qquad
        V \leftarrow \beta_2 V + (1 - \beta_2) |H|^2 \\
        U &= Q_L \left(\hat M / (\sqrt{\hat V} + \epsilon)\right) Q_R^* \\
        L &\leftarrow \beta L + (1 - \beta) G G^*, \qquad
        R \leftarrow \beta R + (1 - \beta) G^* G

    with moments corrected for their start at zero. In the first step \(Q_L\) and \(Q_R\) become the
    eigenvectors of \(L\) and \(R\), and the update is zero. At the end of each \(k\)-th step from
    there the columns of \(Q_L\), and with them the rows of \(V\), are sorted by falling
    \(\operatorname{diag}(Q_L^* L Q_L)\). Then \(Q_L\) becomes the Q factor of the QR decomposition
    of \(L Q_L\), and \(M\) is turned from the old basis to the new one. The other side is treated
    likewise.

    Args:
      eps: With 0 an element without a gradient so far gives NaN.
      precondition_frequency: It is \(k\), a whole number from 1 on.
      max_precond_dim: On a longer one \(Q\) is the identity. With a factor on one side only, the
        memory is that of Shampoo's smaller factor.
      rtol: the share of all \(V\) below which a row or a column is taken for rounding error and
        gets no step. Neither does an element below a tenth of the root of this share, times what
        its row and its column predict. By default the square of 100 units of rounding, 1e-10 in
        float32. With 0, as the authors have it, rounding errors get steps as large as any.
      bias_correction: whether the moments are corrected for their start at zero.
      staggered: renew the bases of \(1/k\) of the matrices of each shape in every step, instead of
        all bases in every \(k\)-th, so that no step takes longer than others.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range; at `init`, a leaf that is not a matrix, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_soap(eps=1e-3)
      >>> g = jnp.array([[6.0, -4.0], [8.0, 3.0]])
      >>> state = tx.init(g)
      >>> for _ in range(2):
      ...     updates, state = tx.update(g, state)
      >>> updates.round(2)  # orthogonal, where Adam's would be a matrix of signs
      Array([[ 0.6, -0.8],
             [ 0.8,  0.6]], dtype=float32)

    Reference: Vyas et al., *SOAP: improving and stabilizing Shampoo using Adam*,
    https://arxiv.org/abs/2409.11321, and the authors' code, https://github.com/nikhilvyas/SOAP,
    from which it differs in `rtol` and in \(\epsilon\): this is added to the corrected \(\sqrt{\hat
    V}\), as in Adam, not to \(\sqrt V\).
    """
    slow = slow_average(b3, alpha)
    hypers = {"b1": b1, "b2": b2, "eps": eps, **slow, **cut(rtol)}
    if shampoo_beta is not None:
        hypers["shampoo_beta"] = shampoo_beta
    return matrixwise(
        _soap,
        init=partial(first_factors, limit=steps("max_precond_dim", max_precond_dim, 0)),
        state=SoapState,
        like_leaf={"mu": kept(mu_dtype, slow), "nu": "real"},
        hypers=hypers,
        flags={"corrects": bias_correction},
        per_step=_of_the_step,
        axes=axes,
        start=_start,
        renew=_renew,
        every=steps("precondition_frequency", precondition_frequency, 1),
        staggered=staggered,
        chunk=chunk,
        share=share,
    )


def _of_the_step(h: Numbers, t: Array) -> Mapping[str, Any]:
    # Adam begins with the second step, the first one that has bases.
    own, begun = jnp.maximum(t - 1, 1), t > 1
    correct_mu = 1 / weight_so_far(h.b1, own) if h.corrects else 1.0
    correct_nu = 1 / weight_so_far(h.b2, own) if h.corrects else 1.0
    return {
        "begun": begun,
        "correct_mu": correct_mu,
        "correct_nu": correct_nu,
        "factor_decay": getattr(h, "shampoo_beta", h.b2),
    }


def _soap(g: Array, s: SoapState, p: None, h: Numbers) -> tuple[Array, SoapState]:
    g, rows, columns = bounded(g), s.row_basis, s.column_basis
    seen = jnp.where(h.begun, into(g, rows, columns), 0)
    mu = remembered(s.mu, seen, h)
    nu = average(s.nu, abs_sq(seen), h.b2)
    u = momentum_of(mu, h, h.correct_mu) / (sqrt(h.correct_nu * nu) + h.eps)
    signal = h.begun & known(nu, least_share(h, rounding_of_products(nu.dtype)), rows, columns)
    u = out_of(jnp.where(signal, u, 0), rows, columns)
    left, right = averaged(g, s.row_factor, s.column_factor, h.factor_decay)
    return u, s._replace(mu=mu, nu=nu, row_factor=left, column_factor=right)


def _start(s: SoapState, h: Numbers) -> SoapState:
    return s._replace(
        row_basis=first_basis(s.row_factor), column_basis=first_basis(s.column_factor)
    )


def _renew(s: SoapState, h: Numbers) -> SoapState:
    nu, bases = s.nu, []
    sides = (s.row_factor, s.row_basis), (s.column_factor, s.column_basis)
    for axis, (factor, basis) in enumerate(sides):
        if factor.size:
            product = power(factor, basis)
            order = largest_first(product, basis)
            nu = jnp.take(nu, order, axis=axis)
            basis = orthogonal(product[:, order], basis[:, order], factor)
        bases.append(basis)
    rows, columns = bases
    mu = moved(s.mu, (s.row_basis, s.column_basis), (rows, columns))
    return s._replace(mu=mu, nu=nu, row_basis=rows, column_basis=columns)


@core.recorded
def soap(
    learning_rate: Hyper,
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    weight_decay_mask: Any = None,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    rtol: Hyper | None = None,
    shampoo_beta: Hyper | None = None,
    bias_correction: bool = True,
    decay: DecayKind = "learning_rate",
    staggered: bool = False,
    axes: Any = None,
    fallback: Contract | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""SOAP: Adam in Shampoo's eigenbasis for the matrices, plain Adam for all other leaves.

    .. math::
        u = -\eta_t \left(Q_L \left(\hat M / (\sqrt{\hat V} + \epsilon)\right) Q_R^*
            + \lambda \theta\right)

    with the bases and moments of `scale_by_soap`. In the first step matrices only decay.

    Args:
      learning_rate: The authors begin with 0.003.
      weight_decay: how strongly the matrices are drawn to zero.
      max_precond_dim: A longer one has the identity for its basis.
      bias_correction: whether the moments of the matrices are corrected for their start at zero.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.95, 0.95), eps 1e-8 and no weight
        decay.

    Raises:
      ValueError: a number out of range; at `init`, axes that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.soap(0.5, eps=1e-3, weight_decay=0.0)
      >>> params = {"mlp": jnp.array([[6.0, -4.0], [8.0, 3.0]]), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      >>> updates["mlp"].round(1)
      Array([[-0.3,  0.4],
             [-0.4, -0.3]], dtype=float32)
      >>> updates["bias"].round(1)
      Array([-0.5, -0.5], dtype=float32)

    Reference: Vyas et al., *SOAP: improving and stabilizing Shampoo using Adam*,
    https://arxiv.org/abs/2409.11321. Deviations from the authors' code: the parameters decay as in
    AdamW: in the first step too, and by their value before the step. Other leaves have Adam from
    the first step on, and do not decay. There embeddings and heads are matrices, up to a length of
    `max_precond_dim` (``axes=`` ``lambda params: jax.tree.map(lambda x: gradx.MatrixAxes() if
    x.ndim == 2 else None, params)``).
    """
    rule = scale_by_soap(
        b1,
        b2,
        eps,
        precondition_frequency,
        max_precond_dim,
        mu_dtype,
        b3=b3,
        alpha=alpha,
        rtol=rtol,
        shampoo_beta=shampoo_beta,
        bias_correction=bias_correction,
        staggered=staggered,
        axes=or_by_name(axes),
        chunk=chunk,
        share=share,
    )
    return matrix_optimizer(
        "soap",
        rule,
        learning_rate,
        weight_decay,
        weight_decay_mask,
        decay,
        axes,
        fallback,
        b1=0.95,
        b2=0.95,
        mu_dtype=mu_dtype,
    )
