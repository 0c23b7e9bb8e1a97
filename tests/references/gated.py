"""Wrappers that act only in some steps; the inner rule counts those steps only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from references.driver import Arrays, Rule, State


def MultiSteps(opt: Rule, every_k_schedule: int, use_grad_mean: bool = True) -> Rule:
    k = every_k_schedule

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        kept = state.setdefault("gs", [])
        kept.append(gs)
        if len(kept) < k:
            return [np.zeros_like(g) for g in gs]
        state["gs"] = []
        sums = [np.sum(parts, axis=0) for parts in zip(*kept, strict=True)]
        whole = [s / k for s in sums] if use_grad_mean else sums
        return opt(whole, ps, t // k, state.setdefault("opt", {}))

    return rule


def _where(inner: Rule, condition: Callable[[int, Arrays], bool], rejected: Any) -> Rule:
    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        if not condition(t, gs):
            return [rejected(g) for g in gs]
        done = state["done"] = state.get("done", -1) + 1
        return inner(gs, ps, done, state.setdefault("inner", {}))

    return rule


def apply_if_finite(inner: Rule, max_consecutive_errors: int) -> Rule:
    return _where(inner, lambda t, gs: all(np.isfinite(g).all() for g in gs), np.zeros_like)


def conditionally_transform(inner: Rule, should_transform_fn: Callable[[Any], Any]) -> Rule:
    return _where(inner, lambda t, gs: should_transform_fn(t), lambda g: g)


def conditionally_mask(inner: Rule, should_transform_fn: Callable[[Any], Any]) -> Rule:
    return _where(inner, lambda t, gs: should_transform_fn(t), np.zeros_like)


def _norm(gs: Arrays) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(g) ** 2) for g in gs)))


def skip_spikes(inner: Rule, window: int, sigmas: float) -> Rule:
    """OLMo-core's rule, for finite norms; half of the window has to be seen before.

    A spike is remembered as no more than six deviations.
    """
    norms: list[float] = []

    def is_calm(t: int, gs: Arrays) -> bool:
        if t == 0:
            norms.clear()
        last, now = norms[-window:], _norm(gs)
        if len(last) < window / 2:
            norms.append(now)
            return True
        mean, deviation = np.mean(last), np.std(last, ddof=1)
        least = np.finfo(np.float32).eps * (mean or now)
        norms.append(min(now, mean + max(sigmas, 6.0) * max(deviation, least)))
        return bool(now <= mean + sigmas * deviation)

    return _where(inner, is_calm, np.zeros_like)


def restart_moments(inner: Rule, every: int, warmup: int = 0) -> Rule:
    """The moments of SPAM begin anew. Huang et al., ICLR 2025, arXiv:2501.06842, Alg. 1.

    The warm-up is that of the authors' code, a cosine from 0.01 to 1.
    """

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        age = t % every
        if age == 0:
            state["inner"] = {}
        share = 1.0
        if t >= every and age < warmup:
            share = 1 - 0.99 * (1 + np.cos(np.pi * age / (warmup + 1))) / 2
        return [share * u for u in inner(gs, ps, age, state["inner"])]

    return rule
