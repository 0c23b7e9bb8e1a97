"""Rules that find their own step size: from distances, from the loss, from bets."""

from __future__ import annotations

from typing import Any

import numpy as np

from references.classic import add_decayed_weights, scale_by_learning_rate
from references.driver import (
    Array,
    Arrays,
    Number,
    Rule,
    State,
    at,
    chain,
    each,
    sq,
)


def _dot(xs: Arrays, ys: Arrays) -> float:
    """The inner product of two trees as real vectors."""
    return sum(float(np.sum((np.conj(x) * y).real)) for x, y in zip(xs, ys, strict=True))


def _norm(xs: Arrays) -> float:
    return float(np.sqrt(_dot(xs, xs)))


def _minus(xs: Arrays, ys: Arrays) -> Arrays:
    return [x - y for x, y in zip(xs, ys, strict=True)]


# Distance over gradients.


def scale_by_dog(init_step: tuple[str, float], eps: float = 1e-8) -> Rule:
    """Ivgi et al., ICML 2023, arXiv:2302.12022, eq. 3 and section 4.1."""
    kind, value = init_step

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            first = {"distance": value, "heuristic": value * (1 + _norm(ps)), "learning_rate": 0.0}
            state.update(p0=ps, r=first[kind], G=0.0)
        state["r"] = max(state["r"], _norm(_minus(ps, state["p0"])))
        state["G"] += _dot(gs, gs)
        rate = state["r"] / np.sqrt(state["G"] + eps)
        if kind == "learning_rate" and t == 0:
            rate = value
        return [rate * g for g in gs]

    return rule


def dog(
    learning_rate: Number = 1.0,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: float = 1e-8,
    weight_decay: Number | None = None,
) -> Rule:
    """Ivgi et al., ICML 2023, arXiv:2302.12022."""
    decay = add_decayed_weights(0.0 if weight_decay is None else weight_decay)
    return chain(decay, scale_by_dog(init_step, eps), scale_by_learning_rate(learning_rate))


def scale_by_distance_over_gradients(
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
    param_dtype: Any = np.float32,
    global_scale: float = 1.0,
) -> Rule:
    """L-DoG: Ivgi et al., ICML 2023, arXiv:2302.12022, section 3.3: each array by itself."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        if t == 0:
            kept = np.result_type(param_dtype, np.complex64 if np.iscomplexobj(p) else param_dtype)
            state.update(p0=p.astype(kept), r=reps_rel * (1 + _norm([p])), G=0.0)
        state["r"] = max(state["r"], _norm([p - state["p0"]]))
        state["G"] += _dot([g], [g])
        return global_scale * state["r"] / np.sqrt(state["G"] + eps) * g

    return each(step)


def scale_by_dowg(init_estim_sq_dist: float | None = None, eps: float = 1e-4) -> Rule:
    """Khaled et al., NeurIPS 2023, arXiv:2305.16284, Alg. 1; eps keeps the root from 0."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            first = eps if init_estim_sq_dist is None else init_estim_sq_dist
            state.update(p0=ps, r2=first, v=0.0)
        away = _minus(ps, state["p0"])
        state["r2"] = max(state["r2"], _dot(away, away))
        state["v"] += state["r2"] * _dot(gs, gs)
        return [state["r2"] / (np.sqrt(state["v"]) + eps) * g for g in gs]

    return rule


def dowg(
    learning_rate: Number = 1.0,
    init_estim_sq_dist: float | None = None,
    eps: float = 1e-4,
    weight_decay: Number | None = None,
) -> Rule:
    """Khaled et al., NeurIPS 2023, arXiv:2305.16284."""
    decay = add_decayed_weights(0.0 if weight_decay is None else weight_decay)
    return chain(
        decay, scale_by_dowg(init_estim_sq_dist, eps), scale_by_learning_rate(learning_rate)
    )


# D-Adaptation.


