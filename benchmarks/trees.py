"""The parameters of the benchmarks: fixed trees of float32 arrays, so that results compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Shapes = dict[str, dict[str, tuple[int, ...]]]


def blocks(quick: bool) -> Shapes:
    """Four transformer blocks of width 512: 40 leaves, 12,597,248 parameters."""
    return {f"block_{i}": _block(64 if quick else 512) for i in range(4)}


def _block(d: int) -> dict[str, tuple[int, ...]]:
    return {
        "query": (d, d),
        "key": (d, d),
        "value": (d, d),
        "out": (d, d),
        "up": (d, 4 * d),
        "up_bias": (4 * d,),
        "down": (4 * d, d),
        "down_bias": (d,),
        "attention_norm": (d,),
        "mlp_norm": (d,),
    }


def thousand(quick: bool) -> Shapes:
    """1,000 small leaves of ten shapes, for costs per leaf instead of per element."""
    shapes = [(8,), (16,), (32,), (64,), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32), (4, 8, 8)]
    layer = {f"leaf_{i}": shape for i, shape in enumerate(shapes)}
    layer |= {"query": layer.pop("leaf_6"), "key": layer.pop("leaf_8")}  # which qk_clip looks for
    return {f"layer_{i:02d}": dict(layer) for i in range(5 if quick else 100)}


def wide(quick: bool) -> Shapes:
    """Two transformer blocks of width 2048: 20 leaves, 100,700,160 parameters.

    Matrices of 16 and 64 MiB, which no cache of an accelerator keeps between two steps.
    """
    return {f"block_{i}": _block(64 if quick else 2048) for i in range(2)}


def thin(blocks: int) -> Callable[[bool], Shapes]:
    """Transformer blocks of width 128, for compilers that take minutes for a larger matrix."""
    return lambda quick: {f"block_{i}": _block(64 if quick else 128) for i in range(blocks)}


def deep(quick: bool) -> Shapes:
    """Eight transformer blocks of width 1024: 80 leaves, for a mesh."""
    return {f"block_{i}": _block(64 if quick else 1024) for i in range(8)}


def narrow(quick: bool) -> Shapes:
    """One transformer block of width 512, to see whether it compiles."""
    return {"block": _block(64 if quick else 512)}


def small(quick: bool) -> Shapes:
    """1,000 leaves of 32×32, for the number of kernels."""
    return {
        f"layer_{i:02d}": {f"leaf_{k}": (32, 32) for k in range(10)}
        for i in range(5 if quick else 100)
    }


TREES = {
    "blocks": blocks,
    "thousand": thousand,
    "wide": wide,
    "deep": deep,
    "narrow": narrow,
    "small": small,
    "wide thin": thin(2),
    "deep thin": thin(8),
    "narrow thin": thin(1),
}


def leaves(shapes: Shapes) -> list[tuple[int, ...]]:
    return [shape for layer in shapes.values() for shape in layer.values()]


def size(shapes: Shapes) -> int:
    return sum(int(np.prod(shape)) for shape in leaves(shapes))


def normal(shapes: Shapes, scale: float, seed: int) -> dict[str, dict[str, Any]]:
    """Host arrays with normally distributed entries."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: np.float32(scale) * rng.standard_normal(shape, dtype=np.float32)
            for name, shape in named.items()
        }
        for layer, named in shapes.items()
    }
