"""What a state begins with where only the shapes of the parameters are known.

Who plans a large run has shapes, dtypes and shardings before there are any values. Most states
begin with zeros, whatever the values are; a copy of the parameters has to wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradx.core import trees as gtree

# `(params, state) -> parts`, as of `Transform`; this module stands below it.
Parts = Callable[[Any, Any], Sequence[Any]] | None


def begun(init: Callable[[Any], Any], params: Any, who: str, parts: Parts) -> Any:
    """`init(params)`, where parameters may be shapes (`jax.ShapeDtypeStruct`) without values.

    A first look, at the program of `init`, tells whether a value is read. If none is, zeros of
    the same shapes, dtypes and shardings stand in for the values, so every array of the state is
    where it would be for parameters that are there.

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
    """A random key, say, is nobody's to optimize: its shape stays what it is."""
    is_number = isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.number)
    return bool(is_number)


def _reads(jaxpr: Any, given: Sequence[bool]) -> list[bool]:
    """Which results of a program depend on the arguments that have True."""
    depends = dict(zip(jaxpr.invars, given, strict=True))

    def of(v: Any) -> bool:
        return not hasattr(v, "val") and depends.get(v, False)  # a literal has a value

    for eqn in jaxpr.eqns:
        read = [of(v) for v in eqn.invars]
        made = [any(read)] * len(eqn.outvars)
        if eqn.primitive.name in ("jit", "pjit"):
            made = _reads(eqn.params["jaxpr"].jaxpr, read)
        depends |= dict(zip(eqn.outvars, made, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _culprit(who: str, parts: Parts, params: Any, flags: Any) -> tuple[str, str]:
    """The innermost part whose state reads a value, and where in that state."""
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
