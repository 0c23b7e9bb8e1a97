"""PSGD-Kron: a preconditioner of triangular factors, fitted step by step to whiten the momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.ranges import as_float
from gradx.lift.averages import weight_so_far
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sharing import Sharing
from gradx.lift.stages import Numbers, Sums
from gradx.linalg import polar
from gradx.linalg.triangular import fitted, into, out_of, scaled_identity
from gradx.numbers.counting import as_count, steps
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import matrix_optimizer, or_by_name
from gradx.pieces.momentum import kept, momentum_of, remembered, slow_average
from gradx.pieces.preprocessing import as_key, check_key
from gradx.pieces.weight_decay import DecayKind
from gradx.schedules.schedule_fn import ScheduleFn

__all__ = ["PSGDKronState", "precond_update_prob_schedule", "psgd_kron", "scale_by_psgd_kron"]

MemorySaveMode = Literal["one_diag", "all_diag"] | None
Probe = Literal["normal", "expected"]

_LARGEST = 1.1  # the largest root mean square of an update; white noise has 1


class PSGDKronState(NamedTuple):
    """The state of PSGD-Kron, for matrices of m rows and n columns.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters; with `b3` two averages, as `Averages`.
      left: the upper triangular factor of the rows (m, m), or its diagonal (m,).
      right: the upper triangular factor of the columns (n, n), or its diagonal (n,).
      since: how many updates ago the factors were last fitted, int32 ().
      key: the random key of the next update, a raw key (2,), or a typed key ().
    """

    count: Count
    mu: Updates
    left: Updates
    right: Updates
    since: Array
    key: Array


# ---------------------------------------------------------------- how often


@core.recorded
def precond_update_prob_schedule(
    max_prob: Annotated[float, Number("[0, 1]", "p_0")] = 1.0,
    min_prob: Annotated[float, Number("[0, 1]", "p_1")] = 0.03,
    decay: Annotated[float, Number("[0, inf)", "d")] = 0.001,
    flat_start: int = 500,
) -> ScheduleFn:
    r"""A schedule of how often PSGD fits its preconditioner: always at first, then less and less.

    .. math:: p(t) = \min(\max(p_0 e^{-d (t - s)}, p_1), p_0)

    Args:
      max_prob: the probability at the beginning.
      min_prob: the probability at the end.
      decay: how fast it falls.
      flat_start: the steps before it begins to fall, \(s\), a whole number from 0 on.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import gradx
      >>> p = gradx.precond_update_prob_schedule()
      >>> [round(float(p(t)), 2) for t in (0, 500, 1500, 5000)]
      [1.0, 1.0, 0.37, 0.03]

    Reference: https://github.com/evanatyourservice/psgd_jax.
    """
    begin = steps("flat_start", flat_start, 0)

    def value(count: Any) -> Array:
        fallen = max_prob * jnp.exp(-decay * (as_float(as_count(count)) - begin))
        return jnp.minimum(jnp.maximum(fallen, min_prob), max_prob)

    return ScheduleFn(value)


_ANNEALED = precond_update_prob_schedule()


# ---------------------------------------------------------------- the transformation


@core.recorded
def scale_by_psgd_kron(
    b1: Hyper = 0.9,
    preconditioner_update_probability: Annotated[Hyper | None, Number("[0, 1]", "p")] = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    max_size_triangular: int = 8192,
    memory_save_mode: MemorySaveMode = None,
    preconditioner_lr: Annotated[Hyper, Number("[0, 1)", r"\eta_Q")] = 0.1,
    preconditioner_init_scale: Annotated[float, Number("(0, inf)")] = 1.0,
    mu_dtype: Any = None,
    probe: Probe = "normal",
    key: Array | int = 0,
    axes: Any = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Whitens the momentum of each matrix by two triangular factors that are fitted on the way.

    .. math::
        M &\leftarrow \beta_1 M + (1 - \beta_1) G, \qquad
            A = Q_L (\hat M + \delta V) Q_R^\top, \qquad B = Q_L^{-\top} V Q_R^{-1} \\
        Q_L &\leftarrow Q_L - \eta_Q\,
            \frac{\mathrm{triu}(A A^\top - B B^\top)}{\lVert A A^\top + B B^\top \rVert}\, Q_L,
        \qquad Q_R \leftarrow Q_R - \eta_Q\,
            \frac{\mathrm{triu}(A^\top A - B^\top B)}{\lVert A^\top A + B^\top B \rVert}\, Q_R \\
        P &= Q_L^\top Q_L \hat M Q_R^\top Q_R, \qquad u = P / \max(1, \mathrm{RMS}(P) / 1.1)

    where \(\hat M\) is corrected for its start at zero, \(V\) is white noise, \(\delta\) is 0.00035
    times the mean of \(|\hat M|\), and the norm is a lower bound of the spectral norm.

    Args:
      preconditioner_update_probability: how often the factors are fitted: whenever \(1/p\) steps
        have passed, so 1 / k means every k-th step. By default `precond_update_prob_schedule`.
      max_size_triangular: the longest side that has a triangular factor, from 0 on; a longer one
        has a diagonal.
      memory_save_mode: ``"one_diag"`` for a diagonal factor on the longer side, ``"all_diag"`` on
        both.
      preconditioner_lr: the step size of the factors.
      preconditioner_init_scale: the multiple of the identity that \(Q_L \otimes Q_R\) begins with.
      probe: ``"normal"`` draws the noise \(V\); ``"expected"`` takes the expectations of \(A
        A^\top\), \(B B^\top\), \(A^\top A\) and \(B^\top B\) over it, at as many operations and
        without random numbers.
      key: All matrices of one shape see the same noise (see `add_noise`).

    Raises:
      ValueError: a number out of range, an unknown mode; at `init`, a leaf that is not a matrix,
        with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_psgd_kron(probe="expected")
      >>> g = jnp.array([[4.0, 0.0], [0.0, -0.25]])
      >>> state = tx.init(g)
      >>> for _ in range(200):
      ...     u, state = tx.update(g, state)
      >>> u.round(1) + 0.0
      Array([[ 0.8,  0. ],
             [ 0. , -2. ]], dtype=float32)

    Reference: Li, *Preconditioned stochastic gradient descent*, https://arxiv.org/abs/1512.04202;
    https://github.com/lixilinx/psgd_torch; https://github.com/evanatyourservice/psgd_jax, whose
    names these are. Deviations from the latter: products are in float32 or wider. A schedule is
    first called with the count 0, there with 1. The factors are balanced, which does not change the
    update, at every fit and not at random. A matrix without any gradient keeps its factors; there
    they grow until they overflow.
    """
    check_key("key", key)
    limit = steps("max_size_triangular", max_size_triangular, 0)
    often = preconditioner_update_probability
    slow = slow_average(b3, alpha)
    return matrixwise(
        _whitened,
        init=partial(_first, limit=limit, mode=memory_save_mode, scale=preconditioner_init_scale),
        state=PSGDKronState,
        like_leaf={"mu": kept(mu_dtype, slow)},
        hypers={
            "b1": b1,
            **slow,
            "preconditioner_lr": preconditioner_lr,
            "preconditioner_update_probability": _ANNEALED if often is None else often,
        },
        flags={"probe": probe},
        per_step=_correction,
        per_tree=_planned,
        whole_tree=["preconditioner_update_probability"],
        scalars={"since": 0, "key": lambda _: as_key(key)},
        axes=axes,
        chunk=chunk,
        share=share,
    )


