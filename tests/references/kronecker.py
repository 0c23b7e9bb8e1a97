"""Matrices with a factor for each of their sides. All other arrays have Adam.

An array with two axes is a matrix. Its left factor is that of the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from references.classic import decoupled, scale_by_adam
from references.driver import Array, Arrays, Number, Rule, State, average, each, sq


def _for_matrices(matrices: Rule, others: Rule) -> Rule:
    """One rule for the arrays with two axes, another one for all else."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        made: dict[int, Array] = {}
        for name, part in (("matrices", matrices), ("others", others)):
            mine = [i for i, g in enumerate(gs) if (g.ndim == 2) == (name == "matrices")]
            us = part([gs[i] for i in mine], [ps[i] for i in mine], t, state.setdefault(name, {}))
            made |= dict(zip(mine, us, strict=True))
        return [made[i] for i in range(len(gs))]

    return rule


def _with_adam(
    direction: Rule,
    learning_rate: Number,
    weight_decay: Number,
    weight_decay_mask: Sequence[bool] | None,
    decay: str,
    adam_learning_rate: Number | None,
    adam: tuple[float, float, float],
    adam_weight_decay: Number,
) -> Rule:
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    return _for_matrices(
        decoupled(direction, learning_rate, weight_decay, weight_decay_mask, decay),
        decoupled(scale_by_adam(*adam), rate, adam_weight_decay, decay=decay),
    )


def _alias(
    direction: Callable[..., Rule],
    learning_rate: Number,
    b1: float,
    b2: float,
    adam_betas: tuple[float, float],
    eps: float = 1e-8,
    weight_decay: Number = 0.01,
    weight_decay_mask: Sequence[bool] | None = None,
    *,
    decay: str = "learning_rate",
    adam_learning_rate: Number | None = None,
    adam_b1: float | None = None,
    adam_b2: float | None = None,
    adam_eps: float = 1e-8,
    adam_weight_decay: Number = 0.0,
    **kwargs: Any,
) -> Rule:
    """Matrices go in this direction, with decoupled weight decay, and all else in Adam's."""
    adam_b1 = adam_betas[0] if adam_b1 is None else adam_b1
    adam_b2 = adam_betas[1] if adam_b2 is None else adam_b2
    return _with_adam(
        direction(b1, b2, eps, **kwargs),
        learning_rate,
        weight_decay,
        weight_decay_mask,
        decay,
        adam_learning_rate,
        (adam_b1, adam_b2, adam_eps),
        adam_weight_decay,
    )


def _eigenvectors(factor: Array) -> Array:
    """As columns, those of the largest eigenvalues first."""
    return np.linalg.eigh(factor)[1][:, ::-1]


def _into(x: Array, left: Array, right: Array) -> Array:
    return left.conj().T @ x @ right


def _out_of(x: Array, left: Array, right: Array) -> Array:
    return left @ x @ right.conj().T


def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    shampoo_beta: float | None = None,
    bias_correction: bool = True,
    staggered: bool = False,
) -> Rule:
    """Vyas et al., ICLR 2025, arXiv:2409.11321, Alg. 3 and 4, with the first step left out.

    The first moment is kept as it is, and seen in the basis of the day. `staggered` makes no
    difference to a matrix that is alone with its shape.
    """
    beta = b2 if shampoo_beta is None else shampoo_beta

    def gather(g: Array, state: State) -> None:
        average(g @ g.conj().T, state, "l", beta)
        average(g.conj().T @ g, state, "r", beta)

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        long = [length > max_precond_dim for length in g.shape]
        if t == 0:
            gather(g, state)
            state["q"] = [
                np.eye(n) if too_long else _eigenvectors(state[side])
                for side, n, too_long in zip("lr", g.shape, long, strict=True)
            ]
            return np.zeros_like(g)
        m_hat = _into(average(g, state, "m", b1), *state["q"])
        v_hat = average(sq(_into(g, *state["q"])), state, "v", b2)
        if bias_correction:
            m_hat, v_hat = m_hat / (1 - b1**t), v_hat / (1 - b2**t)
        u = _out_of(m_hat / (np.sqrt(v_hat) + eps), *state["q"])
        gather(g, state)
        if t % precondition_frequency == 0:
            for axis, side in enumerate("lr"):
                if not long[axis]:
                    factor, q = state[side], state["q"][axis]
                    order = np.argsort(-np.diag(q.conj().T @ factor @ q).real)
                    state["v"] = np.take(state["v"], order, axis)
                    state["q"][axis] = np.linalg.qr(factor @ q[:, order])[0]
        return u

    return each(step)


