"""One rule for the arrays with two axes, and another one for all else."""

from __future__ import annotations

from collections.abc import Sequence

from references.classic import decoupled, scale_by_adam
from references.driver import Array, Arrays, Number, Rule, State


def matrices_and_others(matrices: Rule, others: Rule) -> Rule:
    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        made: dict[int, Array] = {}
        for name, part in (("matrices", matrices), ("others", others)):
            mine = [i for i, g in enumerate(gs) if (g.ndim == 2) == (name == "matrices")]
            us = part([gs[i] for i in mine], [ps[i] for i in mine], t, state.setdefault(name, {}))
            made |= dict(zip(mine, us, strict=True))
        return [made[i] for i in range(len(gs))]

    return rule


def with_others(
    direction: Rule,
    learning_rate: Number,
    weight_decay: Number,
    weight_decay_mask: Sequence[bool] | None = None,
    decay: str = "learning_rate",
    fallback: Rule | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Rule:
    """Matrices go in this direction, with decoupled weight decay, and all else in Adam's."""
    others = decoupled(scale_by_adam(*betas), learning_rate, 0.0) if fallback is None else fallback
    return matrices_and_others(
        decoupled(direction, learning_rate, weight_decay, weight_decay_mask, decay), others
    )
