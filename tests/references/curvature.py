"""Rules that look at the loss through its curvature or its singular vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from references.classic import decoupled, scale_by_adam
from references.driver import Array, Arrays, Number, Rule, State, average


def scale_by_sophia(
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    gamma: float = 0.01,
    clip_threshold: float | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: Rule | None = None,
) -> Rule:
    """Liu et al., ICLR 2024, arXiv:2305.14342, Alg. 3, with Optax's bias correction of m.

    As in Optax an estimate of the curvature counts from the step after it was made.
    """
    assert hessian_diagonal_fn is not None, "there is no loss here to differentiate twice"

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        us = []
        for i, g in enumerate(gs):
            m = average(g, state.setdefault(i, {}), "m", b1) / (1 - b1 ** (t + 1))
            u = m / np.maximum(gamma * state[i].get("h", np.zeros_like(g)), eps)
            us.append(u if clip_threshold is None else np.clip(u, -clip_threshold, clip_threshold))
        if t % update_interval == 0:
            estimate = hessian_diagonal_fn(gs, ps, t, state.setdefault("hessian", {}))
            for i, h in enumerate(estimate):
                average(h, state[i], "h", b2)
        return us

    return rule


def sophia(
    learning_rate: Number,
    *args: Any,
    weight_decay: Number = 1e-4,
    weight_decay_mask: Sequence[bool] | None = None,
    **kwargs: Any,
) -> Rule:
    """Liu et al., ICLR 2024, arXiv:2305.14342, with decoupled weight decay."""
    rule = scale_by_sophia(*args, **kwargs)
    return decoupled(rule, learning_rate, weight_decay, weight_decay_mask)


def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    base_optimizer: Rule | None = None,
    side: str = "longer",
) -> Rule:
    """Zhao et al., ICML 2024, arXiv:2403.03507, Alg. 2; in Optax the longer side is projected.

    A singular vector takes the phase that agrees best with the one in its place before.
    """
    base = scale_by_adam() if base_optimizer is None else base_optimizer

    def low(g: Array, t: int, state: State) -> Array:
        state["left"] = left = (g.shape[0] >= g.shape[1]) == (side == "longer")
        if t % update_proj_gap == 0:
            u, _, vh = np.linalg.svd(g)
            new = (u if left else vh.conj().T)[:, : min(rank, *g.shape)]
            phase = np.sum(state.get("p", new).conj() * new, axis=0)
            state["p"] = new * phase.conj() / np.abs(phase)
        return state["p"].conj().T @ g if left else g @ state["p"]

    def back(u: Array, state: State) -> Array:
        return scale * (state["p"] @ u if state["left"] else u @ state["p"].conj().T)

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        mine = [state.setdefault(i, {}) for i in range(len(gs))]
        pairs = list(zip(gs, mine, strict=True))
        seen = [low(g, t, s) if g.ndim == 2 else g for g, s in pairs]
        us = base(seen, ps, t, state.setdefault("base", {}))
        triples = zip(us, gs, mine, strict=True)
        return [back(u, s) if g.ndim == 2 else u for u, g, s in triples]

    return rule


def galore(
    learning_rate: Number,
    *args: Any,
    weight_decay: Number = 0.0,
    mask: Sequence[bool] | None = None,
    **kwargs: Any,
) -> Rule:
    """Zhao et al., ICML 2024, arXiv:2403.03507, with decoupled weight decay."""
    return decoupled(scale_by_galore(*args, **kwargs), learning_rate, weight_decay, mask)
