"""Dion: orthogonalises a matrix's momentum along a few directions, and keeps the rest for later."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq, mixing
from gradx.lift.averages import storage
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers
from gradx.linalg import decompositions, polar
from gradx.linalg.eigenbasis import adjoint, rounding_of_factors, times
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Fixed, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.optimizers.matrix.orthogonal import (
    Convention,
    convention_or,
    part_of,
    scale_by_shape,
)
from gradx.pieces.preprocessing import as_key, check_key
from gradx.pieces.weight_decay import DecayKind

__all__ = ["DionState", "dion", "scale_by_dion"]


class DionState(NamedTuple):
    """The state of Dion.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the gradients that have not gone into updates yet, like the parameters.
      basis: the directions for the shorter side of a matrix, as columns of length one, (shorter
        side, rank); for a stack of matrices an axis in front counts them.
    """

    count: Count
    mu: Updates
    basis: Updates


@core.recorded
def scale_by_dion(
    rank_fraction: Annotated[Fixed, Number("(0, 1]", "r / m")] = 1.0,
    b1: Hyper = 0.95,
    eps: Hyper = 1e-8,
    mu_dtype: Any = None,
    *,
    rank_multiple_of: int = 1,
    key: Array | int = 0,
    axes: Any = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Replaces each matrix by the polar factor of its momentum along a few directions.

    .. math::
        B &= M + G, \qquad P = \operatorname{qr}(B^* Q), \qquad R = B P \\
        M &\leftarrow B - (1 - \beta_1) R P^*, \qquad
            Q_{:j} \leftarrow R_{:j} / \lVert R_{:j} \rVert \\
        u &= \sum_j R_{:j} P_{:j}^* / (\lVert R_{:j} \rVert + \epsilon)

    for a matrix of \(m\) rows and \(n \ge m\) columns; a taller one is transposed. \(P\) is the Q
    factor of the QR decomposition of \(B^* Q\), with \(r\) columns: one power iteration from the
    last basis \(Q\). Along these columns the momentum keeps \(\beta_1\) of \(B\); all else stays
    for a later step. If the singular vectors of the momentum do not change, \(u\) converges to the
    polar factor of its \(r\) largest parts. At full rank this is Muon's.

    Args:
      rank_fraction: the rank as a fraction of the shorter side, rounded up to a whole \(r\).
      rank_multiple_of: \(r\) is rounded up to a multiple of this number, from 1 on, but not above
        \(m\).
      key: It makes the first \(Q\), the same for all matrices of one shape.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range; at `init`, a leaf that is not a matrix, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_dion(rank_fraction=0.5)
      >>> g = jnp.array([[3.0, 0.0], [0.0, -0.2]])
      >>> state = tx.init(g)
      >>> for _ in range(5):
      ...     u, state = tx.update(g, state)
      >>> u.round(2) + 0.0  # of rank one; the smaller part waits
      Array([[1., 0.],
             [0., 0.]], dtype=float32)
      >>> jnp.diag(state.mu).round()
      Array([13., -1.], dtype=float32)

    Reference: Ahn et al., *Dion: Distributed orthonormalized updates*,
    https://arxiv.org/abs/2504.05295, and the authors' code, https://github.com/microsoft/dion.
    Deviations from it: \(Q\) begins with random numbers of its own key. The QR decomposition is
    Householder's, without a random sketch. A column counts as rounding error if the columns of
    \(B^* Q\) before it span it, or if in \(R\) it has less than \(10^{-6}\) (for float32) of the
    squares of \(B\): it has no part in the update, and keeps its direction in \(Q\). The authors'
    code does so only if \(B\) is zero, and otherwise takes the rounding error for a direction.
    """
    check_key("key", key)
    first = partial(
        _first_basis,
        fraction=rank_fraction,
        multiple=steps("rank_multiple_of", rank_multiple_of, 1),
        key=key,
    )
    return matrixwise(
        _dion,
        init={"basis": first},
        state=DionState,
        like_leaf={"mu": storage("mu_dtype", mu_dtype)},
        hypers={"b1": b1, "eps": eps},
        axes=axes,
        either_way=True,
        chunk=chunk,
        share=share,
    )


