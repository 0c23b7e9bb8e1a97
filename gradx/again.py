"""An update calculated a second time, where keeping the first one would cost an array.

Whoever scales an array by its own norm reads it twice, with a reduction in between, so XLA puts it
aside: Adam's update would fill a temporary as large as the parameters, written once and read twice.
To form it once more, from the new state that is in memory anyway, costs less. XLA must not see that
both are the same, or it makes them one: so the second calculation begins behind a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx.gate import evaluate
from gradx.mapped import varies_over

Array = jax.Array


class Done(NamedTuple):
    """A rule that has been applied to a leaf: what it was given, and its slots afterwards."""

    rule: Callable[[Array, Any, Any, Any], tuple[Array, Any]]
    g: Array
    old: Any
    p: Any
    h: Any
    new: Any


def hidden(tree: Any, reading: int) -> Any:
    """The same arrays, which XLA takes for others; what is no array stays.

    All stand behind one barrier, because XLA makes equal barriers one. Were the numbers alone
    behind theirs, the leaves would share it, and each number become an array in memory for all of
    them. For the same reason the second reading of a leaf has a barrier before its barrier. But
    inside `shard_map` a barrier lets all that is behind it vary over the axes of any of it.
    """
    arrays = _arrays(tree)
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        alike.setdefault(varies_over(x), []).append(i)
    for members in alike.values():
        behind = [arrays[i] for i in members]
        for _ in range(reading):
            behind = jax.lax.optimization_barrier(behind)
        for i, x in zip(members, behind, strict=True):
            arrays[i] = x
    return _with_arrays(tree, arrays)


def _arrays(tree: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]


def _with_arrays(tree: Any, arrays: Sequence[Array]) -> Any:
    rest = iter(arrays)
    return jax.tree.map(lambda x: next(rest) if isinstance(x, jax.Array) else x, tree)


def again(
    done: Sequence[Done],
    made: Array,
    g: Array,
    p: Array | None,
    widen: Callable[[Array], Array],
    reading: int,
) -> Array:
    """What some rules have made of a gradient, calculated once more, from their new slots.

    Args:
      done: the rules, in sequence.
      made: what they have made; it is given back where it costs more than a pass over the array
        (a product of matrices, a loop), or might.
      g: the gradient of the first one as it is stored.
      p: the parameter as it is stored.
      widen: what makes of these the arrays to calculate with.
      reading: 1 if this leaf is read again for the first time, then 2, and so on.
    """
    numbers = [_arrays(dict(vars(part.h))) for part in done]
    programs = [
        _program(part, part.g, part.old, part.p, number)
        for part, number in zip(done, numbers, strict=True)
    ]
    if not all(_is_cheap(eqn) for program in programs for _, eqn in _needed(program.jaxpr)):
        return made
    inputs = [
        (part.old, number, part.new, _constants(program))
        for part, number, program in zip(done, numbers, programs, strict=True)
    ]
    (g, p), inputs = hidden(((g, p), inputs), reading)
    g, p = jax.tree.map(widen, (g, p))
    for part, program, of in zip(done, programs, inputs, strict=True):
        old, number, new, constants = of
        given = (g, old, None if part.p is None else p, number)
        g = _update(program, given, new, constants)
    return g


def _program(part: Done, g: Array, old: Any, p: Any, numbers: list[Array]) -> Any:
    """A rule as a program of arrays: the numbers, too, as far as they are arrays."""

    def rule(g: Array, slots: Any, p: Any, numbers: list[Array]) -> tuple[Array, Any]:
        h = SimpleNamespace(**_with_arrays(dict(vars(part.h)), numbers))
        return part.rule(g, slots, p, h)

    return jax.make_jaxpr(rule)(g, old, p, numbers)


# fmt: off
# What is worth to be done twice: at most one pass over the array. Anything else is not.
_ARITHMETIC = {"add", "sub", "mul", "div", "max", "min"}
_CHEAP = _ARITHMETIC | {
    "abs", "atan2", "broadcast_in_dim", "cbrt", "ceil", "clamp", "complex", "conj", "cos", "erf",
    "exp", "exp2", "expm1", "floor", "imag", "integer_pow", "is_finite", "log", "log1p", "logistic",
    "neg", "pow", "real", "rem", "round", "rsqrt", "sign", "sin", "sqrt", "square", "tanh",
    "and", "eq", "ge", "gt", "le", "lt", "ne", "not", "or", "select_n",
    "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_sum", "reshape", "squeeze",
    "transpose", "convert_element_type", "copy", "reduce_precision", "stop_gradient",
    "jit", "pjit", "custom_jvp_call", "optimization_barrier", "pcast", "pvary",
}
# fmt: on


def _is_cheap(eqn: Any) -> bool:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    parts = [] if inner is None else inner.eqns
    return eqn.primitive.name in _CHEAP and all(_is_cheap(part) for part in parts)


def _is_constant(v: Any) -> bool:
    return hasattr(v, "val")


def _needed(jaxpr: Any) -> list[tuple[int, Any]]:
    """The equations, with their places, that lead from the new slots to the update."""
    update, *slots = jaxpr.outvars
    known = {v for v in slots if not _is_constant(v)}
    wanted = {update} - known if not _is_constant(update) else set()
    found = []
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if wanted & set(eqn.outvars):
            found.append((i, eqn))
            wanted |= {v for v in eqn.invars if not _is_constant(v)} - known
    return found[::-1]


def _constants(program: Any) -> dict[str, Array]:
    """The constants that meet arrays: they have to be hidden like other numbers."""
    return {
        f"{i} {k}": jnp.asarray(v.val, v.aval.dtype)
        for i, eqn in _needed(program.jaxpr)
        for k, v in enumerate(eqn.invars)
        if eqn.primitive.name in _ARITHMETIC and _is_constant(v)
    }


def _update(program: Any, inputs: Any, new: Any, constants: dict[str, Array]) -> Array:
    """The first result of a program, of which the others are known."""
    jaxpr = program.jaxpr
    update_var, *slot_vars = jaxpr.outvars
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    known = zip(slot_vars, jax.tree.leaves(new), strict=True)
    values |= {v: x for v, x in known if not _is_constant(v)}
    values |= dict(zip(jaxpr.invars, jax.tree.leaves(inputs), strict=True))
    for i, eqn in _needed(jaxpr):
        if eqn.primitive.name in _ARITHMETIC:
            (made,) = eqn.outvars
            given = [
                constants[f"{i} {k}"] if _is_constant(v) else values[v]
                for k, v in enumerate(eqn.invars)
            ]
            values[made] = eqn.primitive.bind(*given, **eqn.params)
        else:
            evaluate(jaxpr, i, i + 1, values)
    update: Array = update_var.val if _is_constant(update_var) else values[update_var]
    return update
