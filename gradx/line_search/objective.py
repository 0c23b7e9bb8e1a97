r"""The objective along a line, \(\eta \mapsto f(\theta + \eta u)\), as a line search sees it.

A line search is called as `update(updates, state, params, value=…, grad=…, value_fn=…, **data)`.
This module checks what it is given, evaluates the objective at a step size, and keeps the last
value and gradient of a search, so that the next step need not calculate them again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Params, State, Updates, ranges
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.suggestions import FoundSeveral, MissingArgument, nearest
from gradx.lift.passes import check_array, widen
from gradx.numbers.sources import Array

__all__ = ["value_and_grad_from_state"]


# ---------------------------------------------------------------- what a search is given


def check_params(params: Params, where: str) -> None:
    """Raises ValueError, with the path, for a leaf that cannot be optimized."""
    flat = gtree.flatten(params)
    for i, p in enumerate(flat.values):
        if p is not None:
            check_array(p, flat, i, where, "parameter")


def check_shape(flat: gtree.Flat, i: int, x: Any, where: str, what: str) -> None:
    """Raises ValueError, with the path, unless `x` has the update's shape."""
    shape = jnp.shape(flat.values[i])
    if x is None or jnp.shape(x) != shape:
        raise ValueError(
            f"{where}: at {flat.paths[i]!r} the update has shape {shape} and the {what} "
            f"{'is None' if x is None else jnp.shape(x)}."
        )


def like(new: Array, old: Any) -> Array:
    """The new array in the dtype of the old one, so that a state keeps its types."""
    return new.astype(jnp.result_type(old))


def real_dtype(params: Params) -> Any:
    """The dtype of the numbers of a search: the widest of the parameters', float32 at least."""
    return jnp.finfo(gtree.wide(*map(jnp.result_type, jax.tree.leaves(params)))).dtype


