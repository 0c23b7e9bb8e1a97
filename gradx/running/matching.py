"""Which array of an old state each array of a new one gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
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
    A holder begins anew as a whole if its numbers would tell of arrays that are not there.

    Args:
      count: where schedules begin that had no count; by default at the old counts.

    Attributes:
      sources: what each array gets. Several are counts, and have to be the same.
      why: the reason for which an array gets nothing, where there is more to say than that there is
        nothing like it.
    """

    def __init__(self, old: Sequence[Place], new: Sequence[Place], count: int | None) -> None:
        old, old_snapshots = _apart(old)
        new, new_snapshots = _apart(new)
        self.old, self.new, self.snapshots = old, new, (old_snapshots, new_snapshots)
        self.sources: dict[Place, list[Place]] = {}
        self.why: dict[Place, str] = {}
        self._seen: set[Place] = set()
        around = {p.holder for p in new if p.param is not None}
        of_params = [p for p in new if p.param is not None]
        following = [p for p in new if p.param is None and p.holder in around]
        alone = [p for p in new if p.holder not in around]
        self.clocks = [p for p in alone if p.is_count and p.holder in _clocks(alone)]

        self._match(of_params, _by_place)
        self._match(of_params, _by_kind)
        self._match(of_params, _by_field, only_one=True)
        self._follow(following)
        self._match(alone, _by_place)
        self._match(alone, _by_kind)
        self._match([p for p in alone if p.is_live], _by_field, only_one=True)
        self._leave_parts(alone)
        self._go_on(count)
        self.why.update(dict.fromkeys(self.snapshots[1], "taken anew"))

    @property
    def dropped(self) -> list[Place]:
        """The old arrays that nothing gets."""
        kept = {q for found in self.sources.values() for q in found}
        gone = [] if self.snapshots[1] else self.snapshots[0]
        return [q for q in [*self.old, *gone] if q not in kept]

    @property
    def begun(self) -> list[Place]:
        return [p for p in [*self.new, *self.snapshots[1]] if p not in self.sources]

    @property
    def missed(self) -> list[Place]:
        """What begins anew, but is no live number, no snapshot, and of no part that is new."""
        kinds, reached = {q.holder.kind for q in self.old}, {p.holder for p in self.sources}

        def is_missed(p: Place) -> bool:
            had_one = p.holder.kind in kinds or p.holder in reached
            return p in self.why or (had_one and not p.is_live)

        return [p for p in self.new if p not in self.sources and is_missed(p)]

    @property
    def lost(self) -> list[Place]:
        """Schedules that do not know at which step they begin."""
        return [p for p in self.clocks if p not in self.sources]

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
        """Takes counts and other single numbers from the part that has the arrays beside them."""
        origins = self._origins()
        for p in wanted:
            near = [q for q in self.old if q.holder in origins[p.holder]]
            found = [q for q in near if q.kind == p.kind]
            if p.is_count and near:
                found = found or [q for q in near if q.is_count] or self._counts(p)
            if len(found) == 1 or (p.is_count and found):
                self._take(p, found)
            elif found:
                self._refuse(p, found, 1)

    def _origins(self) -> Mapping[Holder, set[Holder]]:
        origins: dict[Holder, set[Holder]] = defaultdict(set)
        for p, (q, *_) in self.sources.items():
            origins[p.holder].add(q.holder)
        return origins

    def _leave_parts(self, alone: Sequence[Place]) -> None:
        """Lets a holder begin anew that has an array, or a tree of arrays, without an old one."""
        arrays = [p for p in alone if p.holder.kind and jnp.shape(p.value) and not p.is_live]
        left = {p.holder for p in arrays if p not in self.sources}
        for holder, origins in self._origins().items():
            same = {origin for origin in origins if origin.kind == holder.kind}
            if same and _trees(self.new, {holder}) != _trees(self.old, same):
                left.add(holder)
        for p in [p for p in self.sources if p.holder in left and not p.is_live]:
            del self.sources[p]
            self.why[p] = "as its other arrays do"

    def _go_on(self, count: int | None) -> None:
        """Lets new schedules begin where the old state is, or at the count that is given."""
        for p in self.clocks:
            if p not in self.sources:
                counts = self._counts(p)
                found = [q for q in counts if q.holder.labels == p.holder.labels] or counts
                self._take(p, found if count is None else [_given(count)])

    def _counts(self, p: Place) -> list[Place]:
        """The old counts that tell `p` the step of the run.

        A plateau's, in a holder without arrays, counts something else; an average counts from where
        it was added, and what `restart_moments` is around from the last restart.
        """
        around = {q.holder for q in self.old if q.param is not None} | _clocks(self.old)
        unfit = {h for h in around if h.averages or (h.restarts and not p.holder.restarts)}
        return [q for q in self.old if q.is_count and q.holder in around - unfit]

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


def _apart(found: Iterable[Place]) -> tuple[list[Place], list[Place]]:
    """All but the snapshots of guards, and these, which fit no other inner state."""
    both: tuple[list[Place], list[Place]] = [], []
    for p in found:
        both[p.is_snapshot].append(p)
    return both


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


def _trees(found: Iterable[Place], holders: set[Holder]) -> set[tuple[str, str]]:
    """The trees like the parameters, in fields that have several."""
    return {(p.field, p.tree) for p in found if p.holder in holders and p.tree}


def _given(count: int) -> Place:
    return Place(Holder("", ()), "", "the given count", None, "", count)


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
        counts = {int(q.value): q.name for q in reversed(found)}
        if len(counts) > 1:
            told = [f"{name} is {n}" for n, name in sorted(counts.items())]
            return f"the old counts differ: {', '.join(told)}"
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
