"""Descent, signs, momentum, one second moment, two moments: the classical rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from references.driver import (
    Array,
    Arrays,
    Axes,
    Number,
    Rule,
    State,
    at,
    average,
    chain,
    each,
    sign,
    sq,
)

# Learning rate and weight decay.


def scale(step_size: float) -> Rule:
    """u ← c u."""
    return each(lambda g, p, t, state: step_size * g)


def scale_by_schedule(step_size_fn: Callable[[int], float]) -> Rule:
    """u ← c(t) u."""
    return each(lambda g, p, t, state: step_size_fn(t) * g)


def scale_by_learning_rate(learning_rate: Number, *, flip_sign: bool = True) -> Rule:
    """u ← −η u."""
    direction = -1.0 if flip_sign else 1.0
    return each(lambda g, p, t, state: direction * at(learning_rate, t) * g)


def add_decayed_weights(weight_decay: Number = 0.0, mask: Sequence[bool] | None = None) -> Rule:
    """u ← u + λ p where the mask says so. Hanson & Pratt, NeurIPS 1988."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        wanted = [True] * len(gs) if mask is None else mask
        decay = at(weight_decay, t)
        return [g + decay * p if m else g for g, p, m in zip(gs, ps, wanted, strict=True)]

    return rule


def decoupled(
    direction: Rule,
    learning_rate: Number,
    weight_decay: Number,
    mask: Sequence[bool] | None = None,
    decay: str = "learning_rate",
    peak: float | None = None,
) -> Rule:
    """Decay beside the step. Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101.

    `decay` says what λ is multiplied with: the learning rate η_t = α s_t as in PyTorch and Optax,
    the schedule s_t alone as in the paper's Algorithm 2 (`peak` is α), or nothing ("independent",
    Wortsman et al., arXiv:2309.14322).
    """

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        rate, wanted = at(learning_rate, t), [True] * len(gs) if mask is None else mask
        alpha = rate if peak is None else peak
        factor = {"learning_rate": rate, "schedule": rate / alpha, "independent": 1.0}[decay]
        shrink = factor * at(weight_decay, t)
        us = direction(gs, ps, t, state)
        return [-rate * u - shrink * p * m for u, p, m in zip(us, ps, wanted, strict=True)]

    return rule


# Gradients, cleaned, clipped and centred.


def zero_nans() -> Rule:
    """NaN → 0."""
    return each(lambda g, p, t, state: np.where(np.isnan(g), 0.0, g))


def clip(max_delta: float) -> Rule:
    """Each (real) element into [−δ, δ]. Mikolov, PhD thesis, Brno 2012."""
    return each(lambda g, p, t, state: np.minimum(np.maximum(g, -max_delta), max_delta))


def clip_by_block_rms(threshold: float) -> Rule:
    """u / max(1, RMS(u) / d), for each array. Shazeer & Stern, ICML 2018, arXiv:1804.04235, §6."""
    return each(lambda g, p, t, state: g / max(1.0, np.sqrt(np.mean(sq(g))) / threshold))


def clip_by_global_norm(max_norm: float) -> Rule:
    """All arrays as one vector, onto a ball. Pascanu et al., ICML 2013, arXiv:1211.5063, Alg. 1."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        norm = np.sqrt(sum(sq(g).sum() for g in gs))
        return [g * (max_norm / norm) if norm >= max_norm else g for g in gs]

    return rule


def zclip(threshold: float = 2.5, decay: float = 0.97, warmup: int = 25, eps: float = 1e-6) -> Rule:
    """Kumar et al. 2025, arXiv:2504.02507, Alg. 1: a norm with the z-score z gets that of z_max²/z.

    The mean and the variance of the first norms are the first averages.
    """

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        norm = float(np.sqrt(sum(sq(g).sum() for g in gs)))
        if t < warmup:
            first = state.setdefault("first", [])
            first.append(norm)
            state["mean"], state["var"] = np.mean(first), np.var(first)
            return gs
        mean, deviation = state["mean"], np.sqrt(state["var"])
        z = (norm - mean) / (deviation + eps)
        clipped = mean + deviation * threshold**2 / z if z > threshold else norm
        state["mean"] = mean = decay * mean + (1 - decay) * clipped
        state["var"] = decay * state["var"] + (1 - decay) * (clipped - mean) ** 2
        return [g * (clipped / norm) for g in gs]

    return rule


def adagc(
    ratio: float = 1.04, decay: float = 0.99, max_norm: float = 1.0, warmup: int = 100
) -> Rule:
    """Wang et al. 2025, arXiv:2502.11034, Alg. 1: by the norm of all, then each by its own."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        norms = [float(np.sqrt(sq(g).sum())) for g in gs]
        old = state.get("norms", [np.inf] * len(gs))
        if t < warmup:
            factors = [min(1.0, max_norm / float(np.sqrt(np.sum(np.square(norms)))))] * len(gs)
            state["norms"] = [min(x, f * n) for x, f, n in zip(old, factors, norms, strict=True)]
        else:
            factors = [min(1.0, ratio * x / n) for x, n in zip(old, norms, strict=True)]
            triples = zip(old, factors, norms, strict=True)
            state["norms"] = [decay * x + (1 - decay) * f * n for x, f, n in triples]
        return [f * g for f, g in zip(factors, gs, strict=True)]

    return rule


