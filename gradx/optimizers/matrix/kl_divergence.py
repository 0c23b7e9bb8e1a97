"""What KL-Shampoo and KL-SOAP share: factors fitted to a matrix's gradients by KL divergence.

They fit a normal distribution whose covariance is a Kronecker product of one factor for each side.
The state has both factors, their eigenvalues, which change in every step, and their eigenvectors,
which change in some steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from gradx.core import Transform
from gradx.core.trees import abs_sq
from gradx.lift.averages import average
from gradx.lift.matrixwise import matrixwise
from gradx.lift.stages import LeafState, Numbers
from gradx.linalg.eigenbasis import (
    adjoint,
    first_basis,
    first_factors,
    into,
    orthogonal,
    power,
    times,
)
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper


def _first(p: Array, *, limit: int, value: Any) -> dict[str, Array]:
    rows, columns = (jnp.full(n, value, p.real.dtype) for n in p.shape)
    return {**first_factors(p, limit=limit), "row_values": rows, "column_values": columns}


def lifted(
    rule: Callable[[Array, LeafState, Any, Numbers], tuple[Array, LeafState]],
    state: Any,
    like_leaf: Mapping[str, Any],
    hypers: dict[str, Hyper],
    shampoo_beta: Hyper | None,
    precondition_frequency: int,
    max_precond_dim: int,
    init_factor: float,
    max_clamp_value: float,
    renew: Callable[[LeafState, Numbers], LeafState],
    **how: Any,
) -> Transform:
    """Lifts `rule`. `state` has the moments, named in `like_leaf`, and the fields of `_first`.

    `rule` must end with `gathered`, and `renew` must begin with `renewed`.
    """
    if shampoo_beta is not None:
        hypers["shampoo_beta"] = shampoo_beta
    first = partial(
        _first,
        limit=steps("max_precond_dim", max_precond_dim, 0),
        value=init_factor,
    )
    return matrixwise(
        rule,
        init=first,
        state=state,
        like_leaf=like_leaf,
        hypers=hypers,
        flags={"most": max_clamp_value},
        per_step=_of_the_step,
        start=_start,
        renew=renew,
        every=steps("precondition_frequency", precondition_frequency, 1),
        **how,
    )


def _of_the_step(h: Numbers, t: Array) -> Mapping[str, Any]:
    return {"begun": t > 1, "factor_decay": getattr(h, "shampoo_beta", h.b2)}


def gathered(g: Array, seen: Array, s: LeafState, h: Numbers) -> LeafState:
    """Averages a new gradient into factors and eigenvalues, weighted by the other side's values.

    In the first step the weights are 1.
    """
    left, right = s.row_factor, s.column_factor
    rows, columns = s.row_basis, s.column_basis
    high, wide = s.row_values, s.column_values
    (m, n), beta = g.shape, h.factor_decay
    by_high, by_wide = (jnp.where(h.begun, 1 / values, 1) for values in (high, wide))
    if left.size:
        half = into(g, rows[:0, :0], columns)
        left = average(left, times(half * (by_wide / n)[None], adjoint(half)), beta)
    if right.size:
        half = into(g, rows, columns[:0, :0])
        right = average(right, times(adjoint(half) * (by_high / m)[None], half), beta)
    square = abs_sq(seen)
    new_high = average(high, jnp.sum(square * by_wide[None], axis=1) / max(n, 1), beta)
    new_wide = average(wide, jnp.sum(square * by_high[:, None], axis=0) / max(m, 1), beta)
    new_high = jnp.maximum(new_high, 1 / jnp.maximum(10.0, jnp.minimum(m, h.most)) ** 2)
    new_wide = jnp.maximum(new_wide, 1 / jnp.maximum(10.0, jnp.minimum(n, h.most)) ** 2)
    high, wide = jnp.where(h.begun, new_high, high), jnp.where(h.begun, new_wide, wide)
    return s._replace(row_factor=left, column_factor=right, row_values=high, column_values=wide)


def _start(s: LeafState, h: Numbers) -> LeafState:
    return s._replace(
        row_basis=first_basis(s.row_factor), column_basis=first_basis(s.column_factor)
    )


def renewed(s: LeafState, h: Numbers) -> LeafState:
    """The bases after a step of the power method."""
    sides = (s.row_factor, s.row_basis), (s.column_factor, s.column_basis)
    rows, columns = (orthogonal(power(l, q), q, l) if l.size else q for l, q in sides)
    return s._replace(row_basis=rows, column_basis=columns)
