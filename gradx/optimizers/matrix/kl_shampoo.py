"""KL-Shampoo: Shampoo whose two factors are fitted to the gradients by KL divergence."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers
from gradx.linalg.eigenbasis import (
    cut,
    into,
    known,
    least_share,
    out_of,
    rounding_of_products,
    squares,
)
from gradx.linalg.polar import bounded
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.optimizers.matrix.kl_divergence import gathered, lifted, renewed
from gradx.pieces.momentum import kept, momentum_of, remembered, slow_average
from gradx.pieces.weight_decay import DecayKind

__all__ = ["KLShampooState", "kl_shampoo", "scale_by_kl_shampoo"]


class KLShampooState(NamedTuple):
    r"""The state of KL-Shampoo; for a leaf with m rows and n columns.

    On a side longer than `max_precond_dim` the factor and the basis have the shape (0, 0). For a
    leaf that holds several matrices, each array has an axis in front that counts them.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, like the parameters; with `b3` two averages, as `Averages`.
      row_factor: \(L\), (m, m).
      column_factor: \(R\), (n, n).
      row_basis: the approximate eigenvectors of `row_factor`, as columns, (m, m).
      column_basis: the same for `column_factor`, (n, n).
      row_values: the eigenvalues of `row_factor`, (m,).
      column_values: the eigenvalues of `column_factor`, (n,).
    """

    count: Count
    mu: Updates
    row_factor: Updates
    column_factor: Updates
    row_basis: Updates
    column_basis: Updates
    row_values: Updates
    column_values: Updates


@core.recorded
def scale_by_kl_shampoo(
    b1: Hyper = 0.9,
    b2: Annotated[Hyper, Number(symbol=r"\beta")] = 0.98,
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
    r"""Divides momentum by the roots of two factors that fit the gradients best in KL divergence.

    .. math::
        M &\leftarrow \beta_1 M + (1 - \beta_1) G, \qquad H = Q_L^* G Q_R \\
        U &= Q_L \left(Q_L^* M Q_R / (\sqrt{l\, r^\top} + \epsilon)\right) Q_R^* \\
        L &\leftarrow \beta L + \frac{1 - \beta}{n} G Q_R \operatorname{diag}(1 / r) Q_R^* G^*,
            \qquad
        l_i \leftarrow \max\left(\beta l_i + \frac{1 - \beta}{n} \sum_j |H_{ij}|^2 / r_j,
            \ c^{-2}\right)

    for \(m\) rows and \(n\) columns. \(R\) and \(r\) are updated likewise, with \(1 / m\) and the
    old \(l\). In the first step the weights \(1 / r\) are 1, \(Q_L\) becomes the eigenvectors of
    \(L\), \(l\) and \(M\) stay, and the update is zero. At the end of each \(k\)-th step from there
    \(Q_L\) becomes the Q factor of the QR decomposition of \(L Q_L\).

    With the default \(\beta\) it takes some hundred steps to learn the eigenvalues. Until then the
    scale of the gradients matters: the first updates are plain gradients, times about \(1 -
    \beta_1\) over `init_factor`. If gradients are much larger than `init_factor`, the first update
    is huge and those after it are tiny; if they are much smaller, all are tiny. Set `init_factor`
    near the root mean square of the gradients' elements, or begin with a warmup of the learning
    rate.

    Args:
      b2: the decay of the factors and eigenvalues, if there is no `shampoo_beta`.
      precondition_frequency: It is \(k\), a whole number from 1 on.
      max_precond_dim: A longer one has its eigenvalues alone, and the identity for its basis.
      rtol: the share of all \(|Q_L^* M Q_R|^2\) below which a row or a column is taken for rounding
        error and gets no step. Neither does an element below a tenth of the root of this share,
        times what its row and its column predict. By default the square of 100 units of rounding,
        1e-10 in float32. With 0, as the authors have it, rounding errors get steps as large as any.
      shampoo_beta: the decay of the factors and eigenvalues; by default `b2`.
      init_factor: the eigenvalues at the start. Best is the size of the gradients.
      max_clamp_value: the upper bound of \(c\), which is otherwise the length of the side, and at
        least 10.
      staggered: renew the bases of \(1/k\) of the matrices of each shape in every step, instead of
        all bases in every \(k\)-th, so that no step takes longer than others.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range; at `init`, a leaf that is not a matrix, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_kl_shampoo(b1=0.5, init_factor=4.0)
      >>> g = jnp.array([[6.0, -4.0], [8.0, 3.0]])
      >>> state = tx.init(g)
      >>> for _ in range(2):
      ...     updates, state = tx.update(g, state)
      >>> updates.round(2)  # half of the gradient, by the first eigenvalues
      Array([[ 0.75, -0.5 ],
             [ 1.  ,  0.38]], dtype=float32)

    Reference: Lin et al., *Understanding and improving Shampoo and SOAP via Kullback-Leibler
    minimization*, https://arxiv.org/abs/2509.03378, and the authors' code,
    https://github.com/yorkerlin/KL-Methods, which calculates in bfloat16 and has neither
    `max_precond_dim` nor `rtol`.
    """
    slow = slow_average(b3, alpha)
    return lifted(
        _kl_shampoo,
        KLShampooState,
        {"mu": kept(mu_dtype, slow)},
        {"b1": b1, "b2": b2, "eps": eps, **slow, **cut(rtol)},
        shampoo_beta,
        precondition_frequency,
        max_precond_dim,
        init_factor,
        max_clamp_value,
        renewed,
        staggered=staggered,
        axes=axes,
        chunk=chunk,
        share=share,
    )


def _kl_shampoo(g: Array, s: KLShampooState, p: None, h: Numbers) -> tuple[Array, KLShampooState]:
    g, rows, columns = bounded(g), s.row_basis, s.column_basis
    mu = remembered(s.mu, jnp.where(h.begun, g, 0), h)
    root = jnp.sqrt(s.row_values)[:, None] * jnp.sqrt(s.column_values)[None]
    m = into(momentum_of(mu, h), rows, columns)
    signal = known(squares(m), least_share(h, rounding_of_products(root.dtype)), rows, columns)
    u = out_of(jnp.where(signal, m / (root + h.eps), 0), rows, columns)
    return u, gathered(g, into(g, rows, columns), s._replace(mu=mu), h)


@core.recorded
def kl_shampoo(
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
    r"""KL-Shampoo: Shampoo fitted by KL divergence for the matrices, Adam for all other leaves.

    .. math::
        U = -\eta_t \left(Q_L \left(Q_L^* M Q_R / (\sqrt{l\, r^\top} + \epsilon)\right) Q_R^*
            + \lambda \Theta\right)

    with the bases and eigenvalues of `scale_by_kl_shampoo`. In the first step matrices only decay.
    The next updates are plain gradients, times about \(1 - \beta_1\) over `init_factor`: until the
    eigenvalues are learnt, the scale of the gradients matters. Set `init_factor` near the root mean
    square of their elements, or begin with a warmup.

    Args:
      learning_rate: The authors begin with 0.0001.
      b2: the decay of the factors and eigenvalues, if there is no `shampoo_beta`.
      weight_decay: how strongly the matrices are drawn to zero.
      max_precond_dim: A longer one has the identity for its basis.
      shampoo_beta: the decay of the factors and eigenvalues; by default `b2`.
      init_factor: the eigenvalues at the start. Best is the size of the gradients.
      max_clamp_value: a bound on \(c\), which bounds the eigenvalues from below (see
        `scale_by_kl_shampoo`).
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.98), eps 1e-8 and no weight
        decay.

    Raises:
      ValueError: a number out of range; at `init`, axes that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.kl_shampoo(0.5, weight_decay=0.0)
      >>> params = {"mlp": jnp.array([[6.0, -4.0], [8.0, 3.0]]), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      >>> updates["mlp"].round(1)
      Array([[-3. ,  2. ],
             [-4. , -1.5]], dtype=float32)
      >>> updates["bias"].round(1)
      Array([-0.5, -0.5], dtype=float32)

    Reference: Lin et al., *Understanding and improving Shampoo and SOAP via Kullback-Leibler
    minimization*, https://arxiv.org/abs/2509.03378. Deviations from the authors' code: the
    parameters decay as in AdamW: in the first step too, and by their value before the step. Leaves
    that are not matrices have Adam, and do not decay.
    """
    rule = scale_by_kl_shampoo(
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
        "kl_shampoo",
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
