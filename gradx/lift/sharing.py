"""Devices that share matrices: which ones, and how matrices get there and results back.

A leaf may be cut by rows or by columns, or be whole. A rule for matrices needs all of a matrix on
one device, but not on every device. So the matrices of one shape form a stack. Each device receives
its part of the stack, and sends back its results: one all-to-all there and one back, instead of all
matrices gathered everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from gradx import core
from gradx.numbers.sources import Array

__all__ = ["Share"]


class Share(NamedTuple):
    """Devices that share the matrices: each works on a part of them, and sends back the results.

    Without it all devices of the mesh that `jax.set_mesh` has put in scope share (see
    `matrixwise`).

    Attributes:
      mesh: the mesh whose devices share.
      axis: the axis of the mesh, or several.

    Example:
      >>> import gradx, jax
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> gradx.Share(mesh, "data").size
      1
    """

    mesh: Any  # a Mesh, or an AbstractMesh
    axis: str | tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The axis, or several, as a tuple."""
        return (self.axis,) if isinstance(self.axis, str) else self.axis

    @property
    def size(self) -> int:
        """How many devices share."""
        return math.prod(self.mesh.shape[name] for name in self.axes)


Batches = tuple[tuple[int, ...], ...]
Sharing = Share | Literal[False] | None  # these devices, none, or those in scope


def check_share(share: Any, where: str) -> None:
    if share is None or share is False:
        return
    names = getattr(getattr(share, "mesh", None), "axis_names", None)
    if names is None:
        raise ValueError(
            f"{where}: share must be Share(mesh, axis), False for nobody, or None for the devices "
            f"of the mesh in scope; got {core.show(share)}."
        )
    wanted = (share.axis,) if isinstance(share.axis, str) else share.axis
    known = isinstance(wanted, tuple) and all(name in names for name in wanted)
    if not known or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"{where}: share has the axis {share.axis!r}, and must have one of the axes "
            f"{list(names)} of its mesh, or a tuple of several."
        )


def sharers(share: Sharing, arrays: Sequence[Array], where: str) -> Share | None:
    """The devices that share these arrays; None if each does what it would do alone.

    In `shard_map`, where an axis is manual, a device has its own matrices. With explicit axes the
    types of arrays say whether any of them is cut; where all are whole there is nothing to gather.
    With automatic axes this is not known before compilation: all devices in scope share.
    """
    mesh = _explicit(arrays) or jax.sharding.get_abstract_mesh()
    if share is not None:
        if share and not mesh.empty:
            _check_in_scope(share, mesh, where)
        return share or None
    if mesh.size < 2 or AxisType.Manual in mesh.axis_types:
        return None
    used = {name for x in arrays for name in jax.tree.leaves(partition_of(x))}
    if AxisType.Auto not in mesh.axis_types and not used:
        return None
    # Axes along which nothing is cut come first: to cut along them takes no exchange.
    return Share(mesh, tuple(sorted(mesh.axis_names, key=lambda name: name in used)))


def _check_in_scope(share: Share, mesh: Any, where: str) -> None:
    """Raises ValueError for axes that the mesh in scope has not, or that `shard_map` maps."""
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    for name in share.axes:
        if mesh.shape.get(name) != share.mesh.shape[name]:
            raise ValueError(
                f"{where}: share has the axis {name!r} of {share.mesh.shape[name]} devices, and "
                f"the mesh in scope has the axes {dict(mesh.shape)}. Give its axes, or leave share "
                f"out: all its devices share."
            )
        if kinds[name] == AxisType.Manual:
            raise ValueError(
                f"{where}: share has the axis {name!r}, which shard_map maps here, so that each "
                f"device has matrices of its own. Leave share out, or call update outside."
            )


def _explicit(arrays: Sequence[Array]) -> Any:
    """The mesh of the arrays' types if it has explicit axes; else None."""
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def partition_of(x: Array) -> tuple[Hashable, ...]:
    """Along which axes of the mesh an array is cut, as far as its type says so."""
    return tuple(jax.typeof(x).sharding.spec)


