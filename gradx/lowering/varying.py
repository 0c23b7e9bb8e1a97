"""The mapped axes of `shard_map` that an array varies over; branches must agree in them."""

from __future__ import annotations

from typing import Any

import jax


def varies_over(x: Any) -> frozenset[Any]:
    """The mapped axes of `shard_map` that an array is not the same on."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)
    # Before JAX 0.10 the axes were an attribute of the array's type itself.
    return frozenset(getattr(kind, "vma", None) or getattr(manual, "varying", None) or ())


def vary(x: jax.Array, axes: frozenset[Any]) -> jax.Array:
    """The same array, of a type that varies over these axes."""
    missing = tuple(axes - varies_over(x))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return jax.lax.pvary(x, missing)  # type: ignore[attr-defined]  # what JAX 0.8 calls it
