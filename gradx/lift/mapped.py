"""Axes that `pmap`, `shard_map` or `vmap` map a function over: what varies on them, and sums.

In `shard_map` the type of an array says over which axes it varies. A number that varies is of one
device's part of a leaf, and is added up. Another one is of a leaf that all devices have alike.
Elsewhere the user says which leaves are cut along an axis: `sharded`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Number
from typing import Any, NamedTuple, Self

import jax

from gradx import core
from gradx.core import trees as gtree
from gradx.lift.masks import mask_flags
from gradx.lowering.varying import varies_over
from gradx.numbers.sources import Array

__all__ = ["sharded"]


# ---------------------------------------------------------------- types


@contextlib.contextmanager
def mapped(name: Any, who: str) -> Iterator[None]:
    """Turns JAX's NameError for an axis that is not there into advice."""
    try:
        yield
    except NameError as error:
        raise ValueError(
            f"{who}: there is no mapped axis {name!r} here; call update inside "
            f"jax.pmap(…, axis_name={name!r}), shard_map or vmap."
        ) from error


def tracked(name: Any) -> bool:
    """Whether types track a mapped axis; they do not in `pmap`, `vmap` and unchecked maps.

    Raises:
      NameError: there is no such axis here.
    """
    return name in varies_over(jax.lax.axis_index(name))


# ---------------------------------------------------------------- what users say


@dataclass(frozen=True, eq=False, repr=False)
class Sharded(core.Described):
    """A mapped axis, or several, and the leaves that are cut along it."""

    names: tuple[Hashable, ...]
    leaves: Any
    spec: core.Spec | None = field(default=None, kw_only=True)

    def with_spec(self, spec: core.Spec) -> Self:
        return replace(self, spec=spec)


@core.recorded
def sharded(axis_name: Any, leaves: Any = None) -> Sharded:
    """Says which leaves are cut along a mapped axis; for any `axis_name` argument.

    In `shard_map` the types of the arrays say it. In `pmap`, `vmap` and
    ``shard_map(check_vma=False)`` nothing does. There the bare name of an axis means that all
    leaves are cut along it, in norms and other sums, or that none is, in `pmean` and `psum`.

    Args:
      axis_name: the name of the axis, or a tuple of names.
      leaves: True for the leaves that are cut, False for those that all devices have alike: a tree
        of bools like the parameters, or a prefix of it; a function that makes one; or `by_path`. By
        default all are cut, where types do not say otherwise.

    Raises:
      ValueError: `axis_name` is no name; in `update`, the mask does not fit the updates, or
        contradicts what types say about a leaf.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> cut = gradx.sharded("model", gradx.by_path({"kernel": True}, default=False))
      >>> norm = lambda tree: gradx.global_norm(tree, axis_name=cut)
      >>> halves = {"kernel": jnp.array([[2.0], [2.0]]), "bias": jnp.array([[1.0], [1.0]])}
      >>> jax.vmap(norm, axis_name="model")(halves)  # a kernel (2,) and a bias (1,)
      Array([3., 3.], dtype=float32)
    """
    found = axes(axis_name)
    if not found or any(axis.said is not None for axis in found):
        raise ValueError(
            f"{core.where()}: axis_name must be the name of a mapped axis or a tuple of names, got "
            f"{core.show(axis_name)}."
        )
    return Sharded(tuple(axis.name for axis in found), leaves)


class Axis(NamedTuple):
    """A mapped axis, and which leaves are cut along it: a mask, True for all, None if not said."""

    name: Hashable
    said: Any = None
    always: bool = False  # also checked where types tell: they must agree


Axes = tuple[Axis, ...]


def axes(axis_name: Any, argument: str = "axis_name") -> Axes:
    """The axes of an `axis_name` argument: a name, `sharded`, a tuple of these, or None for none.

    Raises:
      ValueError: something else, or an axis is named twice.
    """
    if axis_name is None:
        return ()
    found: list[Axis] = []
    for part in axis_name if isinstance(axis_name, tuple | list) else (axis_name,):
        if isinstance(part, Sharded):
            every = part.leaves is None
            found += [Axis(name, every or part.leaves, not every) for name in part.names]
        else:
            found.append(Axis(part))
    names = [axis.name for axis in found]
    if not names or any(not _is_name(name) or names.count(name) > 1 for name in names):
        raise ValueError(
            f"{core.where()}: {argument} must be the name of a mapped axis, sharded(…), or a "
            f"tuple of different ones, got {core.show(axis_name)}."
        )
    return tuple(found)


def some_axes(axis_name: Any) -> Axes:
    """`axes` where there has to be one."""
    found = axes(axis_name)
    if not found or any(axis.said is True for axis in found):
        raise ValueError(
            f"{core.where()}: axis_name must name an axis, or sharded(…) with the leaves that are "
            f"cut along it: without them none would be combined. Got {core.show(axis_name)}."
        )
    return found


def _is_name(name: Any) -> bool:
    # To JAX any hashable object is a name, except whole numbers, which are dimensions of an array.
    # These are mistakes.
    mistaken = name is None or isinstance(name, Number | tuple) or callable(name)
    return isinstance(name, Hashable) and not mistaken


# ---------------------------------------------------------------- how a leaf lies on the axes


@dataclass(frozen=True)
class Span:
    """How one leaf lies on the mapped axes.

    Attributes:
      typed: the axes that types track.
      cut: the axes that the leaf is said to be cut along.
      whole: the axes that it is said to be the same on.
    """

    typed: tuple[Hashable, ...]
    cut: tuple[Hashable, ...]
    whole: tuple[Hashable, ...]

    def of(self, x: Any) -> Kinds:
        """The axes on which a number of the leaf is one device's part: by its type, and as said."""
        varying = varies_over(x)
        by_type = tuple(name for name in self.typed if name in varying)
        return by_type, tuple(name for name in self.cut if name not in self.typed)


