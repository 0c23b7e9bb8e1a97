"""An optimizer for the leaves that are matrices, and another one for those that are none."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from gradx import core
from gradx import tree as gtree
from gradx.combine import Contract, chain, wide_throughout
from gradx.core import Params, Part, State, Transform, Updates
from gradx.decay import DecayKind, scale_and_decay
from gradx.gating import check_inner
from gradx.groups import partition
from gradx.matrices import check_paths, matrices, matrices_by_name, reasons
from gradx.moments import scale_by_adam
from gradx.scale import descend
from gradx.sources import ByPath, Hyper


def matrix_optimizer(
    label: str,
    rule: Contract,
    learning_rate: Hyper,
    weight_decay: Hyper,
    weight_decay_mask: Any,
    decay: DecayKind,
    axes: Any,
    fallback: Contract | None,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    mu_dtype: Any = None,
) -> Transform:
    """The rule with its decay for the matrices; for the others `fallback`, or Adam with b1, b2."""
    steps = scale_and_decay(learning_rate, weight_decay, weight_decay_mask, decay)
    if fallback is None:
        fallback = adam_for_others(learning_rate, b1, b2, mu_dtype)
    return with_fallback(label, chain(rule, *steps), "others", fallback, axes)


def adam_for_others(
    learning_rate: Hyper, b1: float = 0.9, b2: float = 0.999, mu_dtype: Any = None
) -> Transform:
    return chain(scale_by_adam(b1, b2, mu_dtype=mu_dtype), descend(learning_rate))


def with_fallback(
    label: str,
    tx: Contract,
    other_label: str,
    other: Contract,
    axes: Any,
    name: str = "axes",
) -> Transform:
    """`tx` for the leaves that are matrices, `other` for those that are none.

    `axes`, the argument `name`, says which are; without it, `matrices_by_name`.
    """
    where = core.where()
    check_inner(other, where, "fallback")
    chosen = matrices_by_name if axes is None else axes

    def labels(params: Params) -> Any:
        flat = gtree.flatten(params)
        check_paths(chosen, flat, where)
        found = matrices(chosen, flat, where, name, stacked=True)
        return flat.unflatten([other_label if m is None else label for m in found])

    def described(params: Params, state: State) -> list[Part]:
        parts = by_gradients.parts
        if parts is None:
            return []
        why = reasons(chosen, gtree.flatten(params), where, name)
        return [replace(part, why=why) for part in parts(params, state)]

    groups: Mapping[Hashable, Contract] = {label: tx, other_label: other}
    by_gradients = partition(groups, labels, optional=True)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        made = by_gradients
        if params is not None and any(g is None for g in gtree.flatten(updates).values):
            with core.inside(where):  # a missing gradient has no shape that tells its group
                made = partition(groups, labels(params), optional=True)
        return made.update(updates, state, params, **extra)

    return wide_throughout(Transform(by_gradients.init, update, parts=described))


def inside(axes: Any) -> Any:
    """The same choice for a transformation that sees the matrices only."""
    if axes is None:
        return matrices_by_name
    if isinstance(axes, ByPath):  # whose patterns for other leaves match nothing there
        return lambda tree: gtree.map_with_path(lambda path, _: axes.pick(path), tree)
    return axes
