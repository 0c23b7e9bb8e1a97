"""Transformations by parameter, where a row can say which: all of them, or none."""

from __future__ import annotations

import numpy as np

from references.driver import Arrays, Rule, State


def selective_transform(optimizer: Rule, *, freeze_mask: bool) -> Rule:
    def rule(gs: Arrays, ps: Arrays, t: int, state: State) -> Arrays:
        return [np.zeros_like(g) for g in gs] if freeze_mask else optimizer(gs, ps, t, state)

    return rule
