"""Runs a rule so that its state changes only if a gate is open, at no cost in memory.

A choice between old and new state after the rule has run would keep both alive, in separate
buffers: three times the temporaries, and half the speed. Here the choice is made where a new value
of the state is first calculated. What the rule computes from it reads the chosen one, and XLA can
update the state in place. With a closed gate its loops do next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def predicated(
    rule: Callable[[Array, Any, Any, Any], tuple[Array, Any]],
    gate: Array,
    g: Array,
    state: Any,
    p: Any,
    h: Any,
) -> tuple[Array, Any]:
    """`rule(g, s, p, h)` that keeps its state, bit for bit, where `gate` is False.

    The update is that of the rule if the gate is open, and has no meaning if it is closed.
    """
    from jax.extend.core import Literal, Var  # imported late, since it imports Pallas

    old: list[Array] = jax.tree.leaves(state)
    structure: Any = jax.tree.structure(state)
    program, shape = jax.make_jaxpr(lambda g, s, p: rule(g, s, p, h), return_shape=True)(
        g, state, p
    )
    if jax.tree.structure(shape[1]) != structure:
        return rule(g, state, p, h)  # the caller raises an error
    jaxpr = program.jaxpr
    update_var, *state_vars = jaxpr.outvars
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(jaxpr.invars, jax.tree.leaves((g, state, p)), strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values[v]

    def choose(new: Any, kept: Array) -> Array:
        return jnp.where(gate, new, kept.astype(jnp.result_type(new)))

    # A new value that is an argument, a constant or that of two fields is chosen at the end.
    kept_for = {
        v: kept
        for v, kept in zip(state_vars, old, strict=True)
        if isinstance(v, Var) and state_vars.count(v) == 1
    }
    chosen: set[Any] = set()
    begin = 0
    for end, eqn in enumerate(jaxpr.eqns, 1):
        made = [v for v in eqn.outvars if v in kept_for]
        if made or end == len(jaxpr.eqns):
            _evaluate(jaxpr, begin, end, values)
            begin = end
        for v in made:
            values[v] = choose(values[v], kept_for[v])
            chosen.add(v)
    new = [
        values[v] if isinstance(v, Var) and v in chosen else choose(read(v), kept)
        for v, kept in zip(state_vars, old, strict=True)
    ]
    return read(update_var), structure.unflatten(new)


def _nameless(jaxpr: Any) -> dict[str, Any]:
    """Without the names of arguments and results, which no longer fit, where JAX keeps any."""
    forget = getattr(getattr(jaxpr, "debug_info", None), "with_unknown_names", None)
    return {} if forget is None else {"debug_info": forget()}


def _evaluate(jaxpr: Any, begin: int, end: int, values: dict[Any, Any]) -> None:
    """Evaluates some equations, and adds the values of their variables to `values`."""
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

    eqns = jaxpr.eqns[begin:end]
    known = list(values)
    made = [v for eqn in eqns for v in eqn.outvars]
    part = jaxpr.replace(constvars=[], invars=known, outvars=made, eqns=eqns, **_nameless(jaxpr))
    values |= dict(zip(made, jaxpr_as_fun(ClosedJaxpr(part, []))(*values.values()), strict=True))
