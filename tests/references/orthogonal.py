"""Matrices whose momentum is orthogonalised; all other arrays have Adam or a norm of their own.

An array with two axes is a matrix (inputs, outputs), the transpose of the papers' and of torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from references.classic import decoupled, scale_by_adam
from references.driver import Array, Number, Rule, State, average, each, sign, sq
from references.matrices import matrices_and_others, with_others

JORDAN = (3.4445, -4.7750, 2.0315)
YOU = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]

Coefficients = str | tuple[float, float, float]


def newton_schulz(x: Array, steps: Sequence[tuple[float, float, float]]) -> Array:
    """X ← aX + (bA + cA²)X with A = XXᴴ. Jordan 2024."""
    for a, b, c in steps:
        square = x @ x.conj().T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def polar(
    g: Array,
    ns_coeffs: Coefficients = JORDAN,
    ns_steps: int = 5,
    eps: float = 1e-8,
    preconditioning: str = "frobenius",
) -> Array:
    """U Vᴴ of G = U S Vᴴ, nearly; "exact" by singular values.

    "aol": Boissin et al. 2025, arXiv:2512.04632, §3; "schatten": Grishina et al. 2025,
    arXiv:2506.10935, §4.
    """
    if g.shape[0] > g.shape[1]:
        return polar(g.conj().T, ns_coeffs, ns_steps, eps, preconditioning).conj().T
    if ns_coeffs == "exact":
        u, s, vh = np.linalg.svd(g, full_matrices=False)
        return (u * (s > 1e-12 * s.max())) @ vh
    steps = [ns_coeffs] * ns_steps if isinstance(ns_coeffs, tuple) else YOU[-ns_steps:]
    square = g @ g.conj().T
    if preconditioning in ("frobenius", "spectral"):
        size = np.linalg.norm(g, ord="fro" if preconditioning == "frobenius" else 2) + eps
    elif preconditioning == "aol":
        size = np.sqrt(np.abs(square).sum(axis=1, keepdims=True))
    else:
        size = np.sqrt(np.linalg.norm(square))
    return newton_schulz(g / np.where(size > 0, size, 1.0), steps)


def averaged(g: Array, t: int, state: State, b: float, nesterov: bool, corrected: bool) -> Array:
    """The momentum, or what it will be after one more step like this one."""
    m = average(g, state, "m", b)
    now, then = (1 - b ** (t + 1), 1 - b ** (t + 2)) if corrected else (1.0, 1.0)
    return b * m / then + (1 - b) * g / now if nesterov else m / now


def by_shape(m: int, n: int, consistent_rms: float | None, convention: str) -> float:
    """Jordan 2024; Liu et al. 2025, arXiv:2502.16982, §2.2; Pethick et al. 2025, Table 3."""
    if consistent_rms is not None:
        return consistent_rms * np.sqrt(max(m, n))
    return {
        "keller": np.sqrt(max(1.0, n / m)),
        "moonlight": 0.2 * np.sqrt(max(m, n)),
        "spectral": np.sqrt(n / m),
        "none": 1.0,
    }[convention]


def muon(
    learning_rate: Number,
    ns_coeffs: Coefficients = JORDAN,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    b3: float | None = None,
    alpha: float = 5.0,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: float = 0.0,
    adam_learning_rate: Number | None = None,
    consistent_rms: float | None = None,
    adam_nesterov: bool = False,
    convention: str = "keller",
    bias_correction: bool = True,
) -> Rule:
    """Jordan 2024, with Optax's arguments and its correction of the average for its start.

    With b3 the slow average of Pagliardini et al. 2024, arXiv:2409.03137, beside it.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = averaged(g, t, state, beta, nesterov, bias_correction)
        if b3 is not None:
            m = m + alpha * average(g, state, "slow", b3)
        o = polar(m, ns_coeffs, ns_steps, eps, preconditioning)
        if adaptive:
            o = np.sum(m.conj() * o) * o
        return by_shape(*g.shape, consistent_rms, convention) * o

    adam = decoupled(
        scale_by_adam(adam_b1, adam_b2, eps, adam_eps_root, nesterov=adam_nesterov),
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_weight_decay,
    )
    return with_others(each(step), learning_rate, weight_decay, fallback=adam)


def normuon(
    learning_rate: Number,
    ns_coeffs: Coefficients = JORDAN,
    ns_steps: int = 5,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    *,
    nesterov: bool = False,
    consistent_rms: float | None = 0.2,
    convention: str = "spectral",
    preconditioning: str = "frobenius",
    fallback: Rule | None = None,
) -> Rule:
    """Li et al. 2025, arXiv:2510.05491, Alg. 1; without consistent_rms microsoft/dion's form."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = averaged(g, t, state, b1, nesterov, corrected=False)
        o = polar(m, ns_coeffs, ns_steps, eps, preconditioning)
        v = average(np.mean(sq(o), axis=0), state, "v", b2)
        balanced = o / (np.sqrt(v) + eps)
        if consistent_rms is not None:
            return consistent_rms * np.sqrt(g.size) / np.linalg.norm(balanced) * balanced
        kept = np.linalg.norm(o) / np.linalg.norm(balanced) * balanced
        return by_shape(*g.shape, None, convention) * kept

    rule = each(step)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback, betas=(0.9, 0.95))


def adamuon(
    learning_rate: Number,
    ns_coeffs: Coefficients = JORDAN,
    ns_steps: int = 5,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    *,
    nesterov: bool = True,
    consistent_rms: float = 0.2,
    preconditioning: str = "frobenius",
    fallback: Rule | None = None,
) -> Rule:
    """Si et al. 2025, arXiv:2507.11005, Alg. 1; nesterov as in Chongjie-Si/AdaMuon."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = averaged(g, t, state, b1, nesterov, corrected=False)
        o = polar(sign(m), ns_coeffs, ns_steps, eps, preconditioning)
        u = o / (np.sqrt(average(sq(o), state, "v", b2)) + eps)
        return consistent_rms * np.sqrt(g.size) / np.linalg.norm(u) * u

    rule = each(step)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback, betas=(0.9, 0.95))


def scion(
    learning_rate: Number,
    momentum: float = 0.1,
    ns_coeffs: Coefficients = JORDAN,
    ns_steps: int = 5,
    eps: float = 1e-8,
    mu_dtype: Any = None,
    *,
    radius: float = 50.0,
    unconstrained: bool = False,
    preconditioning: str = "frobenius",
) -> Rule:
    """Pethick et al. 2025, arXiv:2502.07529, Alg. 1 and 2, without a head."""

    def matrix(g: Array, p: Array, t: int, state: State) -> Array:
        o = polar(average(g, state, "m", 1 - momentum), ns_coeffs, ns_steps, eps, preconditioning)
        return radius * by_shape(*g.shape, None, "spectral") * o

    def vector(g: Array, p: Array, t: int, state: State) -> Array:
        m = average(g, state, "m", 1 - momentum)
        return radius * m / (np.sqrt(np.mean(sq(m))) + eps)

    direction = matrices_and_others(each(matrix), each(vector))
    return decoupled(direction, learning_rate, 0.0 if unconstrained else 1.0)
