"""Shampoo, block by block, with the size of another method's step."""

from __future__ import annotations

from typing import Any

import numpy as np

from references.driver import Array, Number, Rule, State, average, each, sq
from references.matrices import with_others


def _inverse_root(a: Array, exponent: float, eps: float) -> Array:
    values, vectors = np.linalg.eigh(a)
    values = values - min(values[0], 0.0) + eps
    return (vectors * values**-exponent) @ vectors.conj().T


def _accumulated(new: Array, state: State, key: str, b: float) -> Array:
    """An average; with b = 1 a sum."""
    state[key] = b * state.get(key, np.zeros_like(new)) + (1 - b if b < 1 else 1) * new
    return state[key]


def scale_by_shampoo(
    b1: float = 0.9,
    b2: float = 1.0,
    eps: float = 1e-12,
    *,
    block_size: int = 1024,
    precondition_frequency: int = 1,
    staggered: bool = False,
    graft: str = "adam",
    graft_b2: float = 0.999,
    graft_eps: float = 1e-10,
    exponent: float = 0.25,
    bias_correction: bool = True,
) -> Rule:
    """Shi et al., arXiv:2309.06497, Alg. 2 and 3, with the roots renewed from the first step on.

    `staggered` makes no difference to a matrix that is alone with its shape.
    """

    def correction(b: float, t: int) -> float:
        return 1 - b ** (t + 1) if bias_correction and b < 1 else 1.0

    def block(g: Array, t: int, state: State) -> Array:
        m = average(g, state, "m", b1) / correction(b1, t)
        left = _accumulated(g @ g.conj().T, state, "l", b2) / correction(b2, t)
        right = _accumulated(g.conj().T @ g, state, "r", b2) / correction(b2, t)
        if t % precondition_frequency == 0:
            state["roots"] = [_inverse_root(x, exponent, eps) for x in (left, right)]
        p = state["roots"][0] @ m @ state["roots"][1]
        if graft == "none":
            return p
        if graft == "sgd":
            a = m
        else:
            v = _accumulated(sq(g), state, "v", 1.0 if graft == "adagrad" else graft_b2)
            v = v / correction(graft_b2, t) if graft == "adam" else v
            a = m / (np.sqrt(v) + graft_eps)
        return p * np.linalg.norm(a) / np.linalg.norm(p)

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        made = np.empty_like(g)
        for i in range(0, g.shape[0], block_size):
            for j in range(0, g.shape[1], block_size):
                part = slice(i, i + block_size), slice(j, j + block_size)
                made[part] = block(g[part], t, state.setdefault((i, j), {}))
        return made

    return each(step)


def shampoo(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 1.0,
    eps: float = 1e-12,
    weight_decay: Number = 0.0,
    *,
    fallback: Rule | None = None,
    **kwargs: Any,
) -> Rule:
    """Shi et al., arXiv:2309.06497, with decoupled weight decay; vectors have Adam."""
    rule = scale_by_shampoo(b1, b2, eps, **kwargs)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback)