def dadapt_adamw(
    learning_rate: Number = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    weight_decay: Number = 0.0,
) -> Rule:
    """Defazio & Mishchenko, ICML 2023, arXiv:2301.07733, Alg. 5, with bias corrections.

    The inner product weighs with the second moment before this gradient, as the authors' code does.
    """
    b1, b2 = betas
    b = np.sqrt(b2)

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            zeros = [np.zeros_like(g) for g in gs]
            state.update(m=zeros, v=[z.real for z in zeros], s=zeros, d=estim_lr0, r=0.0)
        correction = np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
        lr = state["d"] * at(learning_rate, t) * correction
        weighted = [s / (np.sqrt(v) + eps) for s, v in zip(state["s"], state["v"], strict=True)]
        state["r"] = b * state["r"] + (1 - b) * lr * _dot(gs, weighted)
        state["m"] = [b1 * m + (1 - b1) * lr * g for m, g in zip(state["m"], gs, strict=True)]
        state["v"] = [b2 * v + (1 - b2) * sq(g) for v, g in zip(state["v"], gs, strict=True)]
        state["s"] = [b * s + (1 - b) * lr * g for s, g in zip(state["s"], gs, strict=True)]
        size = sum(np.abs(s).sum() for s in state["s"])
        if size > 0:
            state["d"] = max(state["d"], state["r"] / ((1 - b) * size))
        decay = lr * at(weight_decay, t)
        return [
            -m / (np.sqrt(v) + eps) - decay * p
            for m, v, p in zip(state["m"], state["v"], ps, strict=True)
        ]

    return rule


def prodigy(
    learning_rate: Number = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    weight_decay: Number = 0.0,
    safeguard_warmup: bool = False,
) -> Rule:
    """Mishchenko & Defazio, ICML 2024, arXiv:2306.06101, Alg. 4, with bias corrections."""
    b1, b2 = betas
    b3 = np.sqrt(b2) if beta3 is None else beta3

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            zeros = [np.zeros_like(g) for g in gs]
            state.update(m=zeros, v=[z.real for z in zeros], s=zeros, d=estim_lr0, r=0.0, p0=ps)
        correction = np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
        d = state["d"]
        lr = d * at(learning_rate, t) * correction
        state["r"] = b3 * state["r"] + d / estim_lr0 * lr * _dot(gs, _minus(state["p0"], ps))
        weight = d / estim_lr0 * (d if safeguard_warmup else lr)
        state["s"] = [b3 * s + weight * g for s, g in zip(state["s"], gs, strict=True)]
        state["m"] = [b1 * m + (1 - b1) * d * g for m, g in zip(state["m"], gs, strict=True)]
        state["v"] = [b2 * v + (1 - b2) * sq(d * g) for v, g in zip(state["v"], gs, strict=True)]
        size = sum(np.abs(s).sum() for s in state["s"])
        if size > 0:
            state["d"] = max(d, estim_lr_coef * state["r"] / size)
        decay = lr * at(weight_decay, t)
        return [
            -lr * m / (np.sqrt(v) + state["d"] * eps) - decay * p
            for m, v, p in zip(state["m"], state["v"], ps, strict=True)
        ]

    return rule


# The value of the loss.


