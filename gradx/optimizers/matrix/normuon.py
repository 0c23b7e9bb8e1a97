"""NorMuon: Muon with a step size for each neuron."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sequence import joined
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.optimizers.matrix.orthogonal import (
    Convention,
    Normalisation,
    NSCoefficients,
    convention_or,
    momentum,
    orthogonalise,
    scale_by_shape,
)
from gradx.pieces.weight_decay import DecayKind

__all__ = ["NorMuonState", "normuon", "scale_by_normuon"]


class NorMuonState(NamedTuple):
    """The state of NorMuon.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters; with `b3` two averages, as `Averages`.
      nu: the average, for each output neuron, of the mean square of its updates, real, (columns,);
        for a stack of matrices an axis in front counts them.
      ns_coeffs: the coefficients of the polynomials, float32 (3,) or (steps, 3).
    """

    count: Count
    mu: Updates
    nu: Updates
    ns_coeffs: Array


class _Neurons(NamedTuple):
    nu: Updates


@core.recorded
def scale_by_normuon(
    ns_coeffs: NSCoefficients = "standard",
    ns_steps: int = 5,
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    nesterov: bool = False,
    consistent_rms: Annotated[Hyper | None, Number("(0, inf)")] = None,
    preconditioning: Normalisation = "frobenius",
    axes: Any = None,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Replaces each matrix by the polar factor of its momentum, normalised for each neuron.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) G, \qquad O \approx U V^\top, \qquad
            \mu = U S V^\top \\
        \nu_j &\leftarrow \beta_2 \nu_j + (1 - \beta_2) \operatorname{mean}_i |O_{ij}|^2 \\
        u_{ij} &= c\, O_{ij} / (\sqrt{\nu_j} + \epsilon)

    where column \(j\) of a matrix (inputs, outputs) belongs to one output neuron. \(c\) is one
    number for each matrix, such that \(\lVert u \rVert_F = \lVert O \rVert_F\).

    Args:
      eps: It is also the `eps` of `scale_by_muon`.
      nesterov: orthogonalise \((1 - \beta_1) G + \beta_1 \mu\).
      consistent_rms: the root mean square that \(c\) gives to \(u\) instead; `None` keeps the norm.
        It may be a live value.
      axes: Without it every leaf must have two axes.

    Raises:
      ValueError: a number out of range, an unknown preset; at `init`, a leaf that is not a matrix,
        with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_normuon("exact")
      >>> g = jnp.array([[3.0, 0.0], [4.0, 0.0]])
      >>> tx.update(g, tx.init(g))[0]
      Array([[0.6, 0. ],
             [0.8, 0. ]], dtype=float32)

    Reference: Li et al., *NorMuon: Making Muon more efficient and scalable*,
    https://arxiv.org/abs/2510.05491, where a matrix is (outputs, inputs) and a neuron is a row. The
    paper's step has the root mean square 0.2. The authors' code,
    https://github.com/zichongli5/NorMuon, keeps the norm and looks ahead.
    """
    aligned = {} if consistent_rms is None else {"consistent_rms": consistent_rms}
    return joined(
        NorMuonState,
        momentum(b1, b3, alpha, mu_dtype, nesterov, bias_correction=False, name="b1"),
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
        matrixwise(
            _balanced,
            init={"nu": _no_squares},
            state=_Neurons,
            hypers={"b2": b2, "eps": eps, **aligned},
            flags={"aligned": bool(aligned)},
            axes=axes,
            chunk=chunk,
            share=False,  # sums of squares need no whole matrix on one device
        ),
    )


def _no_squares(p: Array) -> Array:
    return jnp.zeros_like(p.real, shape=p.shape[1:])


def _balanced(o: Array, s: _Neurons, p: None, h: Numbers) -> tuple[Array, _Neurons]:
    rows = max(o.shape[0], 1)
    squares = jnp.sum(abs_sq(o), axis=0)
    nu = average(s.nu, squares / rows, h.b2)
    root = sqrt(nu) + h.eps
    factor = jnp.where(root > 0, 1 / root, 0.0)
    # The norm of the result follows from the sums, so that no further pass over it is needed.
    size = sqrt(jnp.sum(factor**2 * squares))
    wanted = h.consistent_rms * math.sqrt(o.size) if h.aligned else sqrt(jnp.sum(squares))
    u = o * (factor * (wanted / jnp.where(size > 0, size, 1.0)))[None]
    return u, s._replace(nu=nu)


@core.recorded
def normuon(
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
    nesterov: bool = False,
    consistent_rms: Annotated[Hyper | None, Number("(0, inf)")] = 0.2,
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
    r"""NorMuon: Muon normalised for each neuron for the matrices, Adam for all other leaves.

    .. math::
        u = -\eta_t \left(c\, O / (\sqrt{\nu} + \epsilon) + \lambda \theta\right), \qquad
            c = 0.2 \sqrt{mn} \big/ \lVert O / (\sqrt{\nu} + \epsilon) \rVert_F

    with the polar factor \(O\) and the mean squares \(\nu\) of `scale_by_normuon`, for \(m\) rows
    (inputs) and \(n\) columns (outputs).

    Args:
      learning_rate: Take what suits Adam, such as 6e-4; with ``consistent_rms=None`` the authors
        begin with 0.02.
      weight_decay: how strongly the matrices are drawn to zero.
      consistent_rms: the root mean square of every update, the 0.2 of the formula, which is about
        Adam's. It may be a live value. `None` keeps the norm of \(O\), and `convention` scales it.
      convention: see `scale_by_shape`; by default ``"spectral"``. Only with
        ``consistent_rms=None``.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.95), eps 1e-8 and no weight
        decay. With ``consistent_rms=None`` a rate that suits the matrices, such as 0.02, is usually
        far too large for Adam: give ``fallback=gradx.adamw(3e-3)``.

    Raises:
      ValueError: a number out of range, an unknown preset, `consistent_rms` and `convention`
        together; at `init`, axes that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.normuon(0.1, weight_decay=0.0)
      >>> params = {"mlp": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": jnp.array([[3.0, 0.0], [0.0, -0.1]]), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["mlp"].round(4)
      Array([[-0.0283, -0.    ],
             [-0.    ,  0.0283]], dtype=float32)

    Reference: Li et al., *NorMuon: Making Muon more efficient and scalable*,
    https://arxiv.org/abs/2510.05491. The step of the authors' code,
    https://github.com/zichongli5/NorMuon, is ``normuon(0.02, eps=1e-10, weight_decay=0.0,
    nesterov=True, consistent_rms=None, convention="keller")``. That of
    https://github.com/microsoft/dion has ``consistent_rms=None`` and the coefficients
    ``"modded_nanogpt"``; there the other leaves decay, too.
    """
    inner = or_by_name(axes)
    by_shape = convention_or("spectral", convention, consistent_rms)
    rule = scale_by_normuon(
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
        axes=inner,
        dtype=dtype,
        gram=gram,
        chunk=chunk,
        share=share,
    )
    if by_shape is not None:
        rule = chain(rule, scale_by_shape(inner, convention=by_shape))
    return matrix_optimizer(
        "normuon",
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
