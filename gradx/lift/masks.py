"""Which leaves: a tree of marks or a prefix of it, a function that makes one, or `by_path`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gradx import core
from gradx.core import trees as gtree
from gradx.numbers.paths import ByPath


def marks(choice: Any, tree: Any, what: str) -> list[Any]:
    """The mark (a bool, a label) of each leaf: from a tree or prefix, a function, or `by_path`."""
    if isinstance(choice, ByPath):
        choice = choice(tree, f"{what}: by_path")
    elif _is_function(choice):
        choice = choice(tree)
    return gtree.broadcast(choice, tree, what)


def _is_function(choice: Any) -> bool:
    # A tree may be of a class that is callable itself (an Equinox module of bools).
    leaves = jax.tree.leaves(choice)
    return bool(leaves) and all(callable(leaf) for leaf in leaves)


def mask_flags(mask: Any, tree: Any, where: str, name: str = "mask") -> list[bool]:
    """A mask as one bool a leaf.

    Raises:
      ValueError: the mask does not fit the tree, or has a value that is no bool.
    """
    found = marks(mask, tree, f"{where}: {name}")
    flat = gtree.flatten(tree)
    for i, mark in enumerate(found):
        is_bool = np.shape(mark) == () and getattr(mark, "dtype", type(mark)) in (bool, np.bool_)
        if flat.values[i] is not None and (not is_bool or isinstance(mark, jax.core.Tracer)):
            raise ValueError(
                f"{where}: the {name} must be True or False, known before the run, at every leaf; "
                f"at {flat.paths[i]!r} it is {core.show(mark)}."
            )
    return [bool(mark) for mark in found]
