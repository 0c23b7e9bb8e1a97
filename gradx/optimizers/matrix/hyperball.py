"""Steps on a sphere: every matrix keeps the norm that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.combinators.predicated import check_inner
from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.leafwise import leafwise
from gradx.lift.matrices import Matrix, check_paths, only_matrices
from gradx.lift.passes import widen
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.fallback import adam_for_others, or_by_name, with_fallback
from gradx.pieces.norms import quotient

__all__ = ["ScaleByHyperballState", "hyperball", "scale_by_hyperball"]


class ScaleByHyperballState(NamedTuple):
    """The state of `scale_by_hyperball`.

    Attributes:
      radius: the norm that each matrix keeps, real: (), or (count,) for a leaf that is a stack.
    """

    radius: Any


def _facts(
    leaves: gtree.Flat, extra: Mapping[str, Any] | None, *, choice: Any, where: str
) -> list[Mapping[str, Any] | None]:
    """The `Matrix` layout of each leaf; at `init` it also checks that each norm is positive."""
    if extra is None:
        check_paths(choice, leaves, where)
    layouts: list[Mapping[str, Any] | None] = []
    for p, m, path in zip(
        leaves.values, only_matrices(choice, leaves, where, "axes"), leaves.paths, strict=True
    ):
        radius: Any = None if m is None or extra is not None else _norms(widen(p), m)
        # A traced array or a shape has no value to check: then a matrix of zeros stays zero.
        concrete = radius is not None and not isinstance(radius, jax.core.Tracer) and p.size
        if concrete and not bool(jnp.all(radius > 0)):
            raise ValueError(
                f"{where}: the matrix at {path!r} begins at zero (or is not finite), and has no "
                f"norm to keep. Initialise it at random, or use axes to leave it to the fallback."
            )
        layouts.append(None if m is None else {"layout": m})
    return layouts


def _start(p: Array, known: Mapping[str, Any]) -> Mapping[str, Array]:
    layout: Matrix = known["layout"]
    return {"radius": layout.kept(_norms(p, layout))}


@core.recorded
def scale_by_hyperball(learning_rate: Hyper, axes: Any = None) -> Transform:
    r"""Turns updates into downhill steps that keep the norm of each matrix.

    .. math::
        W' &= W - \eta R\, U / \lVert U \rVert_F, \qquad R = \lVert W_0 \rVert_F \\
        u &= R\, W' / \lVert W' \rVert_F - W

    Put it at the end of a chain, in place of the learning rate and of weight decay. The size of the
    updates does not matter: \(\eta\) is the length of a step relative to the norm of the matrix.

    Args:
      axes: which leaves are matrices, and which axes are their rows and columns (see `hyperball`).
        Without it every leaf must have two axes; a stack of matrices has a norm for each.

    Raises:
      ValueError: at `init`, a matrix of zeros, or a leaf that is not a matrix, with its path;
        `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.scale_by_muon("exact"), gradx.scale_by_hyperball(0.75))
      >>> w = jnp.diag(jnp.array([3.0, 4.0]))
      >>> updates, state = tx.update(jnp.array([[0.0, 2.0], [0.0, 0.0]]), tx.init(w), w)
      >>> w + updates
      Array([[ 2.4, -3. ],
             [ 0. ,  3.2]], dtype=float32)

    Reference: Wen et al., *Fantastic pretraining optimizers and where to find them II: hyperball
    optimization*, https://arxiv.org/abs/2606.16899. The state has the radius, so that rounding
    errors (of parameters in bfloat16, say) do not add up. A matrix without an update stays where it
    is. If other parameters are loaded later, the next step brings them to the old norm.
    """
    return leafwise(
        _on_sphere,
        init=_start,
        state=ScaleByHyperballState,
        hypers={"learning_rate": learning_rate},
        facts=partial(_facts, choice=axes, where=core.where()),
        per_leaf=_lengths,
        needs_params=True,
    )


def _norms(x: Array, m: Matrix) -> Array:
    """The norm of each matrix of a leaf, (count,)."""
    if m.shape[0] == 1:  # a single matrix needs no reshape
        return sqrt(jnp.sum(abs_sq(x)))[None]
    return sqrt(jnp.sum(abs_sq(m.stack(x)), axis=(1, 2)))


def _spread(numbers: Array, m: Matrix, like: Array) -> Array:
    """One number for each matrix, at each of its elements."""
    if m.shape[0] == 1:
        return numbers[0]
    return m.unstack(jnp.broadcast_to(numbers[:, None, None], m.shape), like.shape)


def _lengths(g: Any, s: ScaleByHyperballState, p: Any, h: Numbers) -> Mapping[str, Array]:
    m = h.layout
    radius = m.opened(s.radius)
    step = h.learning_rate * quotient(radius, _norms(g, m))
    moved = p - _spread(step, m, g) * g
    length = _norms(moved, m)
    return {
        "grow": jnp.where(length > 0, quotient(radius, length) - 1, 0.0),
        "step": step * quotient(radius, length),
    }


def _on_sphere(
    g: Array, s: ScaleByHyperballState, p: Array, h: Numbers
) -> tuple[Array, ScaleByHyperballState]:
    return _spread(h.grow, h.layout, p) * p - _spread(h.step, h.layout, p) * g, s


@core.recorded
def hyperball(
    inner: Contract,
    learning_rate: Hyper,
    *,
    axes: Any = None,
    fallback: Contract | None = None,
) -> Transform:
    r"""Matrices move along any rule's updates and keep their norm; other leaves have Adam.

    .. math:: W \leftarrow R\, \frac{W'}{\lVert W' \rVert_F}, \qquad
              W' = W - \eta R\, \frac{T(G)}{\lVert T(G) \rVert_F}, \qquad
              R = \lVert W_0 \rVert_F

    with the steps of `scale_by_hyperball`. ``hyperball(scale_by_muon(), 0.01)`` is the authors'
    MuonH, ``hyperball(scale_by_adam(), 0.01)`` their AdamH.

    Args:
      inner: \(T\), a rule without learning rate and weight decay, whose updates go uphill, as those
        of every ``scale_by_…`` do. It sees the matrices only.
      learning_rate: the length of a step relative to the norm of the matrix.
      axes: By default `matrices_by_name`, which leaves out embeddings, heads, norms and biases. If
        they see a leaf otherwise than as one matrix with two axes, give `inner` the same `axes`.
      fallback: By default Adam with `learning_rate`.

    Raises:
      ValueError: `inner` is not a transformation, or has a learning rate, which turns its updates
        downhill; a number out of range; at `init`, a matrix of zeros, with its path; `update` is
        called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.hyperball(gradx.scale_by_adam(), 0.75)
      >>> params = {"mlp": jnp.array([[2.0, 0.0]]), "bias": jnp.zeros(1)}
      >>> grads = {"mlp": jnp.array([[0.0, 9.0]]), "bias": jnp.ones(1)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> params["mlp"] + updates["mlp"]
      Array([[ 1.6, -1.2]], dtype=float32)

    Reference: Wen et al., *Fantastic pretraining optimizers and where to find them II: hyperball
    optimization*, https://arxiv.org/abs/2606.16899.
    """
    check_inner(inner, core.where())
    if _has_rate(inner):
        raise ValueError(
            f"{core.where()}: inner must be a rule before its learning rate, whose updates go "
            f"uphill; got {core.show(inner)}. Give a scale_by_… or the like, and give the learning "
            f"rate to hyperball."
        )
    matrix = chain(inner, scale_by_hyperball(learning_rate, or_by_name(axes)))
    other = adam_for_others(learning_rate) if fallback is None else fallback
    return with_fallback("hyperball", matrix, "others", other, axes)


def _has_rate(tx: Any) -> bool:
    """Whether a transformation was made with a learning rate, as far as its spec shows."""
    spec = getattr(tx, "spec", None)
    arguments = dict(spec.arguments) if spec is not None else {}
    parts = jax.tree.leaves(list(arguments.values()), is_leaf=core.is_transform)
    return "learning_rate" in arguments or any(_has_rate(x) for x in parts)
