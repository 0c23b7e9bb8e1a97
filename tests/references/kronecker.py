"""Matrices with a factor for each of their sides. All other arrays have Adam.

An array with two axes is a matrix. Its left factor is that of the first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from references.classic import decoupled, scale_by_adam
from references.driver import Array, Arrays, Number, Rule, State, average, each, sq
from references.matrices import matrices_and_others, with_others


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
    b3: float | None = None,
    alpha: float = 5.0,
    shampoo_beta: float | None = None,
    bias_correction: bool = True,
    staggered: bool = False,
) -> Rule:
    """Vyas et al., ICLR 2025, arXiv:2409.11321, Alg. 3 and 4, with the first step left out.

    With b3 the slow average of Pagliardini et al. 2024, arXiv:2409.03137, Alg. 1, beside the other.

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
        if b3 is not None:
            m_hat = m_hat + alpha * _into(average(g, state, "slow", b3), *state["q"])
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


def soap(
    learning_rate: Number,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: Number = 0.01,
    *,
    fallback: Rule | None = None,
    **kwargs: Any,
) -> Rule:
    """Vyas et al., ICLR 2025, arXiv:2409.11321, with decoupled weight decay."""
    rule = scale_by_soap(b1, b2, eps, **kwargs)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback, betas=(0.95, 0.95))


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


def kl_shampoo(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: Number = 0.01,
    *,
    fallback: Rule | None = None,
    **kwargs: Any,
) -> Rule:
    """Lin et al., ICLR 2026, arXiv:2509.03378, with decoupled weight decay."""
    rule = scale_by_kl_shampoo(b1, b2, eps, **kwargs)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback, betas=(0.9, 0.98))


def kl_soap(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: Number = 0.01,
    *,
    fallback: Rule | None = None,
    **kwargs: Any,
) -> Rule:
    """Lin et al., ICLR 2026, arXiv:2509.03378, with decoupled weight decay."""
    rule = scale_by_kl_soap(b1, b2, eps, **kwargs)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback, betas=(0.9, 0.98))


def scale_by_splus(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 0.0,
    precondition_frequency: int = 100,
    max_precond_dim: int = 10000,
    *,
    staggered: bool = False,
) -> Rule:
    """Frans et al., 2025, arXiv:2506.07254, Alg. 1. `eps` softens the sign where it is tiny."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        q = state.setdefault("q", [np.eye(n) for n in g.shape])
        x = _into(average(g, state, "m", b1), *q)
        size = np.abs(x)
        soft = size + eps * size.max()
        u = _out_of(np.divide(x, soft, out=np.zeros_like(x), where=soft > 0), *q)
        average(g @ g.conj().T, state, "l", b2)
        average(g.conj().T @ g, state, "r", b2)
        if t % precondition_frequency == 0:
            for i, side in enumerate("lr"):
                if g.shape[i] <= max_precond_dim:
                    q[i] = _eigenvectors(state[side])
        return u

    return each(step)


def splus(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 0.0,
    weight_decay: float = 0.01,
    *,
    decay: str = "learning_rate",
    fallback: Rule | None = None,
    **kwargs: Any,
) -> Rule:
    """Frans et al., 2025, arXiv:2506.07254, with the learning rate 2η / (m + n) for a matrix."""
    rule = scale_by_splus(b1, b2, eps, **kwargs)

    def by_shape(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        made = []
        for u, p in zip(rule(gs, ps, t, state), ps, strict=True):
            rate = 2 * learning_rate / sum(p.shape)
            shrink = weight_decay * (rate if decay == "learning_rate" else 1.0)
            made.append(-rate * u - shrink * p)
        return made

    others = decoupled(scale_by_adam(), 0.001 * learning_rate, 0.0)
    return matrices_and_others(by_shape, others if fallback is None else fallback)
