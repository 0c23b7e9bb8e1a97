"""KL-SOAP: SOAP whose two factors are fitted to the gradients by KL divergence."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers
from gradx.linalg.eigenbasis import (
    cut,
    into,
    known,
    least_share,
    moved,
    out_of,
    rounding_of_products,
)
from gradx.linalg.polar import bounded
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.optimizers.matrix.kl_divergence import gathered, lifted, renewed
from gradx.pieces.momentum import kept, momentum_of, remembered, slow_average
from gradx.pieces.weight_decay import DecayKind

__all__ = ["KLSoapState", "kl_soap", "scale_by_kl_soap"]


class KLSoapState(NamedTuple):
    r"""The state of KL-SOAP; for a leaf with m rows and n columns.

    On a side longer than `max_precond_dim` the factor and the basis have the shape (0, 0). For a
    leaf that holds several matrices, each array has an axis in front that counts them.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, in the bases, like the parameters; with `b3` two averages, as
        `Averages`.
      nu: the second moment, in the bases, like the parameters, real.
      row_factor: \(L\), (m, m).
      column_factor: \(R\), (n, n).
      row_basis: the approximate eigenvectors of `row_factor`, as columns, (m, m).
      column_basis: the same for `column_factor`, (n, n).
      row_values: the eigenvalues of `row_factor`, (m,).
      column_values: the eigenvalues of `column_factor`, (n,).
    """

    count: Count
    mu: Updates
    nu: Updates
    row_factor: Updates
    column_factor: Updates
    row_basis: Updates
    column_basis: Updates
    row_values: Updates
    column_values: Updates


@core.recorded
def scale_by_kl_soap(
    b1: Hyper = 0.9,
    b2: Hyper = 0.98,
    eps: Hyper = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    rtol: Hyper | None = None,
    shampoo_beta: Hyper | None = None,
    init_factor: Annotated[float, Number("(0, inf)")] = 0.1,
    max_clamp_value: Annotated[float, Number("(0, inf)")] = 4000.0,
    staggered: bool = False,
    axes: Any = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Rescales each matrix by Adam's rule, in the eigenbasis of factors fitted by KL divergence.

    .. math::
        H &= Q_L^* G Q_R, \qquad
        M \leftarrow \beta_1 M + (1 - \beta_1) H, \qquad
        V \leftarrow \beta_2 V + (1 - \beta_2) |H|^2 \\
        U &= Q_L \left(M / (\sqrt V + \epsilon)\right) Q_R^* \\
        L &\leftarrow \beta L + \frac{1 - \beta}{n} G Q_R \operatorname{diag}(1 / r) Q_R^* G^*,
            \qquad
        l_i \leftarrow \max\left(\beta l_i + \frac{1 - \beta}{n} \sum_j |H_{ij}|^2 / r_j,
            \ c^{-2}\right)

    for \(m\) rows and \(n\) columns. \(R\) and \(r\) are updated likewise, with \(1 / m\) and the
    old \(l\). In the first step the weights \(1 / r\) are 1, \(Q_L\) becomes the eigenvectors of
    \(L\), \(l\), \(M\) and \(V\) stay, and the update is zero. At the end of each \(k\)-th step
    from there \(Q_L\) becomes the Q factor of the QR decomposition of \(L Q_L\), and \(M\) is
    turned from the old basis to the new one.

    Args:
      eps: With 0 an element without a gradient so far gives NaN.
      precondition_frequency: It is \(k\), a whole number from 1 on.
      max_precond_dim: A longer one has its eigenvalues alone, and the identity for its basis.
      rtol: the share of all \(V\) below which a row or a column is taken for rounding error and
        gets no step. Neither does an element below a tenth of the root of this share, times what
        its row and its column predict. By default the square of 100 units of rounding, 1e-10 in
        float32. With 0, as the authors have it, rounding errors get steps as large as any.
      init_factor: the eigenvalues at the start.
      max_clamp_value: the upper bound of \(c\), which is otherwise the length of the side, and at
        least 10.
      staggered: renew the bases of \(1/k\) of the matrices of each shape in every step, instead of
        all bases in every \(k\)-th, so that no step takes longer than others.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range; at `init`, a leaf that is not a matrix, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_kl_soap(b1=0.75, b2=0.75, eps=1e-3)
      >>> g = jnp.array([[6.0, -4.0], [8.0, 3.0]])
      >>> state = tx.init(g)
      >>> for _ in range(2):
      ...     updates, state = tx.update(g, state)
      >>> updates.round(2)
      Array([[ 0.3, -0.4],
             [ 0.4,  0.3]], dtype=float32)

    Reference: Lin et al., *Understanding and improving Shampoo and SOAP via Kullback-Leibler
    minimization*, https://arxiv.org/abs/2509.03378, and the authors' code,
    https://github.com/yorkerlin/KL-Methods, which calculates in bfloat16 and has neither
    `max_precond_dim` nor `rtol`.
    """
    slow = slow_average(b3, alpha)
    return lifted(
        _kl_soap,
        KLSoapState,
        {"mu": kept(mu_dtype, slow), "nu": "real"},
        {"b1": b1, "b2": b2, "eps": eps, **slow, **cut(rtol)},
        shampoo_beta,
        precondition_frequency,
        max_precond_dim,
        init_factor,
        max_clamp_value,
        _renew,
        staggered=staggered,
        axes=axes,
        chunk=chunk,
        share=share,
    )


