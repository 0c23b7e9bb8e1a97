"""One optimizer for the leaves that are matrices, and another one for all other leaves."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from gradx import core
from gradx.combinators.chain import Contract, chain, wide_throughout
from gradx.combinators.partition import partition
from gradx.combinators.predicated import check_inner
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift.matrices import check_paths, matrices
from gradx.lift.matrix_names import matrices_by_name, reasons
from gradx.lift.sequence import has_no_opaque, stage_of
from gradx.numbers.paths import beside
from gradx.numbers.sources import Hyper
from gradx.optimizers.first_order.adam import scale_by_adam
from gradx.pieces.scaling import descend
from gradx.pieces.weight_decay import DecayKind, scale_and_decay


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
    """`rule` with weight decay for the matrices; for the others `fallback`, or Adam(b1, b2)."""
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
    """`tx` for the leaves that are matrices, `other` for all others.

    `axes`, which errors call `name`, says which are matrices; without it `matrices_by_name` does.
    Numbers given `by_path` may name leaves of either group.
    """
    where = core.where()
    check_inner(other, where, "fallback")
    groups: Mapping[Hashable, Contract] = {label: tx, other_label: other}

    def labels(tree: Any) -> Any:
        found = matrices(or_by_name(axes), gtree.flatten(tree), where, name, stacked=True)
        return gtree.flatten(tree).unflatten([other_label if m is None else label for m in found])

    split = partition(groups, labels, optional=True)

    def described(params: Params, state: State) -> list[Part]:
        flat = gtree.flatten(params)
        why = reasons(or_by_name(axes), flat, where, name) if flat.values else {}
        parts = split.parts(params, state) if split.parts is not None else []
        return [replace(part, why=why) for part in parts]

    def init(params: Params) -> State:
        flat = gtree.flatten(params)
        check_paths(or_by_name(axes), flat, where)
        with beside(flat.paths):
            return split.init(params)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        flat, by_label = gtree.flatten(updates), split
        missing = [path for path, g in zip(flat.paths, flat.values, strict=True) if g is None]
        if missing and params is not None:  # the parameters have the shapes of missing gradients
            with core.inside(where):
                by_label = partition(groups, labels(params), optional=True)
        elif missing and not all(has_no_opaque(stage_of(tx)) for tx in groups.values()):
            raise ValueError(
                f"{where}: at {missing[0]!r} there is no gradient. If there is a parameter, its "
                f"shape is needed: call update(updates, state, params)."
            )
        with beside(flat.paths):
            return by_label.update(updates, state, params, **extra)

    return wide_throughout(Transform(init, update, parts=described))


def or_by_name(axes: Any) -> Any:
    """The user's choice, or without one `matrices_by_name`."""
    return matrices_by_name if axes is None else axes
