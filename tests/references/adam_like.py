"""Relatives of Adam: differences, delays, two memories, optimism; signs with their own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from references.classic import decoupled, scale_by_adam, scale_by_learning_rate
from references.driver import Array, Number, Rule, State, at, average, chain, each, sq

# Adan.


def scale_by_adan(
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    paper: bool = False,
) -> Rule:
    """Xie et al., arXiv:2208.06677, Alg. 1, with 1 − β for its β and corrected averages.

    There the differences weigh 1 − β₂, which is b2 here (`paper`); Optax takes 1 − b2.
    """
    weight = b2 if paper else 1 - b2

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        change = g - state.get("g", g)
        state["g"] = g
        m = average(g, state, "m", b1) / (1 - b1 ** (t + 1))
        v = average(change, state, "v", b2) / (1 - b2 ** (t + 1))
        n = average(sq(g + weight * change), state, "n", b3) / (1 - b3 ** (t + 1))
        return (m + weight * v) / (np.sqrt(n + eps_root) + eps)

    return each(step)


def adan(
    learning_rate: Number,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 1e-8,
    weight_decay: Number = 0.0,
    mask: Sequence[bool] | None = None,
    *,
    paper: bool = False,
    **decay: Any,
) -> Rule:
    """Xie et al., arXiv:2208.06677, with the decay of Loshchilov & Hutter 2019."""
    direction = scale_by_adan(b1, b2, b3, eps, eps_root, paper=paper)
    return decoupled(direction, learning_rate, weight_decay, mask, **decay)


# The second moment of the step before.


def scale_by_acprop(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-16, eps_root: float = 1e-16
) -> Rule:
    """Zhuang et al., NeurIPS 2021, arXiv:2110.05454, Alg. 2, but around the m of the step before.

    g − m_t is b1 (g − m_{t−1}), so the paper's s is b1² times as large, but for ε.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        before = state.get("m", np.zeros_like(g))
        s = state["s"] / (1 - b2**t) if t else np.ones(g.shape)
        state["s"] = average(sq(g - before), state, "s", b2) + eps_root
        average(g, state, "m", b1)
        return g / (np.sqrt(s) + eps)

    return each(step)


def acprop(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    weight_decay: Number = 0.0,
    mask: Sequence[bool] | None = None,
    **decay: Any,
) -> Rule:
    """Zhuang et al., NeurIPS 2021, arXiv:2110.05454."""
    direction = scale_by_acprop(b1, b2, eps, eps_root)
    return decoupled(direction, learning_rate, weight_decay, mask, **decay)


def fourth_root(count: float) -> float:
    """The bound of Taniguchi et al. 2024, §4."""
    return float(count**0.25)


def scale_by_adopt(
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[float], float] = fourth_root,
) -> Rule:
    """Taniguchi et al., NeurIPS 2024, arXiv:2411.02853, Alg. 2; a complex number by its modulus."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        if t == 0:
            state["m"], state["v"] = np.zeros_like(g), sq(g)
            return np.zeros_like(g)
        c = g / np.maximum(np.sqrt(state["v"]), eps)
        if use_clipping:
            most = clip_value_fn(float(t))
            c = c * np.minimum(1.0, most / np.maximum(np.abs(c), 1e-300))
        m = average(c, state, "m", b1)
        average(sq(g), state, "v", b2)
        return b1 * m + (1 - b1) * c if nesterov else m

    return each(step)


def adopt(learning_rate: Number, *args: Any, **kwargs: Any) -> Rule:
    """Taniguchi et al., NeurIPS 2024, arXiv:2411.02853."""
    return chain(scale_by_adopt(*args, **kwargs), scale_by_learning_rate(learning_rate))


# Two memories.


def scale_by_ademamix(
    b1: float = 0.9,
    b2: float = 0.999,
    b3: Number = 0.9999,
    alpha: Number = 6.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> Rule:
    """Pagliardini et al., arXiv:2409.03137, Alg. 1: the slow average is not corrected."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        fast = average(g, state, "fast", b1) / (1 - b1 ** (t + 1))
        slow = average(g, state, "slow", at(b3, t))
        v = average(sq(g), state, "v", b2) / (1 - b2 ** (t + 1))
        return (fast + at(alpha, t) * slow) / (np.sqrt(v + eps_root) + eps)

    return each(step)


def ademamix(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: Number = 0.9999,
    alpha: Number = 5.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: Number = 0.0,
    mask: Sequence[bool] | None = None,
    **decay: Any,
) -> Rule:
    """Pagliardini et al., arXiv:2409.03137."""
    direction = scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root)
    return decoupled(direction, learning_rate, weight_decay, mask, **decay)


