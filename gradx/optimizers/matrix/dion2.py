"""Dion2: Muon for the largest rows of a matrix's momentum; the other rows wait."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.lift.averages import storage
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers
from gradx.linalg import polar
from gradx.numbers.sources import Array, Fixed, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.optimizers.matrix.orthogonal import (
    Convention,
    Normalisation,
    NSCoefficients,
    convention_or,
    part_of,
    polar_arguments,
    polar_factor,
    scale_by_shape,
)
from gradx.pieces.weight_decay import DecayKind

__all__ = ["Dion2State", "dion2", "scale_by_dion2"]


class Dion2State(NamedTuple):
    """The state of Dion2.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the gradients that have not gone into updates yet, like the parameters.
      ns_coeffs: the coefficients of the polynomials, float32 (3,) or (steps, 3).
    """

    count: Count
    mu: Updates
    ns_coeffs: Array


@core.recorded
def scale_by_dion2(
    fraction: Annotated[Fixed, Number("(0, 1]")] = 0.25,
    ns_coeffs: NSCoefficients = "modded_nanogpt",
    ns_steps: int = 5,
    ef_decay: Annotated[Hyper, Number("[0, 1)", r"\mu")] = 0.95,
    eps: Hyper = 1e-8,
    mu_dtype: Any = None,
    *,
    preconditioning: Normalisation = "frobenius",
    axes: Any = None,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Replaces the largest rows of each matrix by the polar factor of their momentum, others by 0.

    .. math::
        M &\leftarrow M + G, \qquad
            K = \text{the } k \text{ rows with the largest } \textstyle\sum_j |M_{ij}| \\
        u_K &\approx U V^\top, \qquad M_K = U S V^\top, \qquad u_{ij} = 0 \text{ for } i \notin K \\
        M_K &\leftarrow \mu M_K

    for a matrix with fewer rows than columns. In any other, it chooses columns: in a square one
    these are the outputs, as in the authors' code. With a fraction of 1 it is Muon without looking
    ahead and without bias correction.

    Args:
      fraction: the fraction of the shorter side that a step updates, rounded up to a whole number.
        The smaller it is, the less work a step is.
      ef_decay: how much stays of the momentum that has gone into an update.
      eps: It is the `eps` of `scale_by_muon`.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range, an unknown preset; at `init`, a leaf that is not a matrix,
        with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_dion2(0.5, "exact", ef_decay=0.5)
      >>> g = jnp.array([[3.0, 0.0, -4.0], [0.0, 6.0, 0.0]])
      >>> u, state = tx.update(g, tx.init(g))
      >>> u
      Array([[ 0.6,  0. , -0.8],
             [ 0. ,  0. ,  0. ]], dtype=float32)
      >>> u, state = tx.update(g, state)
      >>> u + 0.0  # the second row has waited
      Array([[0., 0., 0.],
             [0., 1., 0.]], dtype=float32)

    Reference: Ahn, Amsel and Langford, *Dion2: A simple method to shrink matrix in Muon*,
    https://arxiv.org/abs/2512.16928, and the authors' code, https://github.com/microsoft/dion.
    Deviations from it: among rows of equal size the first are chosen; matrices are multiplied in
    `dtype`, there always in bfloat16.
    """
    flags, scalars = polar_arguments(ns_coeffs, ns_steps, preconditioning, dtype, gram)
    return matrixwise(
        _dion2,
        state=Dion2State,
        like_leaf={"mu": storage("mu_dtype", mu_dtype)},
        hypers={"ef_decay": ef_decay, "eps": eps},
        flags={**flags, "fraction": fraction},
        scalars=scalars,
        axes=axes,
        either_way=True,
        chunk=chunk,
        share=share,
    )


def _dion2(g: Array, s: Dion2State, p: None, h: Numbers) -> tuple[Array, Dion2State]:
    rows, columns = g.shape
    if not g.size:
        return g, s
    if rows >= columns:  # square, or of a leaf with several parts, which the lift does not turn
        u, mu = _by_rows(g.T, s.mu.T, h)
        return u.T, s._replace(mu=mu.T)
    u, mu = _by_rows(g, s.mu, h)
    return u, s._replace(mu=mu)


def _by_rows(g: Array, mu: Array, h: Numbers) -> tuple[Array, Array]:
    mu, rows = mu + polar.bounded(g), g.shape[0]
    count = part_of(rows, h.fraction)
    if count == rows:
        return polar_factor(mu, h), h.ef_decay * mu
    chosen = jax.lax.top_k(jnp.sum(jnp.abs(mu), axis=1), count)[1]
    u = jnp.zeros_like(mu).at[chosen].set(polar_factor(mu[chosen], h), unique_indices=True)
    stays = jnp.ones(rows, mu.real.dtype).at[chosen].set(h.ef_decay, unique_indices=True)
    return u, stays[:, None] * mu


@core.recorded
def dion2(
    learning_rate: Hyper,
    fraction: Annotated[Fixed, Number("(0, 1]")] = 0.25,
    ns_coeffs: NSCoefficients = "modded_nanogpt",
    ns_steps: int = 5,
    ef_decay: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    consistent_rms: float | None = None,
    convention: Convention | None = None,
    preconditioning: Normalisation = "frobenius",
    decay: DecayKind = "learning_rate",
    axes: Any = None,
    fallback: Contract | None = None,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Dion2: Muon for the largest rows of the matrices, and Adam for all other leaves.

    .. math:: u = -\eta_t \left(\sqrt{n / m}\, O + \lambda \theta\right)

    with the update \(O\) of `scale_by_dion2`, which is zero except in some rows (or columns). A
    matrix has \(m\) rows (inputs) and \(n\) columns (outputs).

    Args:
      learning_rate: The authors begin with 0.01.
      fraction: the fraction of the shorter side that a step updates.
      ef_decay, eps: see `scale_by_dion2`.
      weight_decay: how strongly the matrices are drawn to zero, in all their rows.
      consistent_rms: see `scale_by_shape`, a constant. It goes by the shape of the whole matrix.
      convention: see `scale_by_shape`; by default ``"spectral"``.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.95), eps 1e-8 and no weight
        decay. A rate for orthogonal updates is usually far too large for Adam: give
        ``fallback=gradx.adamw(3e-3)``.

    Raises:
      ValueError: a number out of range, an unknown preset, `consistent_rms` and `convention`
        together; at `init`, axes that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.dion2(0.1, 0.5, "exact", weight_decay=0.0)
      >>> params = {"mlp": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": jnp.array([[3.0, 0.0], [4.0, 5.0]]), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["mlp"].round(4) + 0.0
      Array([[-0.06,  0.  ],
             [-0.08,  0.  ]], dtype=float32)

    Reference: Ahn, Amsel and Langford, *Dion2: A simple method to shrink matrix in Muon*,
    https://arxiv.org/abs/2512.16928, and the authors' code, https://github.com/microsoft/dion; see
    `scale_by_dion2` for where it differs. There the other leaves decay, too.
    """
    inner = or_by_name(axes)
    by_shape = convention_or("spectral", convention, consistent_rms)
    rule = scale_by_dion2(
        fraction,
        ns_coeffs,
        ns_steps,
        ef_decay,
        eps,
        mu_dtype,
        preconditioning=preconditioning,
        axes=inner,
        dtype=dtype,
        gram=gram,
        chunk=chunk,
        share=share,
    )
    return matrix_optimizer(
        "dion2",
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
