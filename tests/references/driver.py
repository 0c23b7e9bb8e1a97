"""Float64 references, written from the papers, one array at a time, in NumPy.

They are slow, plain and independent of JAX. A factory here has the name and the arguments of the
transformation that it is compared with, so that one row of keywords makes both:

    after = run(adam(0.1, b1=0.8), params, grads)            # params after each step
    made = updates(scale_by_adam(b1=0.8), params, grads)     # what came out at each step

`params` is a list of arrays; `grads` is a list of arrays for each step, or a function of the
params together with a number of `steps`. A number may be a function of the count, which is 0 in
the first step. Second moments of complex gradients are of |g|².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = list[Array]
State = dict[Any, Any]
Number = float | Callable[[int], float]
Gradients = Sequence[Sequence[Array]] | Callable[[Arrays], Sequence[Array]]
Axes = int | tuple[int, ...]

# One array: (g, p, t, state) -> update. `state` is empty before the first step and is the rule's to
# fill; t is 0 in the first step. A `Rule` is the same on the list of all arrays.
OneArray = Callable[[Array, Array, int, State], Array]
Rule = Callable[[Arrays, Arrays, int, State], Arrays]


# Drivers.


def run(
    rule: Rule, params: Sequence[Array], grads: Gradients, steps: int | None = None
) -> list[Arrays]:
    """The params after each step of p ← p + rule(g)."""
    return [after for _, after in _drive(rule, params, grads, steps)]


def updates(
    rule: Rule, params: Sequence[Array], grads: Gradients, steps: int | None = None
) -> list[Arrays]:
    """What the rule gives at each step, the params moving as in `run`."""
    return [made for made, _ in _drive(rule, params, grads, steps)]


def _drive(
    rule: Rule, params: Sequence[Array], grads: Gradients, steps: int | None
) -> list[tuple[Arrays, Arrays]]:
    ps = [_wide(p) for p in params]
    state: State = {}
    out: list[tuple[Arrays, Arrays]] = []
    if steps is None:
        assert not callable(grads), "a function of the params needs a number of steps"
        steps = len(grads)
    for t in range(steps):
        gs = grads(ps) if callable(grads) else grads[t]
        us = rule([_wide(g) for g in gs], ps, t, state)
        ps = [p + u for p, u in zip(ps, us, strict=True)]
        out.append((us, ps))
    return out


def _wide(x: Any) -> Array:
    return np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)


def each(step: OneArray) -> Rule:
    """A rule for one array, on a list of them; every array has a state of its own."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        pairs = enumerate(zip(gs, ps, strict=True))
        return [step(g, p, t, state.setdefault(i, {})) for i, (g, p) in pairs]

    return rule


def chain(*rules: Rule) -> Rule:
    """One rule after the other."""

    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        for i, part in enumerate(rules):
            gs = part(gs, ps, t, state.setdefault(i, {}))
        return gs

    return rule


def at(number: Number, t: int) -> float:
    """The number at count t."""
    return number(t) if callable(number) else number


def sq(x: Array) -> Array:
    """|x|², real."""
    return (x * np.conj(x)).real


def sign(x: Array) -> Array:
    """x / |x|, and 0 at 0: for a complex number its direction."""
    size = np.abs(x)
    return np.where(size > 0, x / np.where(size > 0, size, 1.0), 0.0)


def average(new: Array, state: State, key: str, b: float, start: float = 0.0) -> Array:
    """state[key] ← b state[key] + (1 − b) new."""
    state[key] = b * state.get(key, np.full_like(new, start)) + (1 - b) * new
    return state[key]