def scale_by_simplified_ademamix(
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: Number = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> Rule:
    """Morwani et al., arXiv:2502.02431, Alg. 2: m is a sum, and is not corrected."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        state["m"] = b1 * state.get("m", 0.0) + g
        v = average(sq(g), state, "v", b2) / (1 - b2 ** (t + 1))
        return (state["m"] + at(alpha, t) * g) / (np.sqrt(v + eps_root) + eps)

    return each(step)


def simplified_ademamix(
    learning_rate: Number,
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: Number = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: Number = 0.0,
    mask: Sequence[bool] | None = None,
    **decay: Any,
) -> Rule:
    """Morwani et al., arXiv:2502.02431."""
    direction = scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root)
    return decoupled(direction, learning_rate, weight_decay, mask, **decay)


# Optimism.


def scale_by_optimistic_gradient(alpha: Number = 1.0, beta: Number = 1.0) -> Rule:
    """Mokhtari et al., AISTATS 2020, arXiv:1901.08511, eq. 11: the gradient before is the first."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        change = g - state.get("g", g)
        state["g"] = g
        return at(alpha, t) * g + at(beta, t) * change

    return each(step)


def optimistic_gradient_descent(
    learning_rate: Number, alpha: Number = 1.0, beta: Number = 1.0
) -> Rule:
    """Mokhtari et al., AISTATS 2020, arXiv:1901.08511."""
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


def optimistic_adam_v2(
    learning_rate: Number,
    *,
    alpha: Number = 1.0,
    beta: Number = 1.0,
    nesterov: bool = True,
    **kwargs: Any,
) -> Rule:
    """Daskalakis et al., ICLR 2018, arXiv:1711.00141, Alg. 1, where α = β = 1."""
    return chain(
        scale_by_adam(nesterov=nesterov, **kwargs),
        optimistic_gradient_descent(learning_rate, alpha, beta),
    )


def optimistic_adam(
    learning_rate: Number, optimism: Number | None = None, *, nesterov: bool = True, **kwargs: Any
) -> Rule:
    """The same, with a rate for the step and one for the change."""
    rate = learning_rate if optimism is None else optimism
    return optimistic_adam_v2(1.0, alpha=learning_rate, beta=rate, nesterov=nesterov, **kwargs)


# Signs.


def scale_by_rprop(
    learning_rate: float,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
) -> Rule:
    """iRprop⁻, Igel & Hüsken, Neurocomputing 2003, Alg. 2; a complex number is two numbers."""

    def real(g: Array, state: State) -> Array:
        size = state.get("size", np.full(g.shape, learning_rate))
        product = np.sign(g) * np.sign(state.get("g", np.zeros(g.shape)))
        grown = np.minimum(size * eta_plus, max_step_size)
        shrunk = np.maximum(size * eta_minus, min_step_size)
        size = np.where(product > 0, grown, np.where(product < 0, shrunk, size))
        g = np.where(product < 0, 0.0, g)
        state["size"], state["g"] = size, g
        return np.asarray(size * np.sign(g))

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        made = real(g.real, state.setdefault("real", {}))
        if not np.iscomplexobj(g):
            return made
        return made + 1j * real(g.imag, state.setdefault("imag", {}))

    return each(step)


def rprop(learning_rate: float, *args: Any, **kwargs: Any) -> Rule:
    """Riedmiller & Braun 1993, in the form of Igel & Hüsken 2003."""
    return chain(
        scale_by_rprop(learning_rate, *args, **kwargs), each(lambda g, p, t, state: -1.0 * g)
    )


# Pieces.


def noisy_sgd(
    learning_rate: Number, eta: float = 0.01, gamma: float = 0.55, key: Any = None
) -> Rule:
    """Neelakantan et al., arXiv:1511.06807, without noise: numbers that differ are no reference."""
    assert eta == 0, "noise has no reference"
    return scale_by_learning_rate(learning_rate)


def keep_params_nonnegative() -> Rule:
    """p + u ≥ 0."""
    return each(lambda g, p, t, state: np.maximum(g, -p))


def apply_every(k: int = 1) -> Rule:
    """The sum of k updates in every k-th step, 0 in the others."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        state["sum"] = g + (state["sum"] if t % k else 0.0)
        return np.asarray(state["sum"] if t % k == k - 1 else np.zeros_like(g))

    return each(step)