def _first(p: Array, *, limit: int, mode: MemorySaveMode, scale: Any) -> dict[str, Array]:
    def factor(axis: int) -> Array:
        length, other = p.shape[axis], p.shape[1 - axis]
        longer = length > other or (length == other and axis == 1)
        diagonal = mode == "all_diag" or (mode == "one_diag" and longer)
        return scaled_identity(length, scale**0.5, diagonal or length == 1 or length > limit, p)

    return {"left": factor(0), "right": factor(1)}


def _correction(h: Numbers, t: Array) -> Mapping[str, Any]:
    return {"of_mu": 1 / weight_so_far(h.b1, t)}


def _planned(h: Numbers, sums: Sums) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Whether the factors are fitted in this step, and the key of its noise."""
    waited = h.since + 1
    # A little less than 1, since 10 times 0.1 may be a little less than 1 in float32.
    due = as_float(waited) * h.preconditioner_update_probability >= 1 - 1e-6
    key, now = jax.random.split(h.key) if h.probe == "normal" else (h.key, None)
    return {"due": due, "now": now}, {"since": jnp.where(due, 0, waited), "key": key}


# ---------------------------------------------------------------- the rule


def _whitened(g: Array, s: PSGDKronState, p: None, h: Numbers) -> tuple[Array, PSGDKronState]:
    if not g.size:
        return g, s
    mu = remembered(s.mu, polar.bounded(g), h)
    m = momentum_of(mu, h, h.of_mu)
    # The step decides, not each matrix, so that this stays a conditional under `vmap`.
    left, right = jax.lax.cond(
        h.due,
        lambda left, right: fitted(m, left, right, h.preconditioner_lr, h.now),
        lambda left, right: (left, right),
        s.left,
        s.right,
    )
    u = into(into(m, left).mT, right).mT
    u = out_of(out_of(u, left).mT, right).mT
    size = polar.norm(u) / math.sqrt(u.size)
    return u / jnp.maximum(1.0, size / _LARGEST), s._replace(mu=mu, left=left, right=right)


# ---------------------------------------------------------------- the optimizer


@core.recorded
def psgd_kron(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Any = None,
    preconditioner_update_probability: Annotated[Hyper | None, Number("[0, 1]")] = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    decay: DecayKind = "learning_rate",
    max_size_triangular: int = 8192,
    memory_save_mode: MemorySaveMode = None,
    preconditioner_lr: Annotated[Hyper, Number("[0, 1)", r"\eta_Q")] = 0.1,
    preconditioner_init_scale: Annotated[float, Number("(0, inf)")] = 1.0,
    mu_dtype: Any = None,
    probe: Probe = "normal",
    key: Array | int = 0,
    axes: Any = None,
    fallback: Contract | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""PSGD-Kron: whitened momentum for the matrices, and Adam for all other leaves.

    .. math:: u = -\eta_t \left(P / \max(1, \mathrm{RMS}(P) / 1.1) + \lambda \theta\right),
              \qquad P = Q_L^\top Q_L \hat M Q_R^\top Q_R

    with the factors of `scale_by_psgd_kron`.

    Args:
      learning_rate: The authors begin with half of Adam's.
      weight_decay: how strongly the matrices are drawn to zero.
      preconditioner_update_probability: how often the factors are fitted; by default
        `precond_update_prob_schedule`.
      max_size_triangular: the longest side that has a triangular factor; a longer one has a
        diagonal.
      memory_save_mode: ``"one_diag"`` for a diagonal factor on the longer side, ``"all_diag"`` on
        both.
      preconditioner_lr: the step size of the factors.
      preconditioner_init_scale: the multiple of the identity that \(Q_L \otimes Q_R\) begins with.
      mu_dtype: the dtype to keep averages of gradients in, Adam's too.
      probe: ``"normal"`` draws noise, ``"expected"`` needs none (see `scale_by_psgd_kron`).
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      fallback: By default Adam with `learning_rate`, the betas (0.9, 0.999), eps 1e-8 and no weight
        decay.

    Raises:
      ValueError: a number out of range, an unknown mode; at `init`, axes that do not fit a leaf,
        with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.psgd_kron(0.1)
      >>> params = {"mlp": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": 9 * jnp.eye(2), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> float(jnp.sqrt(jnp.mean(updates["mlp"] ** 2)).round(4))
      0.11
      >>> updates["bias"]
      Array([-0.1, -0.1], dtype=float32)

    Reference: Li, *Preconditioned stochastic gradient descent*, https://arxiv.org/abs/1512.04202;
    https://github.com/evanatyourservice/psgd_jax, whose `kron` also takes vectors and tensors of
    more axes, with a factor for each.
    """
    rule = scale_by_psgd_kron(
        b1,
        preconditioner_update_probability,
        b3=b3,
        alpha=alpha,
        max_size_triangular=max_size_triangular,
        memory_save_mode=memory_save_mode,
        preconditioner_lr=preconditioner_lr,
        preconditioner_init_scale=preconditioner_init_scale,
        mu_dtype=mu_dtype,
        probe=probe,
        key=key,
        axes=or_by_name(axes),
        chunk=chunk,
        share=share,
    )
    return matrix_optimizer(
        "psgd_kron",
        rule,
        learning_rate,
        weight_decay,
        weight_decay_mask,
        decay,
        axes,
        fallback,
        mu_dtype=mu_dtype,
    )
