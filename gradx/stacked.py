"""Matrices of one shape, stacked and worked on together, by one device or by several."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.gating import choose, either, rarely
from gradx.sources import Array
from gradx.stage import Numbers, Slots, namespace, widen

__all__ = ["Share"]


class Share(NamedTuple):
    """Devices that share the matrices: each works on a part of them, and the results are gathered.

    Attributes:
      mesh: the mesh whose devices share.
      axis: the axis of the mesh, or several.

    Example:
      >>> import gradx, jax
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> gradx.Share(mesh, "data").size
      1
    """

    mesh: jax.sharding.Mesh
    axis: str | tuple[str, ...]

    @property
    def size(self) -> int:
        axes = (self.axis,) if isinstance(self.axis, str) else self.axis
        return math.prod(self.mesh.shape[name] for name in axes)

    def placed(self, tree: Any, spec: jax.sharding.PartitionSpec) -> Any:
        """The arrays as `spec` says, where the mesh wants to be told; else XLA finds out."""
        if jax.sharding.AxisType.Explicit not in self.mesh.axis_types:
            return tree
        return jax.sharding.reshard(tree, jax.sharding.NamedSharding(self.mesh, spec))


class How(NamedTuple):
    """How the matrices of one shape are run through; it is part of a program."""

    chunk: int | None = None
    share: Share | None = None
    renew: Callable[[Slots, Numbers], Slots] | None = None
    start: Callable[[Slots, Numbers], Slots] | None = None
    every: int = 1
    staggered: bool = False
    first: int = 0  # in which step the first of these matrices is renewed, if they are staggered
    gather: Callable[[Array, Slots, Any, Numbers], Slots] | None = None


def check_share(share: Share | None, where: str) -> None:
    if share is None:
        return
    names = getattr(getattr(share, "mesh", None), "axis_names", None)
    if names is None:
        raise ValueError(f"{where}: share must be Share(mesh, axis), got {core.show(share)}.")
    wanted = (share.axis,) if isinstance(share.axis, str) else share.axis
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise ValueError(
            f"{where}: share has the axis {share.axis!r}, and the mesh has the axes {list(names)}."
        )


@functools.partial(jax.jit, static_argnums=0)
def together(
    program: Any, numbers: Any, gs: list[Array], ps: list[Array] | None, slots: list[Slots]
) -> list[tuple[Array, Slots]]:
    """The rule on all matrices of one shape, stacked; in float32 or wider."""
    rule, static, layouts, like_leaf, how = program
    traced, t = numbers
    h = namespace(static, traced)
    stacked_g = _stacked([m.stack(widen(g)) for (m, _), g in zip(layouts, gs, strict=True)])
    stacked_p = None
    if ps is not None:
        stacked_p = _stacked([m.stack(widen(p)) for (m, _), p in zip(layouts, ps, strict=True)])
    columns = [
        _stacked(
            [
                m.stack(widen(s)) if like else m.opened(s)
                for (m, _), s in zip(layouts, column, strict=True)
            ]
        )
        for like, column in zip(like_leaf, zip(*slots, strict=True), strict=True)
    ]

    def one(g: Array, s: Slots, p: Array | None) -> tuple[Array, Slots]:
        u, new = rule(g, tuple(s), p, h)
        if jnp.shape(u) != g.shape or [jnp.shape(x) for x in new] != [x.shape for x in s]:
            raise ValueError(
                f"the rule {rule.__qualname__} must return an update of the shape {g.shape} and "
                f"slots of the shapes {[x.shape for x in s]}; got {jnp.shape(u)} and "
                f"{[jnp.shape(x) for x in new]}."
            )
        return u, tuple(new)

    us, new = _run(one, h, t, how, (stacked_g, tuple(columns), stacked_p))
    made = []
    places = _places([m.shape[0] for m, _ in layouts], [*jax.tree.leaves(numbers), *gs])
    for (m, shape), at, g, old in zip(layouts, places, gs, slots, strict=True):
        taken = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=at, slice_size=m.shape[0]
        )
        mine = tuple(
            (m.unstack(taken(x), shape) if like else m.kept(taken(x))).astype(o.dtype)
            for like, x, o in zip(like_leaf, new, old, strict=True)
        )
        made.append((_placed(m.unstack(taken(us), shape).astype(g.dtype), g), mine))
    return made


def _places(counts: list[int], arrays: list[Array]) -> list[Any]:
    """Where in the stack each leaf begins.

    XLA compiles one kernel for all leaves of a shape if it does not know these numbers, and one for
    each leaf if it does, which takes ten times as long. So they are what they are unless a value of
    the run is larger than infinity.
    """
    places = [sum(counts[:i]) for i in range(len(counts))]
    value = next((x for x in arrays if jnp.issubdtype(x.dtype, jnp.number)), None)
    if len(counts) == 1 or value is None or not value.size:
        return places
    never = value.ravel()[0].real.astype(jnp.float32) > jnp.inf
    chosen: list[Any] = rarely(
        never, lambda: [jnp.int32(0)] * len(places), lambda: list(map(jnp.int32, places)), value
    )
    return chosen


def _placed(u: Array, g: Array) -> Array:
    """`u`, sharded like `g`, which a product does not see to; XLA then removes the choice."""
    return jnp.where(jnp.zeros_like(g, bool), g, u)


def _stacked(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _run(one: Callable[..., Any], h: Numbers, t: Any, how: How, stacks: tuple[Any, ...]) -> Any:
    """`one` for each of the stacked matrices, in chunks, and each device its share of them."""

    def some(t: Any, *stacks: Any) -> Any:
        if how.gather is not None:
            gather, (gs, _, ps) = how.gather, stacks
            slots = _each(lambda g, s, p: tuple(gather(g, s, p, h)), how.chunk, stacks)
            return _each(one, how.chunk, (gs, _renewed(slots, h, t, how), ps))
        us, new = _each(one, how.chunk, stacks)
        return us, new if how.renew is None else _renewed(new, h, t, how)

    if how.share is None:
        return some(t, *stacks)
    count = stacks[0].shape[0]
    missing = -count % how.share.size
    padded = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)]), stacks
    )
    whole, parts = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(how.share.axis)
    shared = jax.shard_map(
        some, mesh=how.share.mesh, in_specs=(whole, *[parts] * len(stacks)), out_specs=parts
    )
    made = shared(t, *how.share.placed(padded, parts))
    return jax.tree.map(lambda x: x[:count], how.share.placed(made, whole))


def _each(one: Callable[..., Any], chunk: int | None, stacks: Any) -> Any:
    if chunk is None:
        return jax.vmap(one)(*stacks)
    return jax.lax.map(lambda xs: one(*xs), stacks, batch_size=chunk)


def _renewed(slots: Slots, h: Numbers, t: Array, how: How) -> Slots:
    """What is done in the first step for all matrices, and then in every k-th for all of them, or
    in each step for a k-th part. Under a conditional of its own even if `t` is one of many."""
    count, phase = slots[0].shape[0], (t - how.first) % how.every
    staggered = how.staggered and how.every > 1
    now = phase < min(count, how.every) if staggered else phase == 0

    def done(fn: Any, slots: Slots) -> Slots:
        return tuple(_each(lambda *s: tuple(fn(s, h)), how.chunk, slots))

    def start() -> Slots:
        return done(how.start or how.renew, slots)

    def renew() -> Slots:
        if not staggered:
            return tuple(
                jax.tree.map(functools.partial(choose, now), done(how.renew, slots), slots)
            )
        chosen = phase + how.every * jnp.arange(-(-count // how.every))  # some may not be there
        some = tuple(jnp.take(x, chosen, axis=0, mode="clip") for x in slots)
        pairs = zip(slots, done(how.renew, some), strict=True)
        return tuple(x.at[chosen].set(y, mode="drop") for x, y in pairs)

    made: Slots = rarely(
        now | (t == 0), lambda: either(t == 0, start, renew, slots), lambda: slots, slots
    )
    return made