def with_automatic_axes(fn: Callable[..., Any], places: Any, *args: Any) -> Any:
    """`fn(*args)`, in which the compiler decides all shardings except those of the results."""
    arrays = jax.tree.leaves(args)
    mesh = _explicit(arrays)
    if mesh is None:
        return fn(*args)
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    with _in_scope(mesh, arrays):
        return jax.sharding.auto_axes(fn, axes=axes, out_sharding=places)(*args)


def _in_scope(mesh: Any, arrays: Sequence[Array]) -> contextlib.AbstractContextManager[Any]:
    """Puts the mesh of the arrays' types in scope if none is, so that the user need not."""
    if not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return jax.sharding.use_abstract_mesh(mesh)
    meshes: Any = [x.sharding.mesh for x in arrays if hasattr(x.sharding, "mesh")]
    return jax.set_mesh(meshes[0])


def initial_state(share: Share | None, fn: Callable[[Array], Any], p: Array) -> Any:
    """`fn(p)`, a leaf's first state, cut among the devices that share its matrices.

    Else a preconditioner would be whole on every device, and gathered there after each step.
    """
    explicit = _explicit([p])
    mesh = explicit or jax.sharding.get_abstract_mesh()
    kind = AxisType.Auto if explicit is None else AxisType.Explicit
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = [name for name in (share.axes if share else ()) if kinds[name] == kind]

    def place(x: Any) -> Any:
        return jax.sharding.NamedSharding(mesh, PartitionSpec(*_cuts(mesh, axes, x.shape)))

    if mesh.empty:
        return fn(p)
    places = jax.tree.map(place, jax.eval_shape(fn, jax.ShapeDtypeStruct(p.shape, p.dtype)))
    if explicit is not None:
        return with_automatic_axes(fn, places, p)
    return fn(p) if share is None else jax.lax.with_sharding_constraint(fn(p), places)


def _cuts(mesh: Any, axes: Sequence[str], shape: tuple[int, ...]) -> list[Any]:
    """Cuts along each of these axes of the mesh, in the first axis of the array that it fits."""
    cuts: list[Any] = [None] * len(shape)
    for name in axes:
        fits = (i for i, n in enumerate(shape) if n and n % mesh.shape[name] == 0)
        free = next((i for i in fits if cuts[i] is None), None)
        if free is not None:
            cuts[free] = name
    return cuts


def batches(share: Share, counts: Sequence[int], kinds: Sequence[Hashable]) -> Batches:
    """The indices of the leaves that are sent together: those of one kind, which are cut alike.

    A leaf with a multiple of `share.size` matrices goes alone: if it is cut along the axis that
    counts them, nothing has to be sent.
    """
    found: dict[Hashable, list[int]] = {}
    for i, (count, kind) in enumerate(zip(counts, kinds, strict=True)):
        found.setdefault(kind if count % share.size else i, []).append(i)
    return tuple(map(tuple, found.values()))