def adaptive_grad_clip(clipping: float, eps: float = 1e-3, axis: Axes | None = None) -> Rule:
    """‖g‖ ≤ λ max(‖p‖, ε), unit by unit. Brock et al., ICML 2021, arXiv:2102.06171, eq. 3."""

    def norm(x: Array) -> Array:
        # All axes but the outputs', in the layouts (in, out), (in, heads, out), (h, w, in, out)...
        usual = None if np.squeeze(x).ndim <= 1 else 0 if x.ndim <= 3 else tuple(range(x.ndim - 1))
        total = np.sum(sq(x), axis=usual if axis is None else axis, keepdims=True)
        return np.asarray(np.sqrt(total))

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        size, most = norm(g), clipping * np.maximum(norm(p), eps)
        return g * np.where(size < most, 1.0, most / np.maximum(size, 1e-6))

    return each(step)


def centralize() -> Rule:
    """Minus the mean over all axes but the first. Yong et al., ECCV 2020, arXiv:2004.01461, eq. 1.

    The first axis is that of the outputs in the paper (and in PyTorch), not in Flax.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        return g if g.ndim < 2 else g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)

    return each(step)


# Momentum.


def trace(decay: Number, nesterov: bool = False) -> Rule:
    """Heavy ball, Polyak 1964; Nesterov's form as in Sutskever et al., ICML 2013, §2."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        state["m"] = g + at(decay, t) * state.get("m", 0.0)
        return g + at(decay, t) * state["m"] if nesterov else state["m"]

    return each(step)


def grokfast(decay: float = 0.98, amplification: float = 2.0) -> Rule:
    """Lee et al., arXiv:2405.20233, Alg. 2, with the start of the authors' code."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        state.setdefault("slow", g)
        return g + amplification * average(g, state, "slow", decay)

    return each(step)


def ema(decay: float, debias: bool = True) -> Rule:
    """Exponential average; without bias as in Kingma & Ba, ICLR 2015, arXiv:1412.6980, §3."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = average(g, state, "m", decay)
        return m / (1 - decay ** (t + 1)) if debias else m

    return each(step)


def sgd(
    learning_rate: Number,
    momentum: Number | None = None,
    nesterov: bool = False,
    dampening: Number = 0.0,
) -> Rule:
    """Robbins & Monro 1951; momentum as in `trace`, on the gradient, before the learning rate.

    Dampening as torch.optim documents it: of every gradient but the first a share is left out.
    """
    rate = scale_by_learning_rate(learning_rate)
    if momentum is None:
        return rate

    def share(t: int) -> float:
        return 1 - at(dampening, t) if t else 1.0

    damped = each(lambda g, p, t, state: share(t) * g)
    return chain(damped, trace(momentum, nesterov), rate)


# Signs.


def scale_by_sign() -> Rule:
    """sign(g). Bernstein et al., ICML 2018, arXiv:1802.04434."""
    return each(lambda g, p, t, state: sign(g))


def sign_sgd(learning_rate: Number) -> Rule:
    """p ← p − η sign(g). Bernstein et al., ICML 2018, arXiv:1802.04434, Alg. 1."""
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def signum(learning_rate: Number, beta: float = 0.9) -> Rule:
    """The sign of the averaged gradient. Bernstein et al., ICML 2018, arXiv:1802.04434, Alg. 2."""
    return chain(ema(beta, debias=False), scale_by_sign(), scale_by_learning_rate(learning_rate))


def scale_by_lion(
    b1: float = 0.9, b2: float = 0.99, *, mode: str = "hard", smooth_beta: float = 1.0
) -> Rule:
    """Chen et al., NeurIPS 2023, arXiv:2302.06675, Alg. 2: b1 for the step, b2 for the state.

    `mode` replaces sign(c): "smooth" is tanh(β c), "refined" is c within [−1, 1] and sign beyond.
    """
    shapes: dict[str, Callable[[Array], Array]] = {
        "hard": sign,
        "smooth": lambda c: np.tanh(smooth_beta * c),
        "refined": lambda c: np.where(np.abs(c) < 1, c, sign(c)),
    }

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        c = b1 * state.get("m", np.zeros_like(g)) + (1 - b1) * g
        average(g, state, "m", b2)
        return shapes[mode](c)

    return each(step)


