"""Makes a state from the shapes of the parameters alone.

A large run is planned with shapes, dtypes and shardings, before there are any values. Most states
begin with zeros, whatever the values are. A state that copies the parameters needs the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradx.core import trees as gtree

# `(params, state) -> parts`, as in `Transform`, which imports this module.
Parts = Callable[[Any, Any], Sequence[Any]] | None


def begun(init: Callable[[Any], Any], params: Any, who: str, parts: Parts) -> Any:
    """`init(params)`, where parameters may be shapes (`jax.ShapeDtypeStruct`) without values.

    The program of `init` is traced first, to see whether it reads a value. If it reads none, zeros
    of the same shapes, dtypes and shardings stand in for the values, so that every array of the
    state has the sharding that it would have with values.

    Raises:
      ValueError: an array of the state depends on values that are not there.
    """
    shapes, with_values = gtree.picked(params, _is_shape)
    if not shapes:
        return init(params)
    bare = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes]
    program, state = jax.make_jaxpr(lambda xs: init(with_values(xs)), return_shape=True)(bare)
    reads = _reads(program.jaxpr, [True] * len(shapes))
    if any(reads):
        flags = jax.tree.unflatten(jax.tree.structure(state), reads)
        raise _no_values(*_culprit(who, parts, params, flags))
    return init(with_values([jnp.zeros(x.shape, x.dtype, device=x.sharding) for x in shapes]))


def _is_shape(x: Any) -> bool:
    """Whether it is the shape of numbers. That of a random key, say, stays as it is."""
    is_number = isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.number)
    return bool(is_number)


def _reads(jaxpr: Any, marked: Sequence[bool]) -> list[bool]:
    """Which results of a program depend on the arguments that are marked True."""
    depends = dict(zip(jaxpr.invars, marked, strict=True))

    def of(v: Any) -> bool:
        return not hasattr(v, "val") and depends.get(v, False)  # a literal has a value

    for eqn in jaxpr.eqns:
        read = [of(v) for v in eqn.invars]
        results = [any(read)] * len(eqn.outvars)
        if eqn.primitive.name in ("jit", "pjit"):
            results = _reads(eqn.params["jaxpr"].jaxpr, read)
        depends |= dict(zip(eqn.outvars, results, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _culprit(who: str, parts: Parts, params: Any, flags: Any) -> tuple[str, str]:
    """The innermost part whose state reads a value, and the path in that state."""
    for part in parts(params, flags) if parts is not None else ():
        if any(jax.tree.leaves(part.state)):
            spec = getattr(part.transform, "spec", None)
            inner = getattr(part.transform, "parts", None)
            return _culprit(who if spec is None else spec.name, inner, part.params, part.state)
    flat = gtree.flatten(flags)
    return who, next(path for path, read in zip(flat.paths, flat.values, strict=True) if read)


def _no_values(who: str, path: str) -> ValueError:
    return ValueError(
        f"{who}: init was given shapes without values (jax.ShapeDtypeStruct), but {path!r} in its "
        f"state begins with values of the parameters. Give init the parameters themselves; the "
        f"shapes of the state are jax.eval_shape(tx.init, params)."
    )