def _kl_soap(g: Array, s: KLSoapState, p: None, h: Numbers) -> tuple[Array, KLSoapState]:
    g, rows, columns = bounded(g), s.row_basis, s.column_basis
    seen = into(g, rows, columns)
    mu = remembered(s.mu, jnp.where(h.begun, seen, 0), h)
    nu = average(s.nu, jnp.where(h.begun, abs_sq(seen), 0), h.b2)
    signal = h.begun & known(nu, least_share(h, rounding_of_products(nu.dtype)), rows, columns)
    u = jnp.where(signal, momentum_of(mu, h) / (sqrt(nu) + h.eps), 0)
    return out_of(u, rows, columns), gathered(g, seen, s._replace(mu=mu, nu=nu), h)


def _renew(s: KLSoapState, h: Numbers) -> KLSoapState:
    new: KLSoapState = renewed(s, h)
    mu = moved(s.mu, (s.row_basis, s.column_basis), (new.row_basis, new.column_basis))
    return new._replace(mu=mu)


@core.recorded
def kl_soap(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.98,
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
    init_factor: Annotated[float, Number("(0, inf)")] = 0.1,
    max_clamp_value: Annotated[float, Number("(0, inf)")] = 4000.0,
    decay: DecayKind = "learning_rate",
    staggered: bool = False,
    axes: Any = None,
    fallback: Contract | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""KL-SOAP: SOAP fitted by KL divergence for the matrices, Adam for all other leaves.

    .. math::
        U = -\eta_t \left(Q_L \left(M / (\sqrt V + \epsilon)\right) Q_R^*
            + \lambda \Theta\right)

    with the bases and moments of `scale_by_kl_soap`. In the first step matrices only decay.

    Args:
      learning_rate: The authors begin with 0.0001.
      weight_decay: how strongly the matrices are drawn to zero.
      max_precond_dim: A longer one has the identity for its basis.
      init_factor: the eigenvalues at the start.
      max_clamp_value: a bound on \(c\), which bounds the eigenvalues from below (see
        `scale_by_kl_soap`).
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.98), eps 1e-8 and no weight
        decay.

    Raises:
      ValueError: a number out of range; at `init`, axes that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.kl_soap(0.5, b1=0.75, b2=0.75, eps=1e-3, weight_decay=0.0)
      >>> params = {"mlp": jnp.array([[6.0, -4.0], [8.0, 3.0]]), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      >>> updates["mlp"].round(1)
      Array([[-0.1,  0.2],
             [-0.2, -0.1]], dtype=float32)
      >>> updates["bias"].round(1)
      Array([-0.5, -0.5], dtype=float32)

    Reference: Lin et al., *Understanding and improving Shampoo and SOAP via Kullback-Leibler
    minimization*, https://arxiv.org/abs/2509.03378. Deviations from the authors' code: the
    parameters decay as in AdamW: in the first step too, and by their value before the step. Leaves
    that are not matrices have Adam, and do not decay.
    """
    rule = scale_by_kl_soap(
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
        init_factor=init_factor,
        max_clamp_value=max_clamp_value,
        staggered=staggered,
        axes=or_by_name(axes),
        chunk=chunk,
        share=share,
    )
    return matrix_optimizer(
        "kl_soap",
        rule,
        learning_rate,
        weight_decay,
        weight_decay_mask,
        decay,
        axes,
        fallback,
        b1=0.9,
        b2=0.98,
        mu_dtype=mu_dtype,
    )
