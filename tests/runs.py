"""Runs of a row that several laws compare with something, each made once a process."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import references
from cases import Case
from problems import STEPS, gradients, moved, params, trajectory

import gradx
from gradx.core import annotations
from gradx.lift.sequence import rules_of
from gradx.numbers import sources

NARROW_STEPS = 5


def first(stacked: Any, i: int = 0) -> Any:
    return jax.tree.map(lambda x: x[i], stacked)


def reference_of(case: Case) -> Any:
    return case.make(references, **({} if case.value is None else {"value": case.value}))


@functools.cache
def reference_trajectory(case: Case, dtype: Any) -> list[Any]:
    flat, treedef = jax.tree.flatten(params(dtype))
    grads = jax.tree.leaves(gradients(dtype))
    after = references.run(reference_of(case), flat, [[g[i] for g in grads] for i in range(STEPS)])
    return [treedef.unflatten(p) for p in after]


@functools.cache
def plain_steps(case: Case, library: Any, dtype: Any) -> tuple[list[Any], list[Any]]:
    """The parameters after each step, and the updates, operation by operation.

    Twelve steps in float64, where an algorithm shows; five where rounding and types do, or Optax.
    (The trajectories of other implementations, in `test_trajectories.py`, have thirty.)

    An operation is compiled once for all rows, where a program for each row is most of what the
    laws would cost. What compilers make of a row, the laws about mechanisms compare with this.
    """
    with jax.enable_x64(dtype == np.float64), jax.disable_jit():
        p, g = params(dtype), gradients(dtype)
        if library is optax and not case.scalars_in_optax:
            p, g = p["dense"], g["dense"]
        p, g = jax.tree.map(jnp.asarray, (p, g))
        tx = case.ready(library)
        state, after, made = tx.init(p), [], []
        shows = dtype == np.float64 and library is gradx
        for i in range(STEPS if shows else NARROW_STEPS):
            updates, state = tx.update(first(g, i), state, p)
            p = moved(p, updates)
            after.append(jax.tree.map(np.asarray, p))
            made.append(jax.tree.map(np.asarray, updates))
    return after, made


def three_steps(tx: Any, **extra: Any) -> Any:
    return trajectory(tx, params(), gradients(steps=3), **extra)


def as_constants(case: Case) -> Any:
    """Three steps of a row as it stands, from `plain_steps`."""
    after = plain_steps(case, gradx, np.float32)[0]
    return jax.tree.map(lambda *steps: np.stack(steps), *after[:3])


def types(tree: Any) -> Any:
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


def paths_and_types(state: Any) -> list[Any]:
    """A random key counts as its data, which is what gradx has for a seed."""

    def data(x: Any) -> Any:
        typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, x) if typed else x

    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), data(x).shape, data(x).dtype) for path, x in found]


def numbers_of(case: Case) -> dict[str, float]:
    """The hyperparameters of a row, with their values."""
    return {
        name: value
        for name, value in given_numbers(case, sources.takes_number)
        if isinstance(value, float)
    }


def given_numbers(case: Case, takes: Any) -> list[tuple[str, Any]]:
    parameters = annotations.signature(getattr(gradx, case.factory)).parameters
    return [
        (name, case.kwargs.get(name, parameter.default))
        for name, parameter in parameters.items()
        if takes(parameter.annotation)
    ]


def sources_of(tx: Any, p: Any) -> list[tuple[str, Any]]:
    """Every source in the rules of a transformation, whatever its factory's signature says."""
    if tx.parts is None:
        hypers = [rule.hypers for rule in rules_of(tx.stage)]
        return [source for numbers in hypers for source in numbers.sources.items()]
    parts = tx.parts(p, jax.eval_shape(tx.init, p))
    return [source for part in parts for source in sources_of(part.transform, part.params)]