def scale_by_polyak(
    f_min: float = 0.0,
    max_learning_rate: float = 1.0,
    eps: float = 0.0,
    variant: str = "sps",
    *,
    value: float,
) -> Rule:
    """Loizou et al., AISTATS 2021, arXiv:2002.10542, eq. 6; "sps+": arXiv:2307.14528."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        gap = value - f_min
        gap = max(gap, 0.0) if variant == "sps+" else gap
        rate = min(gap / (_dot(gs, gs) + eps), max_learning_rate)
        return [rate * g for g in gs]

    return rule


def polyak_sgd(
    max_learning_rate: float = 1.0,
    scaling: Number = 1.0,
    f_min: float = 0.0,
    eps: float = 0.0,
    variant: str = "sps",
    *,
    value: float,
) -> Rule:
    """Loizou et al., AISTATS 2021, arXiv:2002.10542."""
    step = scale_by_polyak(f_min, max_learning_rate, eps, variant, value=value)
    return chain(step, scale_by_learning_rate(scaling))


def momo(
    learning_rate: Number = 1.0,
    beta: float = 0.9,
    lower_bound: float = 0.0,
    weight_decay: Number = 0.0,
    adapt_lower_bound: bool = False,
    *,
    value: float,
) -> Rule:
    """Schaipp et al., ICML 2024, arXiv:2305.07583, Alg. 1; the first average is the first value."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            state.update(d=gs, f=value, gamma=_dot(gs, ps), low=lower_bound)
        else:
            state["d"] = [beta * d + (1 - beta) * g for d, g in zip(state["d"], gs, strict=True)]
            state["f"] = beta * state["f"] + (1 - beta) * value
            state["gamma"] = beta * state["gamma"] + (1 - beta) * _dot(gs, ps)
        rate = at(learning_rate, t)
        more = 1 + rate * at(weight_decay, t)
        height, size, low = _dot(state["d"], ps), _dot(state["d"], state["d"]), state["low"]
        if adapt_lower_bound:
            cap = more * (state["f"] - state["gamma"]) + height
            low = max(cap / (2 * more), lower_bound) if cap < more * low else low
        gap = max(more * (state["f"] - low - state["gamma"]) + height, 0.0)
        tau = min(rate, gap / size)
        if adapt_lower_bound:
            model = state["f"] + height - state["gamma"] - tau * size / 2
            state["low"] = max(model, lower_bound)
        shrink = 1 - 1 / more
        return [-tau * d - shrink * p for d, p in zip(state["d"], ps, strict=True)]

    return rule


def momo_adam(
    learning_rate: Number = 1e-2,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    lower_bound: float = 0.0,
    weight_decay: Number = 0.0,
    adapt_lower_bound: bool = False,
    *,
    value: float,
) -> Rule:
    """Schaipp et al., ICML 2024, arXiv:2305.07583, Alg. 2."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            zeros = [np.zeros_like(g) for g in gs]
            state.update(d=zeros, v=[z.real for z in zeros], f=0.0, gamma=0.0, low=lower_bound)
        rho = 1 - b1 ** (t + 1)
        state["d"] = [b1 * d + (1 - b1) * g for d, g in zip(state["d"], gs, strict=True)]
        state["v"] = [b2 * v + (1 - b2) * sq(g) for v, g in zip(state["v"], gs, strict=True)]
        state["f"] = b1 * state["f"] + (1 - b1) * value
        state["gamma"] = b1 * state["gamma"] + (1 - b1) * _dot(gs, ps)
        rate = at(learning_rate, t)
        more = 1 + rate * at(weight_decay, t)
        scale = [eps + np.sqrt(v / (1 - b2 ** (t + 1))) for v in state["v"]]
        step = [d / s for d, s in zip(state["d"], scale, strict=True)]
        height, size, low = _dot(state["d"], ps), _dot(state["d"], step), state["low"]
        if adapt_lower_bound:
            cap = more * (state["f"] - state["gamma"]) + height
            low = max(cap / (2 * rho * more), lower_bound) if cap < more * rho * low else low
        gap = max(more * (state["f"] - rho * low - state["gamma"]) + height, 0.0)
        tau = min(rate / rho, gap / size)
        if adapt_lower_bound:
            model = (state["f"] + height - state["gamma"] - tau * size / 2) / rho
            state["low"] = max(model, lower_bound)
        shrink = 1 - 1 / more
        return [-tau * s - shrink * p for s, p in zip(step, ps, strict=True)]

    return rule


# Sums from the start.


def scale_by_madgrad(learning_rate: Number, momentum: float = 0.9, eps: float = 1e-6) -> Rule:
    """Defazio & Jelassi, JMLR 2022, arXiv:2101.11075, Alg. 1, c = 1 − momentum.

    ε is added to the learning rate too, as in the authors' code.
    """

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        rate = (at(learning_rate, t) + eps) * np.sqrt(t + 1)
        start = state.setdefault("p0", p)
        state["s"] = state.get("s", 0.0) + rate * g
        state["v"] = state.get("v", 0.0) + rate * sq(g)
        z = start - state["s"] / (np.cbrt(state["v"]) + eps)
        return (1 - momentum) * z + momentum * p - p

    return each(step)


def madgrad(
    learning_rate: Number, momentum: float = 0.9, weight_decay: Number = 0.0, eps: float = 1e-6
) -> Rule:
    """Defazio & Jelassi, JMLR 2022, arXiv:2101.11075."""
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))


def scale_by_cocob(alpha: float = 100.0, eps: float = 1e-8) -> Rule:
    """Orabona & Tommasi, NeurIPS 2017, arXiv:1705.07795, Alg. 2."""

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        zero, w1 = np.zeros(g.shape), state.setdefault("w1", p)
        state["L"] = np.maximum(state.get("L", zero + eps), np.abs(g))
        state["G"] = state.get("G", zero) + np.abs(g)
        state["R"] = np.maximum(state.get("R", zero) - (np.conj(g) * (p - w1)).real, 0.0)
        state["theta"] = state.get("theta", zero) - g
        room = state["L"] * np.maximum(state["G"] + state["L"], alpha * state["L"])
        return w1 + state["theta"] / room * (state["L"] + state["R"]) - p

    return each(step)


def cocob(
    learning_rate: Number = 1.0,
    alpha: float = 100.0,
    eps: float = 1e-8,
    weight_decay: Number = 0.0,
) -> Rule:
    """Orabona & Tommasi, NeurIPS 2017, arXiv:1705.07795."""
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )


# Around another rule.


def mechanize(
    base_optimizer: Rule,
    weight_decay: float = 1e-2,
    eps: float = 1e-8,
    s_init: float = 1e-6,
    num_betas: int = 6,
) -> Rule:
    """Cutkosky et al., NeurIPS 2023, arXiv:2306.00144, Alg. 1, with the authors' later clipping."""
    betas = 1 - 0.1 ** np.arange(1, num_betas + 1)

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            zero = np.zeros(num_betas)
            state.update(p0=ps, s=zero + s_init, r=zero, m=zero, v=zero)
        us = base_optimizer(gs, ps, t, state.setdefault("base", {}))
        total = state["s"].sum()
        delta = [(p - p0) / (total + eps) for p, p0 in zip(ps, state["p0"], strict=True)]
        decay = weight_decay * total * _norm(gs) / (_norm(ps) + eps)
        h = -_dot([g + decay * p for g, p in zip(gs, ps, strict=True)], delta)
        clipped = np.clip(h, -state["m"], state["m"])
        state["m"] = np.maximum(betas * state["m"], abs(h) + eps)
        state["v"] = betas**2 * state["v"] + h**2
        state["r"] = betas * state["r"] + clipped * state["s"]
        wealth = s_init / num_betas * state["m"] + np.maximum(state["r"], 0.0)
        state["s"] = wealth / (np.sqrt(state["v"]) + eps)
        goals = [
            p0 + state["s"].sum() * (d + u) for p0, d, u in zip(state["p0"], delta, us, strict=True)
        ]
        return _minus(goals, ps)

    return rule