# Axes with and without types: JAX forms no sum over both at once.
Kinds = tuple[tuple[Hashable, ...], tuple[Hashable, ...]]


def spans(
    axes: Axes,
    flat: gtree.Flat,
    params: Sequence[Any] | None,
    where: str,
    *,
    plain: bool = True,
) -> list[Span]:
    """How the leaves of a tree lie on the axes, inside the mapping.

    `plain` is what the bare name of an axis says where types do not: all leaves are cut along it,
    or none is.

    Raises:
      ValueError: an axis is not mapped; a mask does not fit, or contradicts the types.
    """
    typed: list[Hashable] = []
    said: list[list[bool | None]] = []
    for axis in axes:
        with mapped(axis.name, where):
            has_types = tracked(axis.name)
        typed += [axis.name] if has_types else []
        if axis.said is None or (has_types and not axis.always):
            said.append([None if has_types else plain] * len(flat.values))
            continue
        flags = mask_flags(
            axis.said, flat.tree, where, f"mask of the leaves cut along {axis.name!r}"
        )
        if has_types:
            _check_types(axis.name, flags, flat, params, where)
        said.append([*flags])

    def names(i: int, wanted: bool) -> tuple[Hashable, ...]:
        return tuple(a.name for a, flags in zip(axes, said, strict=True) if flags[i] is wanted)

    return [Span(tuple(typed), names(i, True), names(i, False)) for i in range(len(flat.values))]


def _check_types(
    name: Hashable, flags: list[bool], flat: gtree.Flat, params: Sequence[Any] | None, where: str
) -> None:
    for i, flag in enumerate(flags):
        g, p = flat.values[i], None if params is None else params[i]
        x = g if p is None else p
        # A gradient may vary before it is averaged; a parameter that does is cut.
        if x is None or flag == (name in varies_over(x)) or (p is None and not flag):
            continue
        types = "the same on all devices" if flag else "another one on each device"
        raise ValueError(
            f"{where}: the leaf {flat.paths[i]!r} is said to be {'' if flag else 'not '}cut along "
            f"the mapped axis {name!r}, but by its type it is {types}. Leave the mask out, as "
            f"types are tracked here, or correct it."
        )


# ---------------------------------------------------------------- sums


def sum_over(parts: Sequence[Any], spans: Sequence[Span | None]) -> Any:
    """Numbers of single leaves (trees of one structure), added up over leaves and devices.

    Only numbers of a device's part are added over an axis. The result is the same on all devices,
    also by its type. There is one collective for each set of axes that leaves are cut along.
    """
    grouped: dict[Kinds, dict[int, Any]] = {}
    for part, span in zip(parts, spans, strict=True):
        for k, x in enumerate(jax.tree.leaves(part)):
            group = grouped.setdefault(((), ()) if span is None else span.of(x), {})
            group[k] = _plus(group[k], x) if k in group else x
    sums: dict[int, Any] = {}
    for kinds, group in grouped.items():
        for k, x in over_all(jax.lax.psum, group, kinds).items():
            sums[k] = _plus(sums[k], x) if k in sums else x
    structure: Any = jax.tree.structure(parts[0])
    return structure.unflatten([sums[k] for k in range(len(sums))])


def _plus(x: Array, y: Array) -> Array:
    """The sum, in the wider dtype of the two."""
    if x.dtype == y.dtype:
        return x + y
    kind = gtree.wide(x.dtype, y.dtype)
    return x.astype(kind) + y.astype(kind)


def total(numbers: Any, span: Span | None) -> Any:
    """Numbers of one leaf, added up over the devices that it is cut among."""
    return sum_over([numbers], [span])


def total_at_init(parts: Sequence[Any], flat: gtree.Flat, axes: Axes, where: str) -> list[Any]:
    """`total` at each leaf, if `init` is called inside the mapping; outside it leaves are whole."""
    here = []
    for axis in axes:
        with contextlib.suppress(NameError):
            tracked(axis.name)
            here.append(axis)
    found = spans(tuple(here), flat, None, where)
    return [
        part if part is None else total(part, span) for part, span in zip(parts, found, strict=True)
    ]


def size(x: Array, span: Span | None) -> int:
    """How many elements a leaf has, on all devices that it is cut among."""
    cut = () if span is None else sum(span.of(x), ())
    count: int = x.size
    for name in cut:
        count *= jax.lax.psum(1, name)
    return count


def everywhere(reduce: Callable[..., Any], x: Array, axes: Axes, where: str) -> Any:
    """`jax.lax.pmin` or another collective of one number, over all of the axes."""
    bare = tuple(Axis(axis.name) for axis in axes)
    (span,) = spans(bare, gtree.flatten(x), None, where)
    return over_all(reduce, x, span.of(x))


def over_all(reduce: Callable[..., Any], tree: Any, kinds: Kinds) -> Any:
    typed, others = kinds
    for names in (others, typed):  # first over those of a `vmap` inside `shard_map`
        tree = reduce(tree, names) if names else tree
    return tree


def over_each(
    reduce: Callable[..., Any], arrays: Sequence[Array], kinds: Sequence[Kinds]
) -> list[Array]:
    """Each array over axes of its own, with one collective for each set of axes."""
    grouped: dict[Kinds, list[int]] = {}
    for i, kind in enumerate(kinds):
        grouped.setdefault(kind, []).append(i)
    new = list(arrays)
    for kind, members in grouped.items():
        made = over_all(reduce, [new[i] for i in members], kind)
        for i, x in zip(members, made, strict=True):
            new[i] = x
    return new
