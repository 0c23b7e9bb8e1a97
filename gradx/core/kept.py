"""Copies of a caller's arguments, so that the originals can be changed, donated or deleted."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_UNCHANGING = (type(None), bool, int, float, complex, str, bytes, type, types.FunctionType)


def kept(value: Any) -> Any:
    """A copy that nobody else can change, donate or delete.

    Functions, and objects that are not trees to JAX, are not copied.
    """
    if isinstance(value, (*_UNCHANGING, jax.core.Tracer)):
        return value
    if isinstance(value, optax.GradientTransformation) or hasattr(value, "spec"):
        return value
    if isinstance(value, jax.Array):
        with jax.ensure_compile_time_eval():  # also inside jit it stays an array with a value
            return jnp.array(value, copy=True)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):  # `jax.tree.map` would sort it
        copied = copy.copy(value)
        copied.update({k: kept(v) for k, v in value.items()})
        return copied
    if type(value) is set:
        return set(value)
    if type(value) is tuple or hasattr(value, "_fields"):
        parts = [kept(v) for v in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else tuple.__new__(type(value), parts)
    if isinstance(value, types.GeneratorType | map | filter | zip):
        return [kept(v) for v in value]  # it can be read only once
    if isinstance(value, functools.partial):
        return value
    if jax.tree_util.all_leaves([value]):  # a mapping that JAX does not know becomes a dict
        return {k: kept(v) for k, v in value.items()} if isinstance(value, Mapping) else value
    structure: Any
    parts, structure = jax.tree.flatten(value, is_leaf=lambda x: x is not value)
    return structure.unflatten([kept(part) for part in parts])