def soap(learning_rate: Number, b1: float = 0.95, b2: float = 0.95, **kwargs: Any) -> Rule:
    """Vyas et al., ICLR 2025, arXiv:2409.11321, with decoupled weight decay."""
    return _alias(scale_by_soap, learning_rate, b1, b2, (0.95, 0.95), **kwargs)


def _kl(
    direction: Callable[..., Array],
    shampoo_beta: float,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    init_factor: float = 0.1,
    max_clamp_value: float = 4000.0,
    staggered: bool = False,
) -> Rule:
    """Lin et al., ICLR 2026, arXiv:2509.03378: the covariance that fits, in eigenvectors.

    The eigenvalues of each side follow E diag(Qᴴ G S⁻¹ Gᴴ Q) for the other side's S.
    """
    beta = shampoo_beta

    def side(g: Array, state: State, here: int, weigh: bool) -> tuple[Array, Array]:
        """What a gradient adds to the factor of one side, and to its eigenvalues."""
        x = g if here == 0 else g.conj().T
        q, there = state["q"][here], state["q"][1 - here]
        inverse = there @ np.diag(1 / state["d"][1 - here]) @ there.conj().T
        new = x @ (inverse if weigh else np.eye(len(inverse))) @ x.conj().T / x.shape[1]
        return new, np.diag(q.conj().T @ new @ q).real

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        if t == 0:
            state["d"] = [np.full(n, init_factor) for n in g.shape]
            state["q"] = [np.eye(n) for n in g.shape]
        u = np.zeros_like(g) if t == 0 else direction(g, state)
        made = [side(g, state, here, t > 0) for here in range(2)]
        for here, (new, diagonal) in enumerate(made):
            n, q = g.shape[here], state["q"]
            factor = average(new, state, f"factor {here}", beta)
            if t == 0:
                q[here] = _eigenvectors(factor) if n <= max_precond_dim else q[here]
                continue
            least = max(10, min(n, max_clamp_value)) ** -2
            mixed = beta * state["d"][here] + (1 - beta) * diagonal
            state["d"][here] = np.maximum(mixed, least)
            if t % precondition_frequency == 0 and n <= max_precond_dim:
                q[here] = np.linalg.qr(factor @ q[here])[0]
        return u

    return each(step)


def scale_by_kl_shampoo(
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    *args: Any,
    shampoo_beta: float | None = None,
    **kwargs: Any,
) -> Rule:
    """Lin et al., ICLR 2026, arXiv:2509.03378, KL-Shampoo with the first step left out."""

    def direction(g: Array, state: State) -> Array:
        m = _into(average(g, state, "m", b1), *state["q"])
        root = np.sqrt(np.outer(*state["d"]))
        return _out_of(m / (root + eps), *state["q"])

    return _kl(direction, b2 if shampoo_beta is None else shampoo_beta, *args, **kwargs)


def scale_by_kl_soap(
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    *args: Any,
    shampoo_beta: float | None = None,
    **kwargs: Any,
) -> Rule:
    """Lin et al., ICLR 2026, arXiv:2509.03378, KL-SOAP with the first step left out.

    The first moment is kept as it is, and seen in the basis of the day.
    """

    def direction(g: Array, state: State) -> Array:
        m = _into(average(g, state, "m", b1), *state["q"])
        v = average(sq(_into(g, *state["q"])), state, "v", b2)
        return _out_of(m / (np.sqrt(v) + eps), *state["q"])

    return _kl(direction, b2 if shampoo_beta is None else shampoo_beta, *args, **kwargs)


def kl_shampoo(learning_rate: Number, b1: float = 0.9, b2: float = 0.98, **kwargs: Any) -> Rule:
    """Lin et al., ICLR 2026, arXiv:2509.03378, with decoupled weight decay."""
    return _alias(scale_by_kl_shampoo, learning_rate, b1, b2, (0.9, 0.98), **kwargs)


def kl_soap(learning_rate: Number, b1: float = 0.9, b2: float = 0.98, **kwargs: Any) -> Rule:
    """Lin et al., ICLR 2026, arXiv:2509.03378, with decoupled weight decay."""
    return _alias(scale_by_kl_soap, learning_rate, b1, b2, (0.9, 0.98), **kwargs)
