"""Iterates that are averaged, pulled back or moved by an adversary; other views of the arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from references.classic import add_decayed_weights, scale_by_rms
from references.driver import Array, Arrays, Number, Rule, State, at, chain, each


def schedule_free(
    base_optimizer: Rule,
    learning_rate: Number,
    b1: float = 0.9,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
) -> Rule:
    """Defazio et al., NeurIPS 2024, arXiv:2405.15682, eqs. 3-5 with the weights of section 4.

    Written with x, y and z all kept, as the authors' reference is.
    """

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            state |= {"x": ps, "z": ps, "base": {}, "sum": 0.0, "max": 0.0}
        rate = state["max"] = max(state["max"], at(learning_rate, t))
        weight = rate**weight_lr_power
        state["sum"] += weight
        c = weight / state["sum"] if state["sum"] else 0.0
        steps = base_optimizer(gs, ps, t, state["base"])
        state["z"] = [z + u for z, u in zip(state["z"], steps, strict=True)]
        state["x"] = [(1 - c) * x + c * z for x, z in zip(state["x"], state["z"], strict=True)]
        ys = [b1 * x + (1 - b1) * z for x, z in zip(state["x"], state["z"], strict=True)]
        return [y - p for y, p in zip(ys, ps, strict=True)]

    return rule


def gpa(
    base_optimizer: Rule, decay: float = 0.9967, b1: float = 0.7, *, state_dtype: Any = None
) -> Rule:
    """Defazio et al., arXiv:2512.17131, with x, y and z all kept."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if t == 0:
            state |= {"x": ps, "z": ps, "base": {}}
        steps = base_optimizer(gs, ps, t, state["base"])
        state["z"] = [z + u for z, u in zip(state["z"], steps, strict=True)]
        state["x"] = [
            decay * x + (1 - decay) * z for x, z in zip(state["x"], state["z"], strict=True)
        ]
        ys = [b1 * x + (1 - b1) * z for x, z in zip(state["x"], state["z"], strict=True)]
        return [y - p for y, p in zip(ys, ps, strict=True)]

    return rule


def ema_nesterov(lookahead: float = 0.3, decay: float = 0.99) -> Rule:
    """Yau et al., arXiv:2605.25395, with the parameters before the step kept."""

    def one(u: Array, y: Array, t: int, state: State) -> Array:
        theta = state.get("theta", y)
        new = y + u
        state["m"] = decay * state.get("m", 0.0) + (1 - decay) * (new - theta)
        state["theta"] = new
        return new + lookahead * state["m"] - y

    return each(one)


def averages(*args: Any, **kwargs: Any) -> Rule:
    """Averages of the parameters pass the updates on; `test_averages.py` looks at the averages."""
    return each(lambda g, p, t, state: g)


ema_params = swa_params = tail_ema_params = lawa_params = averages


def _descend(learning_rate: Number) -> Rule:
    return each(lambda g, p, t, state: -at(learning_rate, t) * g)


def _warmed(learning_rate: Number, warmup_steps: int | None) -> Number:
    if warmup_steps is None:
        return learning_rate
    return lambda t: at(learning_rate, t) * min(1.0, t / warmup_steps)


def schedule_free_sgd(
    learning_rate: Number = 1.0,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    weight_decay: float | None = None,
    weight_lr_power: float = 2.0,
) -> Rule:
    """Defazio et al., arXiv:2405.15682."""
    rate = _warmed(learning_rate, warmup_steps)
    base = chain(add_decayed_weights(weight_decay or 0.0), _descend(rate))
    return schedule_free(base, rate, b1, weight_lr_power)


def schedule_free_adamw(
    learning_rate: Number = 0.0025,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Rule:
    """Defazio et al., arXiv:2405.15682, Alg. 1."""
    rate = _warmed(learning_rate, warmup_steps)
    rms = scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    base = chain(rms, add_decayed_weights(weight_decay), _descend(rate))
    return schedule_free(base, rate, b1, weight_lr_power)


def sam(
    optimizer: Rule, adv_optimizer: Rule, sync_period: int = 2, reset_state: bool = True
) -> Rule:
    """Foret et al., ICLR 2021, arXiv:2010.01412, Alg. 1, one call of the loop at a time."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        period, i = divmod(t, sync_period)
        if i == 0:
            state["home"] = ps
            if reset_state:
                state["adversary"] = {}
        if i < sync_period - 1:
            count = i if reset_state else period * (sync_period - 1) + i
            ups = adv_optimizer(gs, ps, count, state.setdefault("adversary", {}))
            return [-u for u in ups]
        us = optimizer(gs, state["home"], period, state.setdefault("optimizer", {}))
        return [home + u - p for home, u, p in zip(state["home"], us, ps, strict=True)]

    return rule


def asam_adversary(rho: float = 0.5, eta: float = 0.01) -> Rule:
    """Kwon et al., ICML 2021, arXiv:2102.11600, eq. 7, turned around as an update."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        sizes = [np.abs(p) + eta for p in ps]
        norm = np.linalg.norm(_joined([s * g for s, g in zip(sizes, gs, strict=True)]))
        return [-rho / norm * s**2 * g for s, g in zip(sizes, gs, strict=True)]

    return rule


def look_sam(optimizer: Rule, adv_optimizer: Rule, period: int = 5, alpha: float = 0.7) -> Rule:
    """Liu et al., CVPR 2022, arXiv:2203.02714, Alg. 1, one gradient at a time."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        cycle, i = divmod(t, period + 1)
        if i == 0:
            state["home"], state["g"] = ps, _joined(gs)
            ups = adv_optimizer(gs, ps, cycle, state.setdefault("adversary", {}))
            return [-u for u in ups]
        now, homes = _joined(gs), ps
        if i == 1:
            along = state["g"] / np.linalg.norm(state["g"])
            state["v"] = now - np.vdot(along, now).real * along
            homes = state["home"]
        else:
            v = state["v"]
            now = now + alpha * np.linalg.norm(now) / np.linalg.norm(v) * v
        step = cycle * period + i - 1
        us = optimizer(_split(now, gs), homes, step, state.setdefault("optimizer", {}))
        return [home + u - p for home, u, p in zip(homes, us, ps, strict=True)]

    return rule


def flatten(inner: Rule) -> Rule:
    """All arrays as one vector."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        (u,) = inner([_joined(gs)], [_joined(ps)], t, state)
        return _split(u, gs)

    return rule


def _split(vector: Array, like: Arrays) -> Arrays:
    parts = np.split(vector, np.cumsum([x.size for x in like])[:-1])
    return [part.reshape(x.shape) for part, x in zip(parts, like, strict=True)]


def _joined(arrays: Arrays) -> Array:
    return np.concatenate([x.ravel() for x in arrays])


def split_real_and_imaginary(inner: Rule) -> Rule:
    """A complex array as two real ones."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        real = inner([g.real for g in gs], [p.real for p in ps], t, state.setdefault("real", {}))
        if not any(map(np.iscomplexobj, gs)):
            return real
        state = state.setdefault("imaginary", {})
        imaginary = inner([g.imag for g in gs], [p.imag for p in ps], t, state)
        return [re + 1j * im for re, im in zip(real, imaginary, strict=True)]

    return rule
