"""Trees of parameters: their leaves, their paths, and errors that name the place.

`None` counts as a leaf here: Equinox puts it where there is nothing to train. Optax's `MaskedNode`
is an empty container and has no leaves, as everywhere in JAX.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from optax import MaskedNode

Array = jax.Array
P = ParamSpec("P")
T = TypeVar("T")


def _is_none(x: Any) -> bool:
    return x is None


def _is_none_or_masked(x: Any) -> bool:
    return x is None or isinstance(x, MaskedNode)


@dataclass(frozen=True)
class Flat:
    """A flattened tree; its paths are made only when they are asked for."""

    tree: Any
    values: list[Any]
    treedef: Any
    is_leaf: Callable[[Any], bool] = _is_none

    @functools.cached_property
    def paths(self) -> list[str]:
        return [path_name(path) for path in key_paths(self.tree, self.is_leaf)[0]]

    def unflatten(self, values: Sequence[Any]) -> Any:
        return self.treedef.unflatten(values)


def is_number(x: Any) -> bool:
    """Whether a leaf is a number or an array of numbers or bools: no key, no text, no `float0`."""
    if not hasattr(x, "dtype"):
        return isinstance(x, int | float | complex)
    return jnp.issubdtype(x.dtype, jnp.number) or jnp.issubdtype(x.dtype, jnp.bool_)


def is_inexact(x: Any) -> bool:
    """Whether a leaf can be optimized: real or complex floating-point, or a Python number."""
    if not hasattr(x, "dtype"):
        return isinstance(x, int | float | complex) and not isinstance(x, bool)
    return jnp.issubdtype(x.dtype, jnp.inexact)


def picked(
    tree: Any, chosen: Callable[[Any], bool]
) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The chosen leaves, and a function that rebuilds the tree with others in their places."""
    structure: Any
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if chosen(x)]

    def back(values: Sequence[Any]) -> Any:
        new = list(leaves)
        for i, x in zip(places, values, strict=True):
            new[i] = x
        return structure.unflatten(new)

    return [leaves[i] for i in places], back


