"""Trees that a state keeps beside the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradx.core import Params, Updates
from gradx.core import trees as gtree
from gradx.lift.passes import check_array, widen
from gradx.lift.stages import NO_STATE, Call, LeafState, Leaves, Numbers, is_array
from gradx.lift.states import need_params
from gradx.lowering.order import once_stored
from gradx.numbers.sources import Array


def beside_params(f: Callable[..., Any], params: Params, *trees: Updates, where: str = "") -> Any:
    """`f(p, *arrays)` for each parameter, with the arrays that belong to it in `trees`.

    Raises:
      ValueError: there are no parameters, or a tree does not match them.
    """
    need_params(params, where)
    flat = gtree.flatten(params)
    columns = [gtree.flatten_like(flat, t, "the state", where, "the parameters") for t in trees]
    rows = zip(flat.values, *columns, strict=True)
    return flat.unflatten([f(p, *xs) if is_array(p) else p for p, *xs in rows])


def first_beside(f: Callable[[Array], Array], params: Params, where: str) -> Updates:
    """`f` of each parameter, in float32 or wider, for the first state.

    Raises:
      ValueError: a parameter is no floating-point array.
    """
    flat = gtree.flatten(params)
    for i, p in enumerate(flat.values):
        if is_array(p):
            check_array(p, flat, i, where, "parameter")
    return beside_params(lambda p: f(widen(p)), params, where=where)


def after(leaves: Leaves, *trees: Updates) -> Sequence[Call | None]:
    """Calls that pass the updates on once these trees, made of the parameters, are stored."""
    flat = gtree.flatten(leaves.tree)
    columns = zip(*(gtree.flatten_like(flat, tree, "the trees", "") for tree in trees), strict=True)
    rows = zip(leaves.updates, leaves.aligned(columns), strict=True)
    return [_once_stored(xs) if is_array(u) else None for u, xs in rows]


def _once_stored(arrays: Any) -> Call | None:
    elements = [x.ravel()[0].real for x in arrays if is_array(x) and x.size]
    if not elements:
        return None
    return Call(_pass_on, (), {"stored": sum(elements[1:], start=elements[0])}, NO_STATE, False)


def _pass_on(u: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return once_stored(u, h.stored), s
