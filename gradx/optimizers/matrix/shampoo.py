"""Shampoo: the gradient between inverse roots of its two second moments, rows' and columns'."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, weight_so_far
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers
from gradx.linalg import blocks, decompositions
from gradx.linalg.eigenbasis import cut, least_share, rounding_of_factors
from gradx.linalg.polar import bounded
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.pieces.momentum import kept, momentum_of, remembered, slow_average
from gradx.pieces.weight_decay import DecayKind

__all__ = ["ShampooState", "scale_by_shampoo", "shampoo"]

Graft = Literal["adam", "rmsprop", "adagrad", "sgd", "none"]

_GRAFTS = ("adam", "rmsprop", "adagrad", "sgd", "none")


class ShampooState(NamedTuple):
    """The state of Shampoo, for matrices of m rows and n columns.

    One of at most `block_size` rows and columns is one block, with `left` (m, m) and `right`
    (n, n). Of a larger one each block has its own, which stand beside each other, in the rows of
    `left` (m, blocks in a row times `block_size`) and of `right` (n, blocks in a column times
    `block_size`) that are the block's rows and columns; blocks that are smaller leave zeros.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters; with `b3` two, as `Averages`.
      nu: the graft's second moment, like the parameters, real; (0,) where it needs none.
      left: the average of \\(G G^\\top\\), (m, m) for one block.
      right: the average of \\(G^\\top G\\), (n, n) for one block.
      left_root: the inverse root of `left`, of its shape.
      right_root: the inverse root of `right`, of its shape.
    """

    count: Count
    mu: Updates
    nu: Updates
    left: Updates
    right: Updates
    left_root: Updates
    right_root: Updates


@core.recorded
def scale_by_shampoo(
    b1: Hyper = 0.9,
    b2: Annotated[Hyper, Number("[0, 1]")] = 1.0,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-12,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    rtol: Hyper | None = None,
    block_size: int = 1024,
    precondition_frequency: int = 1,
    staggered: bool = False,
    graft: Graft = "adam",
    graft_b2: Annotated[Hyper, Number("[0, 1)")] = 0.999,
    graft_eps: Annotated[Hyper, Number("(0, inf)", r"\epsilon_a")] = 1e-10,
    exponent: Annotated[Hyper, Number("(0, 1]", "p")] = 0.25,
    bias_correction: bool = True,
    mu_dtype: Any = None,
    axes: Any = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Multiplies each matrix, or each block of it, from both sides by an inverse root.

    .. math::
        M &\leftarrow \beta_1 M + (1 - \beta_1) G \\
        L &\leftarrow \beta_2 L + (1 - \beta_2) G G^\top, \qquad
            R \leftarrow \beta_2 R + (1 - \beta_2) G^\top G \\
        P &= (\hat L + \epsilon I)^{-p}\, \hat M\, (\hat R + \epsilon I)^{-p}, \qquad
            u = \frac{\lVert A \rVert_F}{\lVert P \rVert_F} P, \qquad
            A = \frac{\hat M}{\sqrt{\hat\nu} + \epsilon_a}

    where hats undo the start at zero, and \(A\) is the step of the graft, whose size is taken. With
    \(\beta_2 = 1\), \(L\) and \(R\) are sums. The roots are calculated from eigenvalues, in the
    first step and then in every \(k\)-th. A gradient that is not finite stays in the averages for
    good: `apply_if_finite` keeps it out.

    Args:
      b2: the decay of the factors. With the authors' 1 they are sums, as in AdaGrad; with Adam's
        graft they also recommend 0.999.
      eps: Eigenvalues that rounding makes negative are moved up to it.
      rtol: an eigenvalue that is, with `eps`, less than this share of the sum of all is taken for
        rounding, and its inverse root is 0: no step in that direction until the roots are renewed.
        By default 8 units of rounding, 1e-6 in float32; 0 is the authors' way.
      block_size: the most rows and columns of a block, from 1 on. What is left at the right and
        below makes smaller blocks.
      precondition_frequency: \(k\), from 1 on.
      staggered: a \(k\)-th part of the matrices of each shape in every step, instead of all of them
        in every \(k\)-th.
      graft: whose step gives the size: ``"adam"``, ``"rmsprop"`` (\(\nu\) as it is), ``"adagrad"``
        (the sum of squares), ``"sgd"`` (\(\hat M\) itself), or ``"none"``, for \(P\) as it is.
      graft_b2: the decay of the graft's second moment.
      graft_eps: keeps the graft's division finite.
      exponent: the exponent of the inverse roots. 1/4 is the paper's for matrices, 1/2 that of the
        best Kronecker product.
      bias_correction: False for the averages as they are.

    Raises:
      ValueError: a number out of range, a graft that is not there; at `init`, a leaf that is no
        matrix, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_shampoo(graft="none")
      >>> g = jnp.array([[4.0, 0.0], [0.0, -9.0]])
      >>> tx.update(g, tx.init(g))[0].round(4) + 0.0
      Array([[ 1.,  0.],
             [ 0., -1.]], dtype=float32)

    Reference: Gupta et al., *Shampoo*, https://arxiv.org/abs/1802.09568; Shi et al., *A distributed
    data-parallel PyTorch implementation of the Distributed Shampoo optimizer*,
    https://arxiv.org/abs/2309.06497. Deviations from the code of the latter
    (facebookresearch/optimizers): `rtol`; with \(k > 1\) the first roots are those of the
    first step, where it waits for step \(k\), with the graft's own step until then; where
    eigenvalues cannot be found the old roots stay, without an error after three times; a matrix has
    two sides however small it is, where by default those of no more than `block_size` elements are
    flattened to vectors.
    """
    block = steps("block_size", block_size, 1)
    has_nu = graft in ("adam", "rmsprop", "adagrad")
    slow = slow_average(b3, alpha)
    like_leaf = {"mu": kept(mu_dtype, slow), **({"nu": "real"} if has_nu else {})}
    return matrixwise(
        _preconditioned,
        init=partial(_first, block=block, has_nu=has_nu),
        state=ShampooState,
        like_leaf=like_leaf,
        hypers={
            "b1": b1,
            **slow,
            "b2": b2,
            "eps": eps,
            "graft_b2": graft_b2,
            "graft_eps": graft_eps,
            "exponent": exponent,
            **cut(rtol),
        },
        flags={
            "block": block,
            "graft": graft,
            "corrects": bias_correction,
        },
        per_step=_factors,
        axes=axes,
        gather=_gathered,
        renew=_with_roots,
        every=steps("precondition_frequency", precondition_frequency, 1),
        staggered=staggered,
        chunk=chunk,
        share=share,
    )