def map_numbers(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`fn` at the leaves that are numbers; the others stay."""
    return jax.tree.map(lambda x, *others: fn(x, *others) if is_number(x) else x, tree, *rest)


def flatten(tree: Any) -> Flat:
    """Flattens a tree, `None` leaves included."""
    values, treedef = jax.tree.flatten(tree, is_leaf=_is_none)
    return Flat(tree, values, treedef)


def flatten_like(
    flat: Flat, other: Any, what: str, where: str, like: str = "the gradients"
) -> list[Any]:
    """The subtrees of `other` at the leaves of `flat`.

    Args:
      flat: the tree that has the leaves.
      other: a tree of the same structure, perhaps with further trees in place of leaves.
      what: what `other` is to the user, in the plural: "the parameters".
      where: who asks.
      like: what `flat` is to the user.

    Raises:
      ValueError: `other` has another structure.
    """
    try:
        return list(flat.treedef.flatten_up_to(other))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: {_mismatch(flat, other, what, like)}") from error


def _mismatch(flat: Flat, other: Any, what: str, like: str) -> str:
    seen, found = _with_masked(flat.tree), _with_masked(other)
    if jax.tree_util.treedef_is_leaf(found.treedef):
        kinds = type(flat.tree).__name__, type(other).__name__
        return f"{like} are a tree, a {kinds[0]}, but {what} a {kinds[1]}."
    here, there = seen.paths, found.paths
    if hasattr(other, "fast") and hasattr(other, "slow") and not hasattr(flat.tree, "fast"):
        return (
            f"{what} are those of lookahead, fast and slow, but {like} are like the fast ones. So "
            f"nothing can stand around lookahead: put it inside, lookahead(chain(…), …)."
        )
    missing = [p for p in here if not any(q == p or q.startswith(f"{p}/") for q in there)]
    extra = [q for q in there if not set(beginnings(q)) & set(here)]
    hidden = [p for p, x in zip(here, seen.values, strict=True) if isinstance(x, MaskedNode)]
    if not missing and not extra and hidden:
        return f"a mask hides {listed(hidden)} in {like}, but not all of this in {what}."
    if not missing and not extra:
        return (
            f"{like} and {what} have the same leaves in different containers{_where(flat, found)}."
        )
    sentences = [f"{like} and {what} must be trees with the same leaves."]
    sentences += [f"Only in {like}: {listed(missing)}."] * bool(missing)
    sentences += [f"Only in {what}: {listed(extra)}."] * bool(extra)
    return " ".join(sentences)


def _with_masked(tree: Any) -> Flat:
    """The tree, flattened so that a leaf that a mask hides has a path too."""
    values, treedef = jax.tree.flatten(tree, is_leaf=_is_none_or_masked)
    return Flat(tree, values, treedef, _is_none_or_masked)


def _where(flat: Flat, other: Flat) -> str:
    found = _differing(flat.treedef, other.treedef)
    if found is None or not flat.paths[found[0] :]:
        return ""
    return f": {found[1]} and {found[2]}, first around {flat.paths[found[0]]!r}"


def beginnings(path: str) -> list[str]:
    """All paths that lead there: of a/b/c these are a, a/b and a/b/c."""
    keys = path.split("/")
    return ["/".join(keys[: i + 1]) for i in range(len(keys))]


def _differing(here: Any, there: Any, begin: int = 0) -> tuple[int, str, str] | None:
    """Where containers first differ: the index of their first leaf, and their class names."""
    if jax.tree_util.treedef_is_leaf(here):
        return None  # anything may be in its place
    parts = here.children(), there.children()
    names = [getattr((d.node_data() or (None,))[0], "__name__", "an array") for d in (here, there)]
    if names[0] != names[1] or len(parts[0]) != len(parts[1]):
        return begin, names[0], names[1]
    for one, other in zip(*parts, strict=True):
        if (found := _differing(one, other, begin)) is not None:
            return found
        begin += one.num_leaves
    return None


def key_paths(tree: Any, is_leaf: Callable[[Any], bool]) -> tuple[list[Any], bool]:
    """The leaves' key paths without the `.value` of NNX variables, and whether any had one."""
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    keys = [path for path, _ in with_paths]
    siblings = Counter(path[:-1] for path in keys)
    plain = [path if siblings[path[:-1]] > 1 else _plain(path) for path in keys]
    return plain, plain != keys


def listed(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(repr(n) for n in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def path_name(path: Sequence[Any]) -> str:
    """A key path as one readable string: ``encoder/layers/0/kernel``.

    Example:
      >>> import jax
      >>> path_name(jax.tree_util.tree_flatten_with_path({"a": [1]})[0][0][0])
      'a/0'
    """
    return "/".join(key_name(key) for key in path)


def _plain(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path without the `.value` of a Flax NNX variable, as in a plain dictionary."""
    alone = len(path) > 1 and getattr(path[-1], "name", None) == "value"
    return path[:-1] if alone else path


def key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def paths(tree: Any) -> list[str]:
    """The paths of a tree's leaves, in flattening order; `None` leaves included.

    Args:
      tree: any pytree.

    Example:
      >>> import gradx
      >>> gradx.core.trees.paths({"dense": {"kernel": 1.0, "bias": 0.0}})
      ['dense/bias', 'dense/kernel']
    """
    return flatten(tree).paths


def array_paths(flat: Flat) -> list[str]:
    """The paths of the leaves that are not `None`."""
    return [path for path, x in zip(flat.paths, flat.values, strict=True) if x is not None]


def map_with_path(fn: Any, tree: Any) -> Any:
    """`fn(path, leaf)` at every leaf, the path as one string.

    Args:
      fn: called with the leaf's path and value; its results become the leaves.
      tree: any pytree; `None` leaves stay.

    Example:
      >>> import gradx
      >>> gradx.core.trees.map_with_path(lambda path, x: path, {"a": {"b": 1.0}})
      {'a': {'b': 'a/b'}}
    """
    flat = flatten(tree)
    new = [
        None if x is None else fn(path, x) for path, x in zip(flat.paths, flat.values, strict=True)
    ]
    return flat.unflatten(new)


def broadcast(
    prefix: Any, tree: Any, what: str, is_leaf: Callable[[Any], bool] = _is_none
) -> list[Any]:
    """The values of a prefix tree (a mask, labels) at every leaf of `tree`.

    If one of the two has variables of Flax NNX, leaves are matched by path alone: a `State` of
    `Param`s of bools is a mask for plain dictionaries, and the other way round.

    Raises:
      ValueError: `prefix` is no prefix of `tree`.
    """
    flat = flatten(tree)
    marks = jax.tree.map(lambda _: _Mark(), flat.unflatten([0] * len(flat.values)))
    try:
        jax.tree.map(_fill, prefix, marks, is_leaf=is_leaf)
    except ValueError as error:
        found = _by_path(prefix, flat, is_leaf)
        if found is not None:
            return found
        told = _unmatched(flat.paths, flatten(prefix).paths) or f" {error}"
        raise ValueError(
            f"{what} must be a tree of the parameters' structure or a prefix of it.{told}"
        ) from error
    return [mark.value for mark in jax.tree.leaves(marks)]


def _unmatched(here: Sequence[str], prefix: Sequence[str]) -> str:
    """The leaves that a prefix tree says nothing about, and its leaves that are not there."""
    missing = [p for p in here if not set(beginnings(p)) & set(prefix)]
    unknown = [q for q in prefix if not any(q in beginnings(p) for p in here)]
    told = f" Missing: {listed(missing)}." * bool(missing)
    return told + f" Unknown: {listed(unknown)}." * bool(unknown)


def _by_path(prefix: Any, flat: Flat, is_leaf: Callable[[Any], bool]) -> list[Any] | None:
    """Each leaf's value, by the beginning of its path; None without NNX or if they do not match."""
    given, nnx_given = key_paths(prefix, is_leaf)
    leaves, nnx = key_paths(flat.tree, _is_none)
    if not (nnx or nnx_given):
        return None
    names = [tuple(map(key_name, path)) for path in given]
    values = dict(zip(names, jax.tree.leaves(prefix, is_leaf=is_leaf), strict=True))
    begins = []
    for path in leaves:
        steps = tuple(map(key_name, path))
        begins.append(next((b for n in range(len(steps) + 1) if (b := steps[:n]) in values), None))
    return [values[b] for b in begins if b is not None] if set(begins) == set(values) else None


class _Mark:
    value: Any = None


def _fill(value: Any, subtree: Any) -> None:
    for mark in jax.tree.leaves(subtree):
        mark.value = value


# ---------------------------------------------------------------- arithmetic


def abs_sq(x: Array) -> Array:
    r"""The squared absolute value, \(|x|^2\), real also where `x` is complex.

    Args:
      x: an array of any shape, real or complex.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.core.trees.abs_sq(jnp.array([3.0, 3 + 4j]))
      Array([ 9., 25.], dtype=float32)
    """
    if jnp.iscomplexobj(x):
        return x.real * x.real + x.imag * x.imag
    return x * x


def finite_sq(x: Array) -> Array:
    """`abs_sq`, at most the largest finite number, for rules that divide by squares."""
    square = abs_sq(x)
    return jnp.minimum(square, jnp.finfo(square.dtype).max)


def dot(x: Array, y: Array) -> Array:
    r"""The inner product of two arrays as real vectors, \(\mathrm{Re} \sum_i \bar x_i y_i\).

    A sum of products: `jnp.vdot` would store both arrays first.
    """
    return jnp.sum(products(x, y))


def products(x: Array, y: Array) -> Array:
    """The real products that `dot` adds up."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return x.real * y.real + x.imag * y.imag
    return x * y


@functools.cache
def wide(*dtypes: Any) -> Any:
    """The dtype to calculate in with arrays of these dtypes: the widest, no narrower than float32.

    It is complex if one of them is. Integers and bools do not count. JAX's own promotion can be
    switched off (`jax_numpy_dtype_promotion`), and it has none for 8-bit floats.
    """
    inexact = [d for d in dtypes if jnp.issubdtype(d, jnp.inexact)]
    double = any(jnp.finfo(d).bits > 32 for d in inexact)
    if any(jnp.issubdtype(d, jnp.complexfloating) for d in inexact):
        return jnp.dtype(jnp.complex128 if double else jnp.complex64)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def mixing(work: Callable[P, T]) -> Callable[P, T]:
    """Lets a function multiply real numbers by complex arrays, also where promotion is off.

    JAX has no other way to write their product then.
    """

    @functools.wraps(work)
    def mixed(*args: P.args, **kwargs: P.kwargs) -> T:
        arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)]
        if not any(map(jnp.iscomplexobj, arrays)):
            return work(*args, **kwargs)
        with jax.numpy_dtype_promotion("standard"):
            return work(*args, **kwargs)

    return mixed


def as_number(x: Any) -> Any:
    """A Python number as an array of floats: 3 is 3.0 here, as in Optax. All else stays.

    Under `jit` a Python number is a scalar that is weakly typed.
    """
    weak = isinstance(x, jax.Array) and x.shape == () and getattr(x, "weak_type", False)
    if isinstance(x, bool) or not (weak or isinstance(x, int | float | complex)):
        return x
    return jnp.asarray(x, complex if jnp.iscomplexobj(x) else float)


def sum_of_squares(tree: Any) -> Array:
    """The sum of all squared absolute values in a tree, added up in float32 or wider."""
    squares = [square(jnp.asarray(x)) for x in jax.tree.leaves(tree)]
    kind = wide(*(x.dtype for x in squares))
    total: Array = sum((x.astype(kind) for x in squares), start=jnp.zeros((), kind))
    return total


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def square(x: Array) -> Array:
    return jnp.sum(abs_sq(x.astype(wide(x.dtype))))
