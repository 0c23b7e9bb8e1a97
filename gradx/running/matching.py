"""Which array of an old state each array of a new one gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradx.numbers.sources import Array
from gradx.running.places import LIVE, Holder, Place

Key = Callable[[Place], Hashable]


class Plan:
    """The sources of a new state's arrays in an old one.

    Arrays of parameters are matched first: by class, field and parameter, then by field and
    parameter. What else their holder keeps, its count first of all, follows them: a bias correction
    is right only with the count of its averages. Holders without such arrays are matched by class.

    Attributes:
      sources: what each array gets. Several are counts, and have to be the same.
      why: the reason for which an array gets nothing, where there is more to say than that there is
        nothing like it.
    """

    def __init__(self, old: Sequence[Place], new: Sequence[Place]) -> None:
        self.old, self.new = old, new
        self.sources: dict[Place, list[Place]] = {}
        self.why: dict[Place, str] = {}
        self._seen: set[Place] = set()
        around = {p.holder for p in new if p.param is not None}
        of_params = [p for p in new if p.param is not None]
        following = [p for p in new if p.param is None and p.holder in around]
        alone = [p for p in new if p.holder not in around]

        self._match(of_params, _by_place)
        self._match(of_params, _by_kind)
        self._match(of_params, _by_field, only_one=True)
        self._follow(following)
        self._match(alone, _by_place)
        self._match(alone, _by_kind)
        self._match([p for p in alone if p.is_live], _by_field, only_one=True)
        self._go_on([p for p in alone if p.is_count and p.holder in _clocks(alone)])

    @property
    def dropped(self) -> list[Place]:
        """The old arrays that nothing gets."""
        kept = {q for found in self.sources.values() for q in found}
        return [q for q in self.old if q not in kept]

    @property
    def begun(self) -> list[Place]:
        return [p for p in self.new if p not in self.sources]

    @property
    def missed(self) -> list[Place]:
        """What begins anew, but is no live number, and of no part that is wholly new."""
        kinds, reached = {q.holder.kind for q in self.old}, {p.holder for p in self.sources}

        def is_missed(p: Place) -> bool:
            had_one = p.holder.kind in kinds or p.holder in reached
            return p in self.why or (had_one and not p.is_live)

        return [p for p in self.begun if is_missed(p)]

    # ------------------------------------------------------------ how they find each other

    def _match(self, wanted: Iterable[Place], key: Key, *, only_one: bool = False) -> None:
        """Pairs those with the same key. Several pair in their order, if there are as many."""
        theirs = _grouped([q for q in self.old if q not in self._seen], key)
        ours = _grouped([p for p in wanted if p not in self._seen], key)
        for same, group in ours.items():
            found = theirs.get(same, [])
            orderly = not only_one and all(
                len({p.holder.labels for p in several}) == 1 for several in (group, found)
            )
            if len(group) == len(found) and (len(group) == 1 or orderly):
                for p, q in zip(group, found, strict=True):
                    self._take(p, [q])
            elif found:
                for p in group:
                    self._refuse(p, found, len(group))

    def _follow(self, wanted: Iterable[Place]) -> None:
        """Takes what is no array of a parameter from where the arrays of its holder come from."""
        origins: dict[Holder, set[Holder]] = defaultdict(set)
        for p, (q, *_) in self.sources.items():
            origins[p.holder].add(q.holder)
        for p in wanted:
            near = [q for q in self.old if q.holder in origins[p.holder]]
            found = [q for q in near if q.kind == p.kind]
            if p.is_count and near:
                found = found or [q for q in near if q.is_count] or self._counts()
            if len(found) == 1 or (p.is_count and found):
                self._take(p, found)
            elif found:
                self._refuse(p, found, 1)

    def _go_on(self, clocks: Iterable[Place]) -> None:
        """Lets new schedules begin where the old state is."""
        for p in clocks:
            if p not in self.sources:
                counts = self._counts()
                found = [q for q in counts if q.holder.labels == p.holder.labels] or counts
                self._take(p, found)

    def _counts(self) -> list[Place]:
        """The old counts of updates: others, such as a plateau's, are in holders without arrays."""
        around = {q.holder for q in self.old if q.param is not None} | _clocks(self.old)
        return [q for q in self.old if q.is_count and q.holder in around]

    def _take(self, p: Place, found: list[Place]) -> None:
        self._seen.update([p, *found])
        self.why.pop(p, None)
        if told := _misfit(found, p):
            self.why[p] = told
        else:
            self.sources[p] = found

    def _refuse(self, p: Place, found: list[Place], places: int) -> None:
        self._seen.update([p, *found])
        names = " and ".join(dict.fromkeys(q.name for q in found))
        told = f"{len(found)} candidate{'s' * (len(found) > 1)}, {names}"
        self.why[p] = f"{told}, for {places} place{'s' * (places > 1)}"


def _by_place(p: Place) -> Hashable:
    return p.holder.labels, p.kind


def _by_kind(p: Place) -> Hashable:
    return p.kind


def _by_field(p: Place) -> Hashable:
    return p.field, p.path, jnp.shape(p.value)


def _grouped(found: Iterable[Place], key: Key) -> dict[Hashable, list[Place]]:
    groups: dict[Hashable, list[Place]] = defaultdict(list)
    for p in found:
        groups[key(p)].append(p)
    return groups


def _clocks(found: Iterable[Place]) -> set[Holder]:
    """The holders that only count, beside live numbers: their counts are those of schedules."""
    fields: dict[Holder, set[str]] = defaultdict(set)
    for p in found:
        fields[p.holder].add(p.field)
    return {holder for holder, own in fields.items() if own - {LIVE} == {"count"}}


# ---------------------------------------------------------------- values


def _misfit(found: Sequence[Place], p: Place) -> str:
    """Why these values cannot be that of `p`; empty if they can."""
    if not found:
        return "the old state has no count"
    for q in found:
        if jnp.shape(q.value) != jnp.shape(p.value):
            return f"its shape is {jnp.shape(p.value)}, and was {jnp.shape(q.value)}"
        if _sort(q.value) != _sort(p.value):
            return f"it is {dtype_of(p.value)}, and was {dtype_of(q.value)}"
    if len(found) > 1 and not any(isinstance(q.value, jax.core.Tracer) for q in found):
        counts = sorted({int(q.value) for q in found})
        if len(counts) > 1:
            return f"the old counts are {', '.join(map(str, counts))}"
    return ""


def dtype_of(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def _sort(x: Any) -> Any:
    """What its precision does not matter to: a real number is one in float32 and in bfloat16."""
    dtype = dtype_of(x)
    sorts = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next((sort for sort in sorts if jnp.issubdtype(dtype, sort)), dtype)


def carried(found: Sequence[Place], like: Any, again: bool) -> Array:
    """The value from these places, with the type of `like`; a copy if it is used `again`.

    Traced counts that should be the same give 0 where they are not.
    """
    first, *others = (q.value for q in found)
    like = jnp.asarray(like)
    if not isinstance(first, jax.Array):
        x = jnp.asarray(first, like.dtype)
        return x if isinstance(like, jax.core.Tracer) else jax.device_put(x, like.sharding)
    x = first
    if x.dtype != like.dtype or getattr(x, "weak_type", False):
        x = jnp.asarray(x, like.dtype)
    elif again:
        x = jnp.copy(x)
    if any(isinstance(value, jax.core.Tracer) for value in (first, *others)):
        for value in others:
            x = jnp.where(value == first, x, 0)
    return x