def _factors(h: Numbers, t: Array) -> Mapping[str, Any]:
    weigh: Any = (lambda c, x, y: x if c else y) if isinstance(h.b2, float) else jnp.where
    averages = h.b2 < 1
    of = {"of_new": weigh(averages, 1 - h.b2, 1.0), "of_mu": 1.0, "of_nu": 1.0, "of_sides": 1.0}
    if h.corrects:
        of["of_mu"] = 1 / weight_so_far(h.b1, t)
        of["of_sides"] = weigh(averages, 1 / weight_so_far(h.b2, t), 1.0)
        if h.graft == "adam":
            of["of_nu"] = 1 / weight_so_far(h.graft_b2, t)
    return of


# ---------------------------------------------------------------- the rule


def _first(p: Array, *, block: int, has_nu: bool) -> dict[str, Array]:
    rows, columns = p.shape
    left = jnp.zeros_like(p, shape=blocks.side_shape(rows, columns, block))
    right = jnp.zeros_like(p, shape=blocks.side_shape(columns, rows, block))
    nu = {} if has_nu else {"nu": jnp.zeros_like(p.real, shape=(0,))}
    return {**nu, "left": left, "right": right, "left_root": left, "right_root": right}


def _gathered(g: Array, s: ShampooState, p: None, h: Numbers) -> ShampooState:
    g, nu, left, right = bounded(g), s.nu, s.left, s.right
    mu = remembered(s.mu, g, h)
    if h.graft == "adagrad":
        nu = nu + abs_sq(g)
    elif nu.size:
        nu = average(nu, abs_sq(g), h.graft_b2)
    if g.size:
        left = h.b2 * left + h.of_new * blocks.outer(g, h.block)
        right = h.b2 * right + h.of_new * blocks.outer(g.mT, h.block)
    return s._replace(mu=mu, nu=nu, left=left, right=right)


def _with_roots(s: ShampooState, h: Numbers) -> ShampooState:
    if not (s.left.size and s.right.size):
        return s
    left_root = _root(s.left, s.left_root, h)
    right_root = _root(s.right, s.right_root, h)
    return s._replace(left_root=left_root, right_root=right_root)


def _root(side: Array, old: Array, h: Numbers) -> Array:
    """The inverse root of each block's factor; the old one where `eigh` does not converge."""
    width = min(side.shape[0], h.block)
    made = []
    for r in blocks.cuts(side.shape[0], h.block):
        factors = blocks.factors_of(side, r, h.block).swapaxes(1, 2)
        values, vectors = decompositions.eigh(h.of_sides * factors)
        # Rounding moves the least ones below zero, and how far depends on the largest: as the
        # authors do, all are moved up, before and not after the small eps is added.
        values = values - jnp.minimum(values[..., :1], 0.0)
        least = least_share(h, rounding_of_factors(values.dtype))
        least = least * jnp.sum(values, axis=-1, keepdims=True)
        values = values + h.eps
        inverse = jnp.where(values < least, 0, values**-h.exponent)  # NaN stays NaN
        scaled = vectors * inverse[..., None, :]
        root = jnp.matmul(scaled, vectors.mT.conj(), precision=jax.lax.Precision.HIGHEST)
        before = blocks.factors_of(old, r, h.block).swapaxes(1, 2)
        fine = jnp.all(jnp.isfinite(root), axis=(-2, -1), keepdims=True)
        root = jnp.where(fine, root, before).swapaxes(1, 2)
        root = jnp.pad(root, ((0, 0), (0, 0), (0, 0), (0, width - r.length)))
        made.append(root.reshape(r.many * r.length, -1))
    return jnp.concatenate(made)


