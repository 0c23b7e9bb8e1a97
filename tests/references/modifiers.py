"""What changes the updates of any rule: caution, variance reduction, a sphere, bounded logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from references.classic import decoupled, scale_by_adam
from references.driver import Array, Arrays, Number, Rule, State, at, chain, each, sq
from references.matrices import matrices_and_others

# Caution.


def _product(x: Array, y: Array) -> Array:
    return (np.conj(x) * y).real


def cautious(inner: Rule, *, direction: str = "descent", min_share: float = 1e-3) -> Rule:
    """Liang et al., arXiv:2411.16085, Alg. 1, with the authors' factor."""
    turn = -1 if direction == "descent" else 1

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        kept = []
        for g, u in zip(gs, inner(gs, ps, t, state), strict=True):
            mask = _product(u, turn * g) > 0
            kept.append(u * mask / max(np.mean(mask), min_share))
        return kept

    return rule


def add_cautious_decay(
    weight_decay: Number = 0.0,
    mask: Sequence[bool] | None = None,
    *,
    flip_sign: bool = False,
) -> Rule:
    """Chen et al., arXiv:2510.12402, Alg. 1."""
    turn = -1 if flip_sign else 1

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        return g + turn * at(weight_decay, t) * p * (_product(turn * g, p) >= 0)

    return each(step)


# Variance reduction.


def correct_by_mars(b1: float = 0.95, gamma: float = 0.025, max_norm: float = 1.0) -> Rule:
    """Yuan et al., arXiv:2411.10438, Alg. 2, approximate; the gradient before the first is 0."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        c = g + gamma * b1 / (1 - b1) * (g - state.get("g", 0.0))
        state["g"] = g
        norm = np.sqrt(np.sum(sq(c)))
        return c * max_norm / norm if norm > max_norm else c

    return each(step)


def scale_by_mars(
    b1: float = 0.95,
    b2: float = 0.99,
    eps: float = 1e-8,
    gamma: float = 0.025,
    max_norm: float = 1.0,
) -> Rule:
    """Yuan et al., arXiv:2411.10438, Alg. 3."""
    return chain(correct_by_mars(b1, gamma, max_norm), scale_by_adam(b1, b2, eps))


def mars(
    learning_rate: Number,
    *args: float,
    weight_decay: Number = 0.0,
    mask: Sequence[bool] | None = None,
    decay: Any = "learning_rate",
    **kwargs: float,
) -> Rule:
    """Yuan et al., arXiv:2411.10438, Alg. 3."""
    direction = scale_by_mars(*args, **kwargs)
    return decoupled(direction, learning_rate, weight_decay, mask, decay=decay)


# A sphere.


def hyperball(inner: Rule, learning_rate: Number, *, fallback: Rule | None = None) -> Rule:
    """Wen et al., arXiv:2606.16899, Alg. 1; what has not two axes goes to Adam."""

    def normalized(x: Array) -> Array:
        return x / np.sqrt(np.sum(sq(x)))

    def on_spheres(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        radii = state.setdefault("radii", [np.sqrt(np.sum(sq(p))) for p in ps])
        us = inner(gs, ps, t, state.setdefault("inner", {}))
        rate = at(learning_rate, t)
        moved = [p - rate * r * normalized(u) for p, r, u in zip(ps, radii, us, strict=True)]
        return [r * normalized(w) - p for p, r, w in zip(ps, radii, moved, strict=True)]

    others = decoupled(scale_by_adam(), learning_rate, 0.0) if fallback is None else fallback
    return matrices_and_others(on_spheres, others)


# Bounded logits.


def qk_clip(threshold: Number = 100.0, heads: Any = None, max_logits: float = 4.0) -> Rule:
    """Kimi Team, arXiv:2507.20534, Alg. 1, where every leaf is a query of one head."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        return np.sqrt(min(1.0, at(threshold, t) / max_logits)) * (p + g) - p

    return each(step)