def run_shared(
    share: Share, fn: Callable[..., Any], numbers: Any, batches: Sequence[Sequence[Any]]
) -> list[list[Any]]:
    """`fn(numbers, *stacks)` for the stacks of all leaves; each device does its part of them.

    The leaves of a batch are cut alike, so their stacks can be joined without a gather. Each batch
    sends as many matrices as fill all devices as they are. The others of all batches share one more
    stack, so that no device has more matrices than necessary. Each batch sends its own at their
    places in that stack, and the devices put the places together.
    """
    n, stacks = share.size, [_joined(batch) for batch in batches]
    counts = [_count(stack) for stack in stacks]
    wholes = [count - count % n for count in counts]
    begins = [*itertools.accumulate((count % n for count in counts), initial=0)]
    places = -(-begins[-1] // n) * n
    last = np.minimum(np.arange(places), begins[-1] - 1)  # places left over repeat the last matrix
    owner = np.searchsorted(begins, last, side="right") - 1  # the batch that has a place
    mesh = jax.sharding.get_abstract_mesh()
    mesh = _automatic(share.mesh) if mesh.empty else mesh
    along = functools.partial(_along, mesh)

    def own(numbers: Any, owner: Any, full: list[Any], left: list[Any]) -> Any:
        mixed = functools.reduce(functools.partial(_chosen, owner), enumerate(left), None)
        made = fn(numbers, *_joined([*full, mixed]))
        parts = _split(made, [*map(_count, full), _count(mixed)])
        return parts[:-1], [parts[-1]] * len(left)

    full = [_cut(stack, 0, end) for stack, end in zip(stacks, wholes, strict=True)]
    left = [
        along((), _padded(_cut(stack, end, None), begin, places))
        for stack, end, begin in zip(stacks, wholes, begins, strict=False)
    ]
    ways, part = [share.axes[:i] for i in range(1, len(share.axes))], PartitionSpec(share.axis)
    sent = functools.reduce(lambda sent, axes: along(axes, sent), ways, (full, left))
    # Types are not checked, since decompositions may be loops that do not keep them.
    specs: Any = {"in_specs": (PartitionSpec(), part, part, part), "out_specs": part}
    work = jax.shard_map(own, mesh=mesh, **specs, check_vma=False)
    made = work(numbers, owner, *sent)
    full, left = functools.reduce(lambda made, axes: along(axes, made), reversed(ways), made)

    def back(batch: Sequence[Any], full: Any, left: Any, begin: int, end: int) -> list[Any]:
        if len(batch) == 1 and begin == end:
            return [full]
        parts = along((), [full, left])  # whole along the axis that is to be cut
        return _split(_joined([parts[0], _cut(parts[1], begin, end)]), list(map(_count, batch)))

    return [*map(back, batches, full, left, begins, begins[1:])]


def _automatic(mesh: Any) -> Any:
    """The mesh with automatic axes, for arrays whose types have none."""
    if not isinstance(mesh, jax.sharding.Mesh):
        return mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def _along(mesh: Any, axes: tuple[str, ...], tree: Any) -> Any:
    """The stacks, cut along these axes of the mesh; each matrix may be cut in any way.

    Matrices that are cut along two axes are sent along one after the other, with an exchange for
    each: both at a time would be a gather.
    """

    def one(x: Array) -> Array:
        rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        place = jax.sharding.NamedSharding(mesh, PartitionSpec(axes, *rest))
        return jax.lax.with_sharding_constraint(x, place)

    return jax.tree.map(one, tree)


def _count(tree: Any) -> int:
    return int(jax.tree.leaves(tree)[0].shape[0])


def _cut(tree: Any, begin: int, end: int | None) -> Any:
    return jax.tree.map(lambda x: x[begin:end], tree)


def _split(tree: Any, counts: Sequence[int]) -> list[Any]:
    """Splits joined stacks again."""
    ends = itertools.pairwise(itertools.accumulate(counts, initial=0))
    return [_cut(tree, begin, end) for begin, end in ends]


def _padded(tree: Any, begin: int, size: int) -> Any:
    """Stacks of that size, with these from `begin` on, and their ends repeated elsewhere.

    Not zeros: a rule may divide by its state, and the derivatives of its numbers would be NaN.
    """

    def one(x: Array) -> Array:
        after = size - begin - x.shape[0]
        mode = "edge" if x.shape[0] else "constant"
        return jnp.pad(x, [(begin, after)] + [(0, 0)] * (x.ndim - 1), mode=mode)

    return jax.tree.map(one, tree)


def _chosen(owner: Array, others: Any, numbered: tuple[int, Any]) -> Any:
    """The stacks of the batch of this number at its places; those of other batches elsewhere."""
    number, tree = numbered

    def one(x: Array, other: Array) -> Array:
        return jnp.where((owner == number).reshape(-1, *[1] * (x.ndim - 1)), x, other)

    return tree if others is None else jax.tree.map(one, tree, others)


def _joined(trees: Sequence[Any]) -> Any:
    """Stacks one after the other."""

    def one(*xs: Array) -> Array:
        some = [x for x in xs if x.shape[0]] or [xs[0]]
        return some[0] if len(some) == 1 else jnp.concatenate(some)

    return jax.tree.map(one, *trees)
