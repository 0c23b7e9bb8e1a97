"""How values read in a repr and in an error: as the code that would make them, kept short."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def show(value: Any) -> str:
    """How an argument reads inside a repr: as the code that would make it, kept short."""
    if isinstance(value, optax.GradientTransformation) and not hasattr(value, "spec"):
        return foreign_name(value)
    if isinstance(value, jax.core.Tracer):
        return f"<traced {value.dtype}{list(value.shape)}>"
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        gone = isinstance(value, jax.Array) and value.is_deleted()
        if value.ndim == 0 and not gone and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return repr(value.item())
        return f"<{value.dtype}{list(value.shape)}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple) and not hasattr(value, "spec"):
        names = getattr(value, "_fields", None)
        if names is not None:
            pairs = zip(names, value, strict=True)
            return f"{type(value).__name__}({', '.join(f'{k}={show(v)}' for k, v in pairs)})"
        inner = ", ".join(show(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if is_dtype(value):
        return str(jnp.dtype(value).name)
    if isinstance(value, functools.partial):
        filled = [*map(show, value.args), *(f"{k}={show(v)}" for k, v in value.keywords.items())]
        return f"partial({', '.join([show(value.func), *filled])})"
    if callable(value) and not hasattr(value, "spec"):
        return getattr(value, "__qualname__", type(value).__name__).replace("<locals>.", "")
    return repr(value)


def is_dtype(value: Any) -> bool:
    """A dtype in any of its forms: ``jnp.bfloat16``, ``np.float32``, ``np.dtype("float32")``."""
    scalar_type = isinstance(value, type) and issubclass(value, np.generic)
    return isinstance(value, np.dtype) or scalar_type or type(value) is type(jnp.bfloat16)


def foreign_name(tx: optax.GradientTransformation) -> str:
    """How a transformation without a spec reads: by where its `init` was written."""
    init = tx.init
    module = getattr(init, "__module__", "").partition(".")[0]
    name = getattr(init, "__qualname__", type(init).__name__).partition(".<locals>")[0]
    return f"{module}.{name}(…)" if module else f"{name}(…)"