def data_for(value_fn: Callable[..., Any], extra: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The extra arguments that the objective takes; the others are for other parts of the chain.

    Raises:
      ValueError: one of them looks like a misspelling of an argument that the objective lacks.
    """
    try:
        _, *others = inspect.signature(value_fn).parameters.values()
    except (ValueError, TypeError):  # it has no signature that Python could read
        return dict(extra)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in others):
        return dict(extra)
    named = {p.name: p for p in others if p.kind is not inspect.Parameter.VAR_POSITIONAL}
    lacks = [name for name in named if name not in extra]
    for name in extra:
        near = nearest(name, lacks, cutoff=0.75)
        if name not in named and near is not None:
            raise ValueError(
                f"{where}: the call gives the extra argument {name!r}, which value_fn does not "
                f"take. Did you mean {near!r}?"
            )
    needed = [name for name in lacks if named[name].default is inspect.Parameter.empty]
    if needed:
        raise ValueError(
            f"{where}: value_fn needs {' and '.join(map(repr, needed))} beside the parameters: "
            f"give them as extra arguments, update(…, value_fn=f, {needed[0]}=…)."
        )
    return {name: value for name, value in extra.items() if name in named}


class Point(NamedTuple):
    """The objective at one step size.

    Attributes:
      step: the step size, ().
      value: the objective there, ().
      slope: its derivative along the line, ().
    """

    step: Array
    value: Array
    slope: Array


@dataclass(frozen=True)
class Line:
    """The objective along the updates, as a function of the step size.

    Attributes:
      flat: the updates.
      params: the parameters, by leaf.
      active: which leaves move: those that have an update.
      direction: their updates.
      grads: their gradients where the search begins, in the dtypes and the sense of `jax.grad`.
      start: the objective there.
      objective: the leaves that move -> the value.
      dtype: of all numbers of the search.
      where: for error messages.
    """

    flat: gtree.Flat
    params: list[Any]
    active: list[int]
    direction: list[Array]
    grads: list[Array]
    start: Point
    objective: Callable[[list[Array]], Array]
    dtype: Any
    where: str

    def at(self, step: Array) -> list[Array]:
        """The parameters at a step size, exactly as `apply_updates` will make them."""
        pairs = zip(self.active, self.direction, strict=True)
        return [_moved(self.params[i], u, step) for i, u in pairs]

    def slope(self, grads: Sequence[Array]) -> Array:
        """The derivative along the line, from gradients as `jax.grad` gives them."""
        conjugate = [jnp.conj(g) for g in grads]
        return inner(conjugate, self.direction).astype(self.dtype)

    def scaled(self, step: Array) -> Updates:
        """The updates times the step size."""
        new: list[Any] = [None] * len(self.params)
        for i, u in zip(self.active, self.direction, strict=True):
            new[i] = _scaled(u, step)
        return self.flat.unflatten(new)

    def with_grads(self, old: Updates, grads: Sequence[Array]) -> Updates:
        """A tree of gradients for the state; leaves that do not move keep what they have."""
        new = gtree.flatten_like(self.flat, old, "the state's grad", self.where)
        for i, g in zip(self.active, grads, strict=True):
            new[i] = jnp.asarray(g).astype(new[i].dtype)
        return self.flat.unflatten(new)


def inner(xs: Sequence[Array], ys: Sequence[Array]) -> Array:
    """The inner product of two lists of arrays as real vectors, in float32 or wider."""
    products = [_inner(x, y) for x, y in zip(xs, ys, strict=True)]
    dtype = gtree.wide(*(x.dtype for x in products))
    return sum((x.astype(dtype) for x in products), start=jnp.zeros((), dtype))


def nothing(xs: Sequence[Array], dtype: Any) -> Array:
    """The number 0, which inside `shard_map` varies over the devices if the arrays do.

    A loop there has to begin with numbers of the type that it ends with.
    """
    return sum((_nothing(x).astype(dtype) for x in xs), start=jnp.zeros((), dtype))


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _nothing(x: Array) -> Array:
    return jnp.sum(jnp.where(False, widen(x).real, 0))


@jax.jit
def _inner(x: Array, y: Array) -> Array:
    return gtree.dot(widen(x), widen(y))


@jax.jit
def _moved(p: Array, u: Array, step: Array) -> Array:
    return (p + _scaled(u, step)).astype(p.dtype)


@jax.jit
def _scaled(u: Array, step: Array) -> Array:
    wide = widen(u)
    # A step of 0 is taken where there is no other; the direction may be infinite then.
    return jnp.where(step == 0, 0, wide * step.astype(wide.real.dtype)).astype(u.dtype)


def line_search(
    where: str,
    dtype: Any,
    updates: Updates,
    params: Params | None,
    value: Any,
    grad: Any,
    value_fn: Any,
    extra: Mapping[str, Any],
) -> Line:
    """Checks what `update` was given and makes the line.

    Raises:
      ValueError: something is missing, is of the wrong kind, or does not fit the updates.
    """
    if params is None:
        raise ValueError(f"{where}: needs the parameters: call update(updates, state, params, …).")
    required = {"value": value, "grad": grad, "value_fn": value_fn}
    missing = [name for name, x in required.items() if x is None]
    if missing:
        raise MissingArgument(
            f"{where}: needs the extra argument{'s' * (len(missing) > 1)} "
            f"{' and '.join(map(repr, missing))}: call update(grads, state, params, value=value, "
            f"grad=grads, value_fn=f, **data), with value, grads = jax.value_and_grad(f)(params, "
            f"**data) or value_and_grad_from_state(f)(params, state=state, **data)."
        )
    if not callable(value_fn):
        raise ValueError(f"{where}: value_fn must be a function, got {core.show(value_fn)}.")
    if not ranges.is_real(value):
        raise ValueError(f"{where}: value must be one real number, got {core.show(value)}.")
    if _hides(updates) or _hides(params):
        raise ValueError(
            f"{where}: masked, partition or freeze hides some parameters, so that value_fn cannot "
            f"be called. A line search comes after them, at the end of the whole chain, as in "
            f"chain(freeze(mask, sgd(1.0)), scale_by_zoom_linesearch(15))."
        )
    flat = gtree.flatten(updates)
    flat_params = gtree.flatten_like(flat, params, "the parameters", where)
    flat_grads = gtree.flatten_like(flat, grad, "the extra argument grad", where)
    active = [i for i, u in enumerate(flat.values) if u is not None]
    for i in active:
        check_array(flat.values[i], flat, i, where, "update")
        check_shape(flat, i, flat_params[i], where, "parameter")
        check_shape(flat, i, flat_grads[i], where, "gradient")
    data = data_for(value_fn, extra, where)
    direction = [jnp.asarray(flat.values[i]) for i in active]
    grads = [jnp.asarray(flat_grads[i]) for i in active]
    dtype = gtree.wide(dtype, jnp.result_type(value))

    def objective(moving: list[Array]) -> Array:
        leaves = list(flat_params)
        for i, p in zip(active, moving, strict=True):
            leaves[i] = p
        loss = value_fn(flat.unflatten(leaves), **data)
        if not ranges.is_real(loss):
            raise ValueError(
                f"{where}: value_fn must return one real number, got {core.show(loss)}."
            )
        return jnp.asarray(loss, dtype)

    # The gradients that transformations are given are the conjugates of `jax.grad`'s.
    zero = nothing([*direction, *grads, *(flat_params[i] for i in active)], dtype)
    start = Point(
        zero,
        jnp.asarray(value, dtype) + zero,
        inner(grads, direction).astype(dtype) + zero,
    )
    pairs = zip(active, grads, strict=True)
    raw = [jnp.conj(g).astype(jnp.result_type(flat_params[i])) for i, g in pairs]
    return Line(flat, flat_params, active, direction, raw, start, objective, dtype, where)


def _hides(tree: Any) -> bool:
    hidden = optax.MaskedNode
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, hidden))
    return any(isinstance(x, hidden) for x in leaves)


# ---------------------------------------------------------------- what a search leaves behind


@checked
def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., tuple[Array, Updates]]:
    r"""`jax.value_and_grad`, but both come from the state, where a line search has left them.

    A line search ends by calculating the objective at the parameters after the step, so the next
    step need not calculate it again. In the first step, or if the value in the state is not finite,
    it is calculated.

    Args:
      value_fn: `(params, *args, **kwargs) -> value`, the objective, a scalar.

    Returns:
      A function `(params, *args, state=state, **kwargs) -> (value, grads)`. It assumes that the
      parameters are those at which the search ended, and that the data are the same: with a new
      batch in each step, or with parameters changed since, use `jax.value_and_grad`. Gradients have
      the parameters' dtypes. Those of complex parameters are as from `jax.grad`: conjugate them for
      `update`.

    Raises:
      ValueError: when it is called: the state has no line search, more than one, or one that does
        not keep the gradient.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> def f(x):
      ...     return jnp.sum(x**2)
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.scale_by_zoom_linesearch(15))
      >>> value_and_grad = gradx.value_and_grad_from_state(f)
      >>> x = jnp.array([1.0, 2.0])
      >>> state = tx.init(x)
      >>> for _ in range(2):
      ...     value, grads = value_and_grad(x, state=state)
      ...     updates, state = tx.update(grads, state, x, value=value, grad=grads, value_fn=f)
      ...     x = gradx.apply_updates(x, updates)
      ...     print(value)
      5.0
      0.0
    """

    def value_and_grad(
        params: Params, *args: Any, state: State, **kwargs: Any
    ) -> tuple[Array, Updates]:
        search = _left_behind(state)
        value = jnp.asarray(search.value)
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), search.grad, params)

        def calculated() -> tuple[Array, Updates]:
            new, new_grads = jax.value_and_grad(value_fn)(params, *args, **kwargs)
            return new.astype(value.dtype), new_grads

        result: tuple[Array, Updates] = jax.lax.cond(
            jnp.isfinite(value), lambda: (value, grads), calculated
        )
        return result

    return value_and_grad


def _left_behind(state: State) -> Any:
    """The one part of a state that has a value and a gradient. (Parameters may have such names.)"""
    where = "value_and_grad_from_state"
    found = [x for x in jax.tree.leaves(state, is_leaf=_is_search) if _is_search(x)]
    if len(found) != 1:
        error_class = FoundSeveral if found else ValueError
        raise error_class(
            f"{where}: the state must have one line search in it, as that of lbfgs has; it has "
            f"{len(found) or 'none'}."
        )
    if found[0].grad is None:
        raise ValueError(
            f"{where}: the line search does not keep the gradient: make it with store_grad=True."
        )
    return found[0]


def _is_search(x: Any) -> bool:
    return isinstance(x, tuple) and {"value", "grad"} <= set(getattr(x, "_fields", ()))
