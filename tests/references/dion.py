"""Dion and Dion2: a part of a matrix's momentum, orthogonalised, and error feedback for the rest.

An array with two axes is a matrix (inputs, outputs), the transpose of the papers' and of torch's.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from references.driver import Array, Number, Rule, State, each
from references.matrices import with_others
from references.orthogonal import Coefficients, by_shape, newton_schulz, polar

EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def first_basis(length: int, rank: int, key: int) -> Array:
    """Any directions will do; these are those of the library."""
    return np.asarray(jax.random.normal(jax.random.key(key), (length, rank), "float32"), np.float64)


def dion(
    learning_rate: Number,
    rank_fraction: float = 1.0,
    b1: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    *,
    rank_multiple_of: int = 1,
    key: int = 0,
    consistent_rms: float | None = None,
    convention: str = "spectral",
    fallback: Rule | None = None,
) -> Rule:
    """Ahn et al. 2025, arXiv:2504.05295, Alg. 1, in the notation of a tall B = P Rᴴ."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        tall = (lambda x: x) if g.shape[0] > g.shape[1] else (lambda x: x.conj().T)
        longer, shorter = tall(g).shape
        rank = rank_multiple_of * math.ceil(rank_fraction * shorter / rank_multiple_of)
        b = state.get("m", np.zeros((longer, shorter))) + tall(g)
        q = state["q"] if "q" in state else first_basis(shorter, min(rank, shorter), key)
        left = np.linalg.qr(b @ q)[0]
        right = b.conj().T @ left
        length = np.linalg.norm(right, axis=0)
        state["m"] = b - (1 - b1) * left @ right.conj().T
        state["q"] = right / length
        o = left @ (right / (length + eps)).conj().T
        return by_shape(*g.shape, consistent_rms, convention) * tall(o)

    rule = each(step)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback, betas=(0.9, 0.95))


def dion2(
    learning_rate: Number,
    fraction: float = 0.25,
    ns_coeffs: Coefficients | None = None,
    ns_steps: int = 5,
    ef_decay: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    *,
    consistent_rms: float | None = None,
    convention: str = "spectral",
    preconditioning: str = "frobenius",
    fallback: Rule | None = None,
) -> Rule:
    """Ahn, Amsel & Langford 2025, arXiv:2512.16928, with the choice of the largest slices."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = state["m"] = state.get("m", 0.0) + g
        by_columns = g.shape[1] <= g.shape[0]
        slices = m.T if by_columns else m
        count = math.ceil(fraction * len(slices))
        chosen = np.argsort(-np.sum(np.abs(slices), axis=1), kind="stable")[:count]
        some, o = slices[chosen], np.zeros_like(slices)
        if ns_coeffs is None:
            size = 1.02 * (np.linalg.norm(some) + eps)
            o[chosen] = newton_schulz(some / (size if size > 0 else 1.0), EXPRESS)
        else:
            o[chosen] = polar(some, ns_coeffs, ns_steps, eps, preconditioning)
        kept = slices.copy()
        kept[chosen] *= ef_decay
        state["m"] = kept.T if by_columns else kept
        return by_shape(*g.shape, consistent_rms, convention) * (o.T if by_columns else o)

    rule = each(step)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback, betas=(0.9, 0.95))
