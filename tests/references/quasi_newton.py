"""Quasi-Newton methods, with the inverse Hessian as the matrix that the papers write."""

from __future__ import annotations

from typing import Any

import numpy as np

from references.classic import scale, scale_by_learning_rate
from references.driver import Array, Arrays, Number, Rule, State, chain


def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> Rule:
    """Liu & Nocedal, Math. Programming 45, 1989, eq. (2.1), on all arrays as one real vector.

    The matrix itself, not the two loops. Pairs without positive curvature are left out.
    """

    def step(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        g, p = _vector(gs), _vector(ps)
        memory = state.setdefault("memory", [])
        if t:
            s, y = p - state["p"], g - state["g"]
            memory.append((s, y) if s @ y > 0 else None)
            del memory[:-memory_size]
        state["p"], state["g"] = p, g
        pairs = [pair for pair in memory if pair is not None]
        identity = np.eye(g.size)
        inverse = identity
        if scale_init_precond:
            norm = np.linalg.norm(g)
            gamma = min(1.0, 1.0 / norm) if norm > 0 else 1.0
            if pairs:
                s, y = pairs[-1]
                gamma = (s @ y) / (y @ y)
            inverse = gamma * identity
        for s, y in pairs:
            rho = 1.0 / (s @ y)
            v = identity - rho * np.outer(y, s)
            inverse = v.T @ inverse @ v + rho * np.outer(s, s)
        return _arrays(inverse @ g, gs)

    return step


def lbfgs(
    learning_rate: Number | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: None = None,
) -> Rule:
    """Liu & Nocedal, Math. Programming 45, 1989, with steps of fixed size."""
    rate = scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)
    return chain(scale_by_lbfgs(memory_size, scale_init_precond), rate)


def _vector(xs: Arrays) -> Array:
    """All numbers after each other; of a complex one the real and the imaginary part."""
    parts: list[Any] = [part.ravel() for x in xs for part in (x.real, x.imag)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _arrays(vector: Array, like: Arrays) -> Arrays:
    made, begin = [], 0
    for x in like:
        real, imaginary = vector[begin : begin + 2 * x.size].reshape(2, *x.shape)
        made.append(real + 1j * imaginary if np.iscomplexobj(x) else real)
        begin += 2 * x.size
    return made