def lion(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: Number = 1e-3,
    mask: Sequence[bool] | None = None,
    **decay: Any,
) -> Rule:
    """Chen et al., NeurIPS 2023, arXiv:2302.06675, Alg. 2."""
    return decoupled(scale_by_lion(b1, b2), learning_rate, weight_decay, mask, **decay)


# One second moment.


def scale_by_rss(initial_accumulator_value: float = 0.1, eps: float = 1e-7) -> Rule:
    """Duchi et al., JMLR 2011, Fig. 1 (diagonal). ε is inside the root; nothing seen gives 0."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        total = state.get("G", np.full(g.shape, initial_accumulator_value)) + sq(g)
        state["G"] = total
        return np.where(total > 0, g / np.sqrt(np.where(total > 0, total + eps, 1.0)), 0.0)

    return each(step)


def adagrad(
    learning_rate: Number, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> Rule:
    """Duchi et al., JMLR 2011."""
    return chain(
        scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate)
    )


def _scale_by_spread(
    centered: bool, b: float, eps: float, start: float, eps_in_sqrt: bool, bias_correction: bool
) -> Rule:
    def step(g: Array, p: Array, t: int, state: State) -> Array:
        correction = 1 - b ** (t + 1) if bias_correction else 1.0
        spread = average(sq(g), state, "n", b, start) / correction
        if centered:
            spread = spread - sq(average(g, state, "g", b) / correction)
        return g / (np.sqrt(spread + eps) if eps_in_sqrt else np.sqrt(spread) + eps)

    return each(step)


def scale_by_rms(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Rule:
    """Tieleman & Hinton, Coursera lecture 6.5, 2012."""
    return _scale_by_spread(False, decay, eps, initial_scale, eps_in_sqrt, bias_correction)


def scale_by_stddev(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Rule:
    """Graves 2013, arXiv:1308.0850, eq. 38-40: the mean taken off the second moment."""
    return _scale_by_spread(True, decay, eps, initial_scale, eps_in_sqrt, bias_correction)


def rmsprop(
    learning_rate: Number,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Number | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Rule:
    """Graves 2013, arXiv:1308.0850, eq. 38-41: momentum gathers steps, learning rate included."""
    kind = scale_by_stddev if centered else scale_by_rms
    step = chain(
        kind(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
    )
    return step if momentum is None else chain(step, trace(momentum, nesterov))


def scale_by_adadelta(rho: float = 0.9, eps: float = 1e-6) -> Rule:
    """Zeiler 2012, arXiv:1212.5701, Alg. 1."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        moved = state.get("dx", np.zeros(g.shape))
        u = np.sqrt(moved + eps) / np.sqrt(average(sq(g), state, "g", rho) + eps) * g
        average(sq(u), state, "dx", rho)
        return u

    return each(step)


def adadelta(
    learning_rate: Number = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: Number = 0.0,
    weight_decay_mask: Sequence[bool] | None = None,
) -> Rule:
    """Zeiler 2012, arXiv:1212.5701, Alg. 1; the decay is added to the gradient."""
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )


# Two moments. `_first` is the part that they share.


def _first(g: Array, t: int, state: State, b1: float, nesterov: bool, start: float = 0.0) -> Array:
    """m̂, or Dozat's look ahead: the momentum of the next step with this step's gradient in it."""
    m = average(g, state, "m", b1, start)
    if not nesterov:
        return m / (1 - b1 ** (t + 1))
    return b1 * m / (1 - b1 ** (t + 2)) + (1 - b1) * g / (1 - b1 ** (t + 1))


