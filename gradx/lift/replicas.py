"""Gradients of parameters that all devices of a mapped axis have alike, combined over the axis."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from gradx.core import Params, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift.mapped import Axes, Kinds, Span, over_each, spans
from gradx.lowering.varying import varies_over
from gradx.numbers.sources import Array

AVERAGE = (
    "A mean of equal values changes nothing, and the step would be as many times too large as "
    "there are devices. Either average the loss, jax.lax.pmean(loss, axis), and say "
    'already_reduced=True; or differentiate with respect to jax.lax.pcast(params, axis, to="'
    'varying"), and give update the parameters as they were.'
)


class Combining(Transform):
    """A transformation that combines gradients over mapped axes: all devices must call it."""

    over: Axes

    def __new__(cls, init: Any, update: Any, over: Axes) -> Combining:
        self: Any = super().__new__(cls, init, update)
        self.over = over
        return self


def combined(
    reduce: Callable[..., Any],
    updates: Updates,
    params: Params | None,
    axes: Axes,
    where: str,
    *,
    already_reduced: bool = False,
    remedy: str,
) -> Updates:
    """`jax.lax.pmean` or `psum` of the gradients of those parameters that all devices have alike.

    Raises:
      ValueError: a gradient is reduced already, without `already_reduced`; an axis is not mapped.
    """
    flat = gtree.flatten(updates)
    here = None if params is None else gtree.flatten_like(flat, params, "the parameters", where)
    arrays: list[int] = []
    kinds: list[Kinds] = []
    for i, span in enumerate(spans(axes, flat, here, where, plain=False)):
        g, p = flat.values[i], None if here is None else here[i]
        if not gtree.is_number(g):
            continue
        by_type = []
        for name in span.typed:
            if _is_part(name, g, p, span, flat, i, where):
                continue
            if name in varies_over(g):
                by_type.append(name)
            elif not already_reduced:
                raise ValueError(
                    f"{where}: at {flat.paths[i]!r} neither the gradient nor the parameter varies "
                    f"over the mapped axis {name!r}: inside shard_map, JAX has already summed the "
                    f"gradient of a parameter that is the same on all devices. {remedy}"
                )
        arrays.append(i)
        kinds.append((tuple(by_type), tuple(n for n in span.whole if n not in span.typed)))
    new = list(flat.values)
    for i, x in zip(arrays, over_each(reduce, [new[i] for i in arrays], kinds), strict=True):
        new[i] = x
    return flat.unflatten(new)


def _is_part(
    name: Hashable, g: Array, p: Any, span: Span, flat: gtree.Flat, i: int, where: str
) -> bool:
    """Whether the parameter is cut along an axis with types, so that gradients are of its parts."""
    if p is not None:
        return name in varies_over(p)
    if name in varies_over(g) and name not in span.cut + span.whole:
        raise ValueError(
            f"{where}: needs the parameters: call update(updates, state, params). The gradient at "
            f"{flat.paths[i]!r} varies over the mapped axis {name!r}, and only the parameter tells "
            f"whether it is to be combined or belongs to one device's part."
        )
    return name in span.cut