def reduce_on_plateau(
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
    *,
    value: float,
) -> Rule:
    """torch.optim.lr_scheduler.ReduceLROnPlateau, by steps; of means of `accumulation_size` losses.

    A value as good as the best is no improvement. The count of bad values begins again after a
    reduction, and stands still during the cooldown.
    """

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            state.update(scale=1.0, best=np.inf, bad=0, cooling=0, seen=[])
        state["seen"].append(value)
        if len(state["seen"]) == accumulation_size:
            mean = float(np.mean(state["seen"]))
            state["seen"] = []
            best = state["best"]
            better = mean < (best if best == np.inf else best - rtol * abs(best) - atol)
            state["best"] = mean if better else best
            state["bad"] = 0 if better else state["bad"] + 1
            if state["cooling"]:
                state["cooling"] -= 1
                state["bad"] = 0
            elif state["bad"] == patience:
                state.update(scale=max(state["scale"] * factor, min_scale), bad=0, cooling=cooldown)
        return [state["scale"] * g for g in gs]

    return rule


def early_stopping(
    patience: int,
    rtol: float = 0.0,
    atol: float = 0.0,
    accumulation_size: int = 1,
    *,
    value: float,
) -> Rule:
    """Updates pass as they are; `test_steering.py` looks at the flag."""
    return lambda gs, ps, t, state: gs