@mixing
def _first_basis(p: Array, *, fraction: float, multiple: int, key: Array | int) -> Array:
    shorter = min(p.shape)
    shape = shorter, part_of(shorter, fraction, multiple)
    # In float32, so that wider dtypes begin with the same directions.
    start = jax.random.normal(as_key(key), shape, jnp.float32).astype(p.dtype)
    return start / jnp.linalg.norm(start, axis=0, keepdims=True)


def _dion(g: Array, s: DionState, p: None, h: Numbers) -> tuple[Array, DionState]:
    if not g.size:
        return g, s
    if g.shape[0] > g.shape[1]:  # the lift does not turn leaves with several parts
        u, turned = _dion(g.T, s._replace(mu=s.mu.T), p, h)
        return u.T, turned._replace(mu=turned.mu.T)
    b = s.mu + polar.bounded(g)
    # With a norm of 1, so that squares neither over- nor underflow.
    size = polar.norm(b)
    size = jnp.where(size > 0, size, 1.0)
    b_scaled = b / size
    q, triangle = decompositions.qr(times(adjoint(b_scaled), s.basis))
    # The length of each column that the columns before it do not span.
    new = jnp.abs(jnp.diagonal(triangle))
    known = new > max(b.shape) * jnp.finfo(b.dtype).eps * jnp.max(new)
    right = times(b_scaled, q)
    square = jnp.sum(abs_sq(right), axis=0, keepdims=True)
    # After nearly dependent columns, the rounding error that is left of a column may be longer.
    known &= square[0] >= rounding_of_factors(b.dtype)
    left, right = jnp.where(known[None], q, 0.0), jnp.where(known[None], right, 0.0)
    length = sqrt(jnp.where(known[None], square, 1.0))
    caught = adjoint(left)
    u = times(right / (length + h.eps / size), caught)
    mu = b - (1 - h.b1) * size * times(right, caught)
    return u, s._replace(mu=mu, basis=jnp.where(known, right / length, s.basis))


@core.recorded
def dion(
    learning_rate: Hyper,
    rank_fraction: Annotated[Fixed, Number("(0, 1]")] = 1.0,
    b1: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    rank_multiple_of: int = 1,
    key: Array | int = 0,
    consistent_rms: float | None = None,
    convention: Convention | None = None,
    decay: DecayKind = "learning_rate",
    axes: Any = None,
    fallback: Contract | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Dion: low-rank orthogonal updates for the matrices, and Adam for all other leaves.

    .. math:: u = -\eta_t \left(\sqrt{n / m}\, \sum_j R_{:j} P_{:j}^* / (\lVert R_{:j} \rVert
              + \epsilon) + \lambda \theta\right)

    with the factors of `scale_by_dion`, for \(m\) rows (inputs) and \(n\) columns (outputs).

    Args:
      learning_rate: The authors begin with 0.01.
      rank_fraction: the rank of an update as a fraction of the shorter side. The authors take 1/4
        for large matrices.
      weight_decay: how strongly the matrices are drawn to zero.
      mu_dtype, rank_multiple_of, key: see `scale_by_dion`.
      consistent_rms: see `scale_by_shape`, a constant.
      convention: see `scale_by_shape`; by default ``"spectral"``.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.95), eps 1e-8 and no weight
        decay. A rate for orthogonal updates is usually far too large for Adam: give
        ``fallback=gradx.adamw(3e-3)``.

    Raises:
      ValueError: a number out of range, `consistent_rms` and `convention` together; at `init`, axes
        that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.dion(0.1, weight_decay=0.0)
      >>> params = {"mlp": jnp.ones((1, 4)), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": jnp.array([[3.0, 0.0, -4.0, 0.0]]), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["mlp"].round(4) + 0.0
      Array([[-0.12,  0.  ,  0.16,  0.  ]], dtype=float32)

    Reference: Ahn et al., *Dion: Distributed orthonormalized updates*,
    https://arxiv.org/abs/2504.05295, and the authors' code, https://github.com/microsoft/dion; see
    `scale_by_dion` for where it differs. There the other leaves decay, too.
    """
    inner = or_by_name(axes)
    by_shape = convention_or("spectral", convention, consistent_rms)
    rule = scale_by_dion(
        rank_fraction,
        b1,
        eps,
        mu_dtype,
        rank_multiple_of=rank_multiple_of,
        key=key,
        axes=inner,
        chunk=chunk,
        share=share,
    )
    return matrix_optimizer(
        "dion",
        chain(rule, scale_by_shape(inner, consistent_rms, convention=by_shape)),
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
