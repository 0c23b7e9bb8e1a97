"""Norms by leaf, layer-wise learning rates, second moments kept by rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from references.classic import (
    add_decayed_weights,
    clip_by_block_rms,
    ema,
    scale,
    scale_by_adam,
    scale_by_learning_rate,
    trace,
)
from references.driver import Array, Arrays, Number, Rule, State, at, average, chain, each, sq


def _norm(x: Array) -> float:
    return float(np.sqrt(np.sum(sq(x))))


# Norms.


def normalize() -> Rule:
    """g / ‖g‖, all arrays as one vector. Foret et al., ICLR 2021, arXiv:2010.01412, eq. 2."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        norm = np.sqrt(sum(sq(g).sum() for g in gs))
        return [g / norm for g in gs]

    return rule


def normalize_by_update_norm(scale_factor: float = 1.0, eps: float = 1e-6) -> Rule:
    """c g / (‖g‖ + ε), all arrays as one vector. Hazan et al., NeurIPS 2015, arXiv:1507.02030."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        norm = np.sqrt(sum(sq(g).sum() for g in gs))
        return [scale_factor * g / (norm + eps) for g in gs]

    return rule


def scale_by_param_block_norm(min_scale: float = 1e-3) -> Rule:
    """g max(‖p‖, c), array by array."""
    return each(lambda g, p, t, state: g * max(_norm(p), min_scale))


def scale_by_param_block_rms(min_scale: float = 1e-3) -> Rule:
    """g max(RMS(p), c). Shazeer & Stern, ICML 2018, arXiv:1804.04235, Alg. 4, step size."""
    return each(lambda g, p, t, state: g * max(_norm(p) / np.sqrt(p.size), min_scale))


def scale_by_trust_ratio(
    min_norm: float = 0.0, trust_coefficient: float = 1.0, eps: float = 0.0
) -> Rule:
    """You et al. 2017, arXiv:1708.03888, eq. 4; norms that are 0 leave the update as it is."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        of_p, of_g = max(_norm(p), min_norm), max(_norm(g), min_norm)
        return g * (trust_coefficient * of_p / (of_g + eps)) if of_p and of_g else g

    return each(step)


# Layer-wise learning rates.


def _where(rule: Rule, mask: bool | Sequence[bool]) -> Rule:
    """The rule on some arrays; the others pass. (For rules that see one array at a time.)"""

    def chosen(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        wanted = [mask] * len(gs) if isinstance(mask, bool) else mask
        return [n if m else g for n, g, m in zip(rule(gs, ps, t, state), gs, wanted, strict=True)]

    return chosen


def lars(
    learning_rate: Number,
    weight_decay: float = 0.0,
    weight_decay_mask: bool | Sequence[bool] = True,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    trust_ratio_mask: bool | Sequence[bool] = True,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> Rule:
    """You et al. 2017, arXiv:1708.03888, Alg. 1, with ‖g + λp‖ for its ‖g‖ + λ‖p‖."""
    return chain(
        _where(add_decayed_weights(weight_decay), weight_decay_mask),
        _where(scale_by_trust_ratio(0.0, trust_coefficient, eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


def lamb(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mask: Sequence[bool] | None = None,
) -> Rule:
    """You et al., ICLR 2020, arXiv:1904.00962, Alg. 2 with φ(x) = x."""
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


def fromage(learning_rate: Number, min_norm: float = 1e-6) -> Rule:
    """Bernstein et al., NeurIPS 2020, arXiv:2002.03432, Alg. 1."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        rate = at(learning_rate, t)
        relative = max(_norm(p), min_norm) / max(_norm(g), min_norm)
        return (p - rate * relative * g) / np.sqrt(1 + rate**2) - p

    return each(step)


def scale_by_novograd(
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Rule:
    """Ginsburg et al. 2019, arXiv:1905.11286, Alg. 1: v_1 = ‖g_1‖², m_1 = g_1/√v_1 + d w_1."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        new = np.sum(sq(g))
        state["v"] = new if t == 0 else b2 * state["v"] + (1 - b2) * new
        direction = g / (np.sqrt(state["v"] + eps_root) + eps) + weight_decay * p
        state["m"] = direction if t == 0 else b1 * state["m"] + direction
        return state["m"]

    return each(step)


def novograd(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Rule:
    """Ginsburg et al. 2019, arXiv:1905.11286, Alg. 1."""
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay),
        scale_by_learning_rate(learning_rate),
    )


# Second moments by rows and columns.


def _power(count: int, exponent: float) -> float:
    return 1 - (count + 1) ** -exponent


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: float = 1e-30,
    decay_rate_fn: Callable[[int, float], float] = _power,
) -> Rule:
    """Shazeer & Stern, ICML 2018, arXiv:1804.04235, Alg. 4 with the decay of §7.2.

    Of more than two axes the two longest are factored, and the others are batches.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        b = decay_rate_fn(max(t - step_offset, 0), decay_rate)
        axes = sorted(range(g.ndim), key=lambda axis: g.shape[axis])[-2:]
        if not factored or g.ndim < 2 or g.shape[axes[0]] < min_dim_size_to_factor:
            return g / np.sqrt(average(sq(g) + epsilon, state, "v", b))
        short, long = axes
        r = average(np.mean(sq(g) + epsilon, axis=long, keepdims=True), state, "r", b)
        c = average(np.mean(sq(g) + epsilon, axis=short, keepdims=True), state, "c", b)
        return g / np.sqrt(r * c / np.mean(r, axis=short, keepdims=True))

    return each(step)


def adafactor(
    learning_rate: Number | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    dtype_momentum: Any = None,
    weight_decay_rate: float | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: Sequence[bool] | None = None,
) -> Rule:
    """Shazeer & Stern, ICML 2018, arXiv:1804.04235, Alg. 4 and 5."""
    parts = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        parts.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        parts.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(scale_by_param_block_rms())
    if momentum is not None:
        parts.append(ema(momentum, debias=False))
    if weight_decay_rate is not None:
        parts.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*parts, scale(-1.0))


def scale_by_sm3(b1: float = 0.9, b2: float = 1.0, eps: float = 1e-8) -> Rule:
    """Anil et al., NeurIPS 2019, arXiv:1901.11150, Alg. SM3-II; the cover is that of all slices.

    b2 < 1 averages the squares instead of adding them up. ε is inside the root; 0/0 is 0.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        new = 1.0 if b2 == 1.0 else 1 - b2
        others = [tuple(a for a in range(g.ndim) if a != axis) for axis in range(g.ndim)] or [()]
        covers = state.setdefault("mu", [np.zeros(()) for _ in others])
        v = new * sq(g) + b2 * reduce(np.minimum, covers)
        state["mu"] = [np.max(v, axis=axes, keepdims=True) for axes in others]
        u = np.where(v > 0, g / np.sqrt(np.where(v > 0, v + eps, 1.0)), 0.0)
        return average(u, state, "m", b1)

    return each(step)


def sm3(learning_rate: Number, momentum: float = 0.9) -> Rule:
    """Anil et al., NeurIPS 2019, arXiv:1901.11150, Alg. SM3-II."""
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
