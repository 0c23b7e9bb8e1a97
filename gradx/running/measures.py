"""Sizes of gradients, updates and parameters, from one read of each array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx.core import Params, Updates
from gradx.core import trees as gtree
from gradx.core.roots import sqrt
from gradx.lift import mapped
from gradx.lift.masks import marks
from gradx.lift.passes import widen
from gradx.lowering.exact import rounded, share_of
from gradx.lowering.sums import in_one_read
from gradx.numbers.sources import Array
from gradx.pieces.norms import quotient


class Trees(NamedTuple):
    """What is measured in a step.

    Attributes:
      unclipped: what the clips are given; None where nothing clips, or where it is the gradient.
      clipped: what they make of it; None where nothing clips.
    """

    gradient: Updates
    unclipped: Updates | None
    clipped: Updates | None
    update: Updates
    params: Params


class Measures(NamedTuple):
    """Measures a step: of the whole tree, and of each group of leaves.

    Attributes:
      where: who asks.
      groups: labels of the leaves, in any way that `partition` takes them, or None.
      over: the mapped axes over which leaves are sharded.
    """

    where: str
    groups: Any
    over: mapped.Axes

    def labels(self, tree: Any) -> list[Any]:
        """The label of each leaf; None for a leaf that is in no group."""
        flat = gtree.flatten(tree)
        if self.groups is None:
            return [None] * len(flat.values)
        found = marks(self.groups, tree, f"{self.where}: groups")
        labels = [None if x is None else m for m, x in zip(found, flat.values, strict=True)]
        names: dict[str, Any] = {}
        for label in labels:
            other = names.setdefault(str(label), label)
            if other != label:
                raise ValueError(
                    f"{self.where}: groups has two labels of the same name, {other!r} and "
                    f"{label!r}: give both the same label, or different names."
                )
        return labels

    def names(self, params: Params, clips: bool) -> list[str]:
        """What `values` will measure for a tree like these parameters."""
        whole = ["gradient_norm", *["clipped_norm"] * clips, *_NAMES[1:]]
        groups = sorted({str(label) for label in self.labels(params) if label is not None})
        return [*whole, *(f"{name}/{label}" for label in groups for name in _NAMES)]

    def values(self, trees: Trees) -> dict[str, Array]:
        """The measurements by name, and ``unclipped_norm`` where there is such a tree."""
        flat = gtree.flatten(trees.update)
        columns = {
            name: self._leaves(flat, tree, f"the {name}")
            for name, tree in trees._asdict().items()
            if tree is not None
        }
        chosen = [i for i, u in enumerate(flat.values) if gtree.is_inexact(u)]
        places = mapped.spans(self.over, flat, columns["params"], self.where) if self.over else []
        spans = {i: places[i] if places else None for i in chosen}
        parts = {i: sums_of_leaf({name: of[i] for name, of in columns.items()}) for i in chosen}
        sizes = {i: mapped.size(columns["params"][i], spans[i]) for i in chosen}
        labels = self.labels(trees.params)
        nothing = {name: jnp.zeros((), jnp.float32) for name in (*columns, "moved", "still")}

        def over(some: Iterable[int]) -> dict[str, Array]:
            some = list(some)
            found = [nothing, *(parts[i] for i in some)], [None, *(spans[i] for i in some)]
            return _named(mapped.sum_over(*found), sum(sizes[i] for i in some))

        measured = over(chosen)
        for label in {label: None for label in labels if label is not None}:
            of_group = over(i for i in chosen if labels[i] == label)
            measured |= {f"{name}/{label}": of_group[name] for name in _NAMES}
        return measured

    def square(self, tree: Updates, params: Params) -> Array:
        """The squared norm of a tree like the parameters."""
        flat = gtree.flatten(tree)
        found = self._leaves(flat, params, "the params")
        spans: Sequence[mapped.Span | None] = [None] * len(flat.values)
        if self.over:
            spans = mapped.spans(self.over, flat, found, self.where)
        pairs = [(x, s) for x, s in zip(flat.values, spans, strict=True) if gtree.is_inexact(x)]
        parts = [jnp.zeros((), jnp.float32), *(gtree.square(jnp.asarray(x)) for x, _ in pairs)]
        total: Array = mapped.sum_over(parts, [None, *(span for _, span in pairs)])
        return total

    def _leaves(self, flat: gtree.Flat, tree: Any, what: str) -> list[Any]:
        found = gtree.flatten_like(flat, tree, what, self.where, "the updates")
        return [gtree.as_number(x) for x in found]


_NAMES = ("gradient_norm", "update_norm", "param_norm", "update_ratio", "unmoved")


def _named(sums: Mapping[str, Array], size: int) -> dict[str, Array]:
    update, param = sqrt(sums["update"]), sqrt(sums["params"])
    return {
        "gradient_norm": sqrt(sums["gradient"]),
        **{f"{x}_norm": sqrt(sums[x]) for x in ("unclipped", "clipped") if x in sums},
        "update_norm": update,
        "param_norm": param,
        "update_ratio": quotient(update, param),
        "unmoved": share_of(sums["still"], sums["moved"], max(size, 1)),
    }


@jax.jit  # one trace per shape and dtype, instead of one per leaf
@gtree.mixing
def sums_of_leaf(arrays: Mapping[str, Any]) -> dict[str, Array]:
    """The squared norms of arrays of one shape, and how many parameters the update moves."""
    p, u = arrays["params"], arrays["update"]
    wide = gtree.wide(p.dtype, u.dtype)
    new = rounded(p.astype(wide) + u.astype(wide), p.dtype)  # as `apply_updates` does
    kind = jnp.finfo(gtree.wide(*(x.dtype for x in arrays.values()))).dtype
    names = ["update", *(name for name in arrays if name != "update")]
    squares = [gtree.abs_sq(widen(arrays[name])).astype(kind) for name in names]
    counts, sums = in_one_read(new != p.astype(new.dtype), squares)
    # A float32 that counts by one ends at 2²⁴, an int32 at 2³¹.
    moved = jnp.sum(counts.astype(jnp.int32 if p.size < 2**31 else kind))
    still = jnp.maximum(p.size - moved, 0)
    numbers = {name: jnp.sum(x) for name, x in zip(names, sums, strict=True)}
    return numbers | {"moved": moved.astype(kind), "still": still.astype(kind)}