def scale_by_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    nesterov: bool = False,
) -> Rule:
    """Kingma & Ba, ICLR 2015, arXiv:1412.6980, Alg. 1; nesterov: Dozat, ICLR workshop 2016, Alg. 2.

    Dozat's n̂ has one more factor b2, which nobody's implementation has.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = _first(g, t, state, b1, nesterov)
        v = average(sq(g), state, "v", b2) / (1 - b2 ** (t + 1))
        return m / (np.sqrt(v + eps_root) + eps)

    return each(step)


def adam(learning_rate: Number, *args: Any, **kwargs: Any) -> Rule:
    """Kingma & Ba, ICLR 2015, arXiv:1412.6980."""
    return chain(scale_by_adam(*args, **kwargs), scale_by_learning_rate(learning_rate))


def nadam(learning_rate: Number, *args: Any, **kwargs: Any) -> Rule:
    """Dozat, ICLR workshop 2016, with μ_t = b1 at every step."""
    return adam(learning_rate, *args, nesterov=True, **kwargs)


def adamw(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: Number = 1e-4,
    mask: Sequence[bool] | None = None,
    *,
    nesterov: bool = False,
    **decay: Any,
) -> Rule:
    """Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101, Alg. 2."""
    direction = scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)
    return decoupled(direction, learning_rate, weight_decay, mask, **decay)


def nadamw(learning_rate: Number, *args: Any, **kwargs: Any) -> Rule:
    """Dozat 2016 with the decay of Loshchilov & Hutter 2019."""
    return adamw(learning_rate, *args, nesterov=True, **kwargs)


def scale_by_amsgrad(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Rule:
    """Reddi et al., ICLR 2018, arXiv:1904.09237, Alg. 2, which corrects neither moment."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m, v = average(g, state, "m", b1), average(sq(g), state, "v", b2)
        m = m / (1 - b1 ** (t + 1)) if bias_correction_mu else m
        v = v / (1 - b2 ** (t + 1)) if bias_correction_nu else v
        state["max"] = np.maximum(state.get("max", 0.0), v)
        return m / (np.sqrt(state["max"] + eps_root) + eps)

    return each(step)


def amsgrad(learning_rate: Number, *args: Any, **kwargs: Any) -> Rule:
    """Reddi et al., ICLR 2018, arXiv:1904.09237."""
    return chain(scale_by_amsgrad(*args, **kwargs), scale_by_learning_rate(learning_rate))


def scale_by_adamax(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Kingma & Ba, ICLR 2015, arXiv:1412.6980, Alg. 2; ε keeps the maximum away from 0."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        state["u"] = np.maximum(b2 * state.get("u", 0.0), np.abs(g) + eps)
        return average(g, state, "m", b1) / (1 - b1 ** (t + 1)) / state["u"]

    return each(step)


def adamax(learning_rate: Number, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Kingma & Ba, ICLR 2015, arXiv:1412.6980, Alg. 2."""
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: Number,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Number = 1e-4,
    mask: Sequence[bool] | None = None,
    **decay: Any,
) -> Rule:
    """Kingma & Ba 2015, Alg. 2, with the decay of Loshchilov & Hutter 2019."""
    return decoupled(scale_by_adamax(b1, b2, eps), learning_rate, weight_decay, mask, **decay)


def scale_by_belief(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> Rule:
    """Zhuang et al., NeurIPS 2020, arXiv:2010.07468, Alg. 2: ε_root is added to the *stored* s."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = _first(g, t, state, b1, nesterov)
        state["s"] = average(sq(g - state["m"]), state, "s", b2) + eps_root
        return m / (np.sqrt(state["s"] / (1 - b2 ** (t + 1))) + eps)

    return each(step)


def adabelief(learning_rate: Number, *args: Any, **kwargs: Any) -> Rule:
    """Zhuang et al., NeurIPS 2020, arXiv:2010.07468."""
    return chain(scale_by_belief(*args, **kwargs), scale_by_learning_rate(learning_rate))


def scale_by_yogi(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
    initial_accumulator_value: float = 1e-6,
) -> Rule:
    """Zaheer et al., NeurIPS 2018, Alg. 2.

    As in Optax, and unlike the paper, both moments begin at the initial value and are corrected
    for a start at 0.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = _first(g, t, state, b1, False, initial_accumulator_value)
        v = state.get("v", np.full(g.shape, initial_accumulator_value))
        state["v"] = v - (1 - b2) * np.sign(v - sq(g)) * sq(g)
        return m / (np.sqrt(state["v"] / (1 - b2 ** (t + 1)) + eps_root) + eps)

    return each(step)


def yogi(learning_rate: Number, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-3) -> Rule:
    """Zaheer et al., NeurIPS 2018."""
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))


def scale_by_radam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> Rule:
    """Liu et al., ICLR 2020, arXiv:1908.03265, Alg. 2, where the threshold is ρ > 4."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        n = t + 1
        m = _first(g, t, state, b1, nesterov)
        v = average(sq(g), state, "v", b2) / (1 - b2**n)
        limit = 2 / (1 - b2) - 1
        length = limit - 2 * n * b2**n / (1 - b2**n)
        if length < threshold:
            return m
        r = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        return np.sqrt(r) * m / (np.sqrt(v + eps_root) + eps)

    return each(step)


def radam(learning_rate: Number, *args: Any, **kwargs: Any) -> Rule:
    """Liu et al., ICLR 2020, arXiv:1908.03265."""
    return chain(scale_by_radam(*args, **kwargs), scale_by_learning_rate(learning_rate))
