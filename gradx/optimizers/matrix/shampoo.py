"""Shampoo: multiplies gradients on both sides by inverse roots of their second moments."""

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

    A matrix with at most `block_size` rows and columns is one block, with `left` (m, m) and `right`
    (n, n). In a larger matrix each block has its own factors. They stand side by side in `left` (m,
    blocks in a row times `block_size`), in the block's rows, and in `right` (n, blocks in a column
    times `block_size`), in the rows that are the block's columns. Smaller blocks leave zeros.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters; with `b3` two averages, as `Averages`.
      nu: the graft's second moment, like the parameters, real; (0,) if the graft needs none.
      left: the average of \\(G G^\\top\\), (m, m) for one block.
      right: the average of \\(G^\\top G\\), (n, n) for one block.
      left_root: the inverse root of `left`, of the same shape.
      right_root: the inverse root of `right`, of the same shape.
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
    r"""Multiplies each matrix, or each block of it, on both sides by an inverse root.

    .. math::
        M &\leftarrow \beta_1 M + (1 - \beta_1) G \\
        L &\leftarrow \beta_2 L + (1 - \beta_2) G G^\top, \qquad
            R \leftarrow \beta_2 R + (1 - \beta_2) G^\top G \\
        P &= (\hat L + \epsilon I)^{-p}\, \hat M\, (\hat R + \epsilon I)^{-p}, \qquad
            u = \frac{\lVert A \rVert_F}{\lVert P \rVert_F} P, \qquad
            A = \frac{\hat M}{\sqrt{\hat\nu} + \epsilon_a}

    where hats mark averages corrected for the start at zero. \(A\) is the step of the graft,
    another optimizer that gives the size of the step. With \(\beta_2 = 1\), \(L\) and \(R\) are
    sums. The roots are calculated from eigenvalues, in the first step and then in every \(k\)-th. A
    gradient that is not finite stays in the averages for good; `apply_if_finite` keeps it out.

    Args:
      b2: the decay of the factors. With 1, the authors' choice, they are sums, as in AdaGrad; with
        Adam's graft the authors also recommend 0.999.
      eps: Where rounding makes eigenvalues negative, all are moved up until the least is `eps`.
      rtol: the share of the sum of all eigenvalues below which one, with `eps` added, is taken for
        rounding error. Its inverse root is then 0: there is no step in its direction until the
        roots are renewed. By default 8 units of rounding, 1e-6 in float32; the authors have 0.
      block_size: the most rows and columns of a block, from 1 on. The last blocks of a row or
        column may be smaller.
      precondition_frequency: the steps from one renewal of the roots to the next, \(k\), from 1 on.
      staggered: renew the roots of \(1/k\) of the matrices of each shape in every step, instead of
        all in every \(k\)-th.
      graft: the optimizer whose step gives the size: ``"adam"``, ``"rmsprop"`` (\(\nu\) without
        bias correction), ``"adagrad"`` (the sum of squares), ``"sgd"`` (\(\hat M\) itself), or
        ``"none"``, which leaves \(P\) as it is.
      graft_b2: the decay of the graft's second moment.
      graft_eps: a small number that keeps the graft's division finite.
      exponent: the exponent of the inverse roots. The paper has 1/4 for matrices; 1/2 is that of
        the best Kronecker product.
      bias_correction: whether the averages are corrected for their start at zero.

    Raises:
      ValueError: a number out of range, an unknown graft; at `init`, a leaf that is not a matrix,
        with its path.

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
    (facebookresearch/optimizers): `rtol`; with \(k > 1\) the first roots are those of the first
    step, where that code makes the graft's steps until step \(k\). If eigenvalues cannot be
    calculated the old roots stay; that code raises an error after three times. Every matrix has two
    sides; there, by default, one with no more than `block_size` elements is flattened to a vector.
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
    roots = []
    for r in blocks.cuts(side.shape[0], h.block):
        factors = blocks.factors_of(side, r, h.block).swapaxes(1, 2)
        values, vectors = decompositions.eigh(h.of_sides * factors)
        # Rounding moves the least ones below zero, by an amount that depends on the largest. As in
        # the authors' code all are moved up, before the small eps is added.
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
        roots.append(root.reshape(r.many * r.length, -1))
    return jnp.concatenate(roots)


def _preconditioned(g: Array, s: ShampooState, p: None, h: Numbers) -> tuple[Array, ShampooState]:
    if not g.size:
        return g, s
    m = momentum_of(s.mu, h, h.of_mu)
    direction = blocks.times(s.right_root, blocks.times(s.left_root, m, h.block).mT, h.block).mT
    if h.graft == "none":
        return direction, s
    step = m if h.graft == "sgd" else m / (sqrt(h.of_nu * s.nu) + h.graft_eps)

    def grafted(r: blocks.Cut, c: blocks.Cut, x: Array, like: Array) -> Array:
        size = blocks.norms(x)
        return x * (blocks.norms(like) / jnp.where(size > 0, size, 1.0))

    return blocks.by_block(grafted, h.block, direction, step), s


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
    r"""Shampoo: gradients preconditioned on both sides for the matrices, Adam for all other leaves.

    .. math:: u = -\eta_t \left(\frac{\lVert A \rVert_F}{\lVert P \rVert_F} P + \lambda \theta
              \right), \qquad P = (\hat L + \epsilon I)^{-p} \hat M (\hat R + \epsilon I)^{-p}

    with the parts of `scale_by_shampoo`.

    Args:
      learning_rate: With Adam's graft take what suits Adam; the authors begin with 0.01.
      b2: the decay of the factors. With 1 they are sums.
      eps: a small number under the roots.
      weight_decay: how strongly the matrices are drawn to zero.
      block_size: the most rows and columns of a block, from 1 on.
      precondition_frequency: the steps from one renewal of the roots to the next.
      staggered: renew a part of the roots in every step, so that no step takes longer than others.
      graft: the optimizer whose step gives the size (see `scale_by_shampoo`).
      graft_b2: the decay of the graft's second moment.
      graft_eps: a small number that keeps the graft's division finite.
      exponent: the exponent of the inverse roots.
      bias_correction: whether the averages are corrected for their start at zero.
      mu_dtype: the dtype to keep averages of gradients in, Adam's too.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.999), eps 1e-8 and no weight
        decay.

    Raises:
      ValueError: a number out of range, an unknown graft; at `init`, axes that do not fit a leaf,
        with its path.

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
    https://arxiv.org/abs/2309.06497, whose defaults these are. The exceptions: the authors set no
    graft, and give vectors Shampoo with one side.
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