def _preconditioned(g: Array, s: ShampooState, p: None, h: Numbers) -> tuple[Array, ShampooState]:
    if not g.size:
        return g, s
    m = momentum_of(s.mu, h, h.of_mu)
    made = blocks.times(s.right_root, blocks.times(s.left_root, m, h.block).mT, h.block).mT
    if h.graft == "none":
        return made, s
    step = m if h.graft == "sgd" else m / (sqrt(h.of_nu * s.nu) + h.graft_eps)

    def grafted(r: blocks.Cut, c: blocks.Cut, x: Array, like: Array) -> Array:
        size = blocks.norms(x)
        return x * (blocks.norms(like) / jnp.where(size > 0, size, 1.0))

    return blocks.by_block(grafted, h.block, made, step), s


# ---------------------------------------------------------------- the optimizer


@core.recorded
def shampoo(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Annotated[Hyper, Number("[0, 1]")] = 1.0,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-12,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    rtol: Hyper | None = None,
    decay: DecayKind = "learning_rate",
    block_size: int = 1024,
    precondition_frequency: int = 1,
    staggered: bool = False,
    graft: Graft = "adam",
    graft_b2: Annotated[Hyper, Number("[0, 1)")] = 0.999,
    graft_eps: Annotated[Hyper, Number("(0, inf)", r"\epsilon_a")] = 1e-10,
    exponent: Annotated[Hyper, Number("(0, 1]", "p")] = 0.25,
    bias_correction: bool = True,
    mu_dtype: Any = None,
    axes: Any = None,
    fallback: Contract | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Shampoo for the matrices, and Adam for all else.

    .. math:: u = -\eta_t \left(\frac{\lVert A \rVert_F}{\lVert P \rVert_F} P + \lambda \theta
              \right), \qquad P = (\hat L + \epsilon I)^{-p} \hat M (\hat R + \epsilon I)^{-p}

    with the parts of `scale_by_shampoo`.

    Args:
      learning_rate: With Adam's graft, what suits Adam; the authors begin at 0.01.
      b2: the decay of the factors. With 1 they are sums.
      eps: a small number under the roots.
      weight_decay: how strongly the matrices are drawn to zero.
      block_size: the most rows and columns of a block, from 1 on.
      precondition_frequency: in every how many steps the roots are calculated anew.
      staggered: a part of them in every step instead.
      graft: whose step gives the size (see `scale_by_shampoo`).
      graft_b2: the decay of the graft's second moment.
      graft_eps: keeps the graft's division finite.
      exponent: the exponent of the inverse roots.
      bias_correction: False for the averages as they are.
      mu_dtype: the dtype to keep averages of gradients in, Adam's too.
      axes: which leaves are matrices, in which axes: a `MatrixAxes`, a tree of them with None for a
        leaf that is none, a function that makes one, or `by_path`. By default `matrices_by_name`:
        embeddings, heads, norms and biases are not.
      fallback: what the other leaves are given; by default Adam with `learning_rate`, the betas
        (0.9, 0.999), eps 1e-8 and no weight decay.

    Raises:
      ValueError: a number out of range, a graft that is not there; at `init`, axes that do not fit
        a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.shampoo(0.1)
      >>> params = {"mlp": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": jnp.array([[4.0, 0.0], [0.0, 9.0]]), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["mlp"].round(4) + 0.0
      Array([[-0.1,  0. ],
             [ 0. , -0.1]], dtype=float32)
      >>> updates["bias"]
      Array([-0.1, -0.1], dtype=float32)

    Reference: Gupta et al., *Shampoo*, https://arxiv.org/abs/1802.09568; Shi et al.,
    https://arxiv.org/abs/2309.06497, whose defaults these are, but for the graft, which they do not
    set, and for vectors, which they give Shampoo with one side.
    """
    rule = scale_by_shampoo(
        b1,
        b2,
        eps,
        b3=b3,
        alpha=alpha,
        rtol=rtol,
        block_size=block_size,
        precondition_frequency=precondition_frequency,
        staggered=staggered,
        graft=graft,
        graft_b2=graft_b2,
        graft_eps=graft_eps,
        exponent=exponent,
        bias_correction=bias_correction,
        mu_dtype=mu_dtype,
        axes=or_by_name(axes),
        chunk=chunk,
        share=share,
    )
    return matrix_optimizer(
        "shampoo",
        rule,
        learning_rate,
        weight_decay,
        weight_decay_mask,
        decay,
        axes,
        fallback,
        mu_dtype=mu_dtype,
    )
