"""L-BFGS: gradients times an estimate of the inverse Hessian from the last few steps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain, identity
from gradx.core import Count, Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift.passes import check_array, staged, widen
from gradx.lift.stages import NO_STATE, Call, LeafState, Leaves, Numbers, is_array
from gradx.lift.states import check_state, counted
from gradx.lift.tree_first import TreeFirst
from gradx.line_search.objective import check_params, check_shape, inner, nothing, real_dtype
from gradx.line_search.zoom import scale_by_zoom_linesearch
from gradx.lowering.order import once_known, under_condition
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.scaling import scale, scale_by_learning_rate

__all__ = ["ScaleByLBFGSState", "lbfgs", "scale_by_lbfgs"]


class ScaleByLBFGSState(NamedTuple):
    """The state of L-BFGS, with a memory of m steps.

    Attributes:
      count: the updates done so far, int32 ().
      params: the parameters of the last update.
      updates: its gradients, like the parameters.
      diff_params_memory: the last steps of the parameters, `(m, *shape)` for each.
      diff_updates_memory: the changes of the gradients in these steps, `(m, *shape)` for each.
      weights_memory: one over the inner product of step and change, (m,); 0 for a step that is not
        used.
    """

    count: Count
    params: Params
    updates: Updates
    diff_params_memory: Updates
    diff_updates_memory: Updates
    weights_memory: Array


@core.recorded
def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> Transform:
    r"""Multiplies the updates by L-BFGS's estimate of the inverse Hessian.

    .. math::
        u &= P_k\, g_k, \qquad P_0 = \gamma_k I, \qquad
        P_{j+1} = V_j^\top P_j V_j + \rho_j s_j s_j^\top \\
        V_j &= I - \rho_j y_j s_j^\top, \qquad \rho_j = 1 / \langle y_j, s_j \rangle, \qquad
        s_j = \theta_{j+1} - \theta_j, \qquad y_j = g_{j+1} - g_j

    over the last \(m\) steps, without ever forming a matrix. It measures the steps that were really
    made, so `update` needs the parameters.

    Args:
      memory_size: how many steps it remembers, \(m\), from 1 on. The state has \(2m + 2\) arrays
        for each parameter.
      scale_init_precond: take \(\gamma_k = \langle s, y \rangle / \lVert y \rVert^2\) of the last
        step, and \(\min(1, 1 / \lVert g_0 \rVert)\) at first, so that the first step is no longer
        than 1. With False \(\gamma_k\) is 1.

    Raises:
      ValueError: `memory_size` is not a whole number from 1 on; `update` is called without the
        parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.scale_by_lbfgs(), gradx.scale(-1.0))
      >>> curvature = jnp.array([1.0, 10.0])
      >>> x = jnp.array([1.0, 1.0])
      >>> state = tx.init(x)
      >>> for _ in range(8):
      ...     updates, state = tx.update(curvature * x, state, x)
      ...     x = gradx.apply_updates(x, updates)
      >>> bool(jnp.all(jnp.abs(x) < 1e-3))
      True

    Reference: Nocedal and Wright, *Numerical Optimization*, 2006, Algorithm 7.4; Liu and Nocedal,
    *On the limited memory BFGS method for large scale optimization*, 1989,
    https://doi.org/10.1007/BF01589116. A step along which the gradient did not grow, with
    \(\langle s, y \rangle \le 0\), is not used: it would make \(P\) indefinite, and the update
    might go uphill. The Wolfe conditions exclude such steps; backtracking and fixed step sizes do
    not. (Optax uses them.)
    """
    where = core.where()
    init = partial(_first_state, size=steps("memory_size", memory_size, 1), where=where)
    prepare = partial(_prepare, scaled=bool(scale_init_precond), where=where)
    return staged(TreeFirst(init, prepare), where)


def _first_state(params: Params, *, size: int, where: str) -> ScaleByLBFGSState:
    check_params(params, where)
    zeros = jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params)

    def memory(z: Array) -> Array:  # a broadcast of z, so that it is sharded like z
        return jnp.broadcast_to(z, (size, *z.shape))

    return ScaleByLBFGSState(
        count=jnp.zeros((), jnp.int32),
        params=zeros,
        updates=jax.tree.map(jnp.array, zeros),  # a copy: a donated state holds no buffer twice
        diff_params_memory=jax.tree.map(memory, zeros),
        diff_updates_memory=jax.tree.map(memory, zeros),
        weights_memory=jnp.zeros(size, real_dtype(params)),
    )


def _prepare(
    leaves: Leaves, state: State, extra: Mapping[str, Any], *, scaled: bool, where: str
) -> tuple[list[Call | None], State]:
    """Calculates the direction of all leaves at once; each leaf then takes its own."""
    check_state(state, ScaleByLBFGSState, where)
    if leaves.params is None:
        raise ValueError(f"{where}: needs the parameters: call update(updates, state, params).")
    flat = leaves.flat
    columns = [
        gtree.flatten_like(flat, getattr(state, name), f"the state's {name}", where)
        for name in _TREES
    ]
    active = [i for i, u in enumerate(leaves.updates) if is_array(u)]
    for i in active:
        check_array(leaves.updates[i], flat, i, where, "update")
        check_shape(flat, i, leaves.params[i], where, "parameter")
    arguments = (list(map(gtree.as_number, leaves.updates)), leaves.params, *columns)
    direction, new, weights = _step(
        *([column[i] for i in active] for column in arguments),
        state.weights_memory,
        state.count,
        leaves.gate,
        scaled=scaled,
    )
    calls: list[Call | None] = [None] * len(leaves.updates)
    for i, u in zip(active, direction, strict=True):
        calls[i] = Call(_take, (), {"direction": u}, NO_STATE, False)
    for column, arrays in zip(columns, new, strict=True):
        for i, x in zip(active, arrays, strict=True):
            column[i] = x
    count = counted(state.count, leaves.gate)
    return calls, type(state)(count, *map(flat.unflatten, columns), weights)


def _take(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return h.direction, s


_TREES = ("params", "updates", "diff_params_memory", "diff_updates_memory")

Arrays = list[Array]


@functools.partial(jax.jit, static_argnames="scaled")
@gtree.mixing
def _step(
    g: Arrays,
    p: Arrays,
    old_p: Arrays,
    old_g: Arrays,
    s: Arrays,
    y: Arrays,
    weights: Array,
    count: Array,
    gate: Array | None,
    *,
    scaled: bool,
) -> tuple[Arrays, list[Arrays], Array]:
    """The direction, the new state by leaf, and the new weights.

    In a program that donates its state all of this but the direction happens in place: an array is
    overwritten only once the sums that read it are known.
    """
    size = weights.shape[0]
    last = (count - 1) % size
    begun = count > 0
    s = [_remember(m, x, o, last, begun, gate) for m, x, o in zip(s, p, old_p, strict=True)]
    y = [_remember(m, x, o, last, begun, gate) for m, x, o in zip(y, g, old_g, strict=True)]

    zero = nothing([*s, *y, weights], weights.dtype)
    curvature = under_condition(begun, lambda: _in_turn(_dot_in, s, y, last, zero), lambda: zero)
    # A pair is not used if it is so flat that the weight would be infinite.
    useful = curvature > jnp.finfo(weights.dtype).tiny
    weight = jnp.where(useful, 1 / jnp.where(useful, curvature, 1), 0)
    weight = weight if gate is None else jnp.where(gate, weight, weights[last])
    weights = jax.lax.dynamic_update_index_in_dim(weights, weight, last, 0)
    renew = once_known(curvature) if gate is None else gate & once_known(curvature)
    new_p = [_renewed(x, old, renew) for x, old in zip(p, old_p, strict=True)]
    new_g = [_renewed(x, old, renew) for x, old in zip(g, old_g, strict=True)]

    newest_first = (count - 1 - jnp.arange(size, dtype=count.dtype)) % size

    def down(q: Arrays, i: Array) -> tuple[Arrays, Array]:
        share = _weighed(weights[i], _in_turn(_dot_with, s, q, i, zero))
        return [_plus(v, -share, memory, i) for v, memory in zip(q, y, strict=True)], share

    def up(q: Arrays, i_and_share: tuple[Array, Array]) -> tuple[Arrays, None]:
        i, share = i_and_share
        share = share - _weighed(weights[i], _in_turn(_dot_with, y, q, i, zero))
        return [_plus(v, share, memory, i) for v, memory in zip(q, s, strict=True)], None

    q, shares = jax.lax.scan(down, new_g, newest_first)
    if scaled:
        factor = _scale_of(new_g, y, weights, newest_first, zero)
        q = [_times(v, factor) for v in q]
    q, _ = jax.lax.scan(up, q, (newest_first, shares), reverse=True)
    return q, [new_p, new_g, s, y], weights


def _weighed(weight: Array, product: Array) -> Array:
    """Weight times product; 0 for a step that is not used, even if the product overflowed."""
    return jnp.where(weight > 0, weight * product, 0)


def _scale_of(g: Arrays, y: Arrays, weights: Array, newest_first: Array, zero: Array) -> Array:
    """The factor of the identity: from the newest useful step, or without one from the norm."""
    useful = weights[newest_first] > 0
    newest = newest_first[jnp.argmax(useful)]

    def from_memory() -> Array:
        return 1 / (weights[newest] * _in_turn(_dot_in, y, y, newest, zero))

    def from_norm() -> Array:
        # The squares may overflow, and a factor of 0 would never move.
        squares = inner(g, g).astype(weights.dtype)
        norm = jnp.sqrt(jnp.minimum(squares, jnp.finfo(weights.dtype).max))
        return jax.lax.stop_gradient(jnp.minimum(1.0, 1 / norm))

    factor: Array = jax.lax.cond(useful.any(), from_memory, from_norm)
    return factor


# ---------------------------------------------------------------- one leaf, traced once a shape


@jax.jit
def _remember(
    memory: Array, new: Array, old: Array, i: Array, begun: Array, gate: Array | None
) -> Array:
    difference = jnp.where(begun, new.astype(old.dtype) - old, 0)
    if gate is not None:
        difference = jnp.where(gate, difference, _at(memory, i))
    return jax.lax.dynamic_update_index_in_dim(memory, difference, i, 0)


@jax.jit
def _renewed(new: Array, old: Array, renew: Array) -> Array:
    """The new value, written over the old one (see `once_known`)."""
    return jnp.where(renew, new.astype(old.dtype), old)


def _in_turn(dot: Any, xs: Arrays, ys: Arrays, i: Array, zero: Array) -> Array:
    """The inner product of two lists, at index `i` of memories, one leaf after the other."""
    total = zero
    for x, y in zip(xs, ys, strict=True):
        total = dot(total, x, y, i)
    return total


@jax.jit
def _dot_in(total: Array, x: Array, y: Array, i: Array) -> Array:
    i = _after(total, i)
    return total + gtree.dot(_at(x, i), _at(y, i)).astype(total.dtype)


@jax.jit
def _dot_with(total: Array, x: Array, y: Array, i: Array) -> Array:
    return total + gtree.dot(_at(x, _after(total, i)), y).astype(total.dtype)


def _after(total: Array, i: Array) -> Array:
    """The index, once the leaves before are done; else the parts of all would wait in memory."""
    return jnp.where(once_known(total), i, 0)


@jax.jit
def _plus(x: Array, share: Array, memory: Array, i: Array) -> Array:
    return x + share.astype(x.real.dtype) * _at(memory, i)


@jax.jit
def _times(x: Array, factor: Array) -> Array:
    return x * factor.astype(x.real.dtype)


def _at(memory: Array, i: Array) -> Array:
    entry: Array = jax.lax.dynamic_index_in_dim(memory, i, keepdims=False)
    return entry


# ---------------------------------------------------------------- the optimizer


@core.recorded
def lbfgs(
    learning_rate: Hyper | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: Contract | None = scale_by_zoom_linesearch(  # noqa: B008  (nothing changes it)
        max_linesearch_steps=20, initial_guess_strategy="one"
    ),
) -> Transform:
    r"""L-BFGS with a line search, for objectives without noise: the whole data in each step.

    .. math:: u = -\eta_k P_k\, g_k

    with the estimate \(P_k\) of the inverse Hessian of `scale_by_lbfgs` and the step size
    \(\eta_k\) of the line search.

    Args:
      learning_rate: a factor before the line search; 1 by default.
      memory_size: how many steps \(P_k\) is made of, from 1 on.
      scale_init_precond: whether \(P_k\) begins with a scaled identity (see `scale_by_lbfgs`).
      linesearch: the line search, such as `scale_by_zoom_linesearch` (the default; it tries at most
        20 step sizes, 1 first) or `scale_by_backtracking_linesearch`; `None` for \(\eta_k\) =
        `learning_rate`.

    Raises:
      ValueError: an argument out of its range; `update` is called without the parameters, or
        without what the line search needs: the extra arguments `value`, `grad` and `value_fn`.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> def f(x):
      ...     return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
      >>> tx = gradx.lbfgs()
      >>> value_and_grad = gradx.value_and_grad_from_state(f)

      The whole run is one program. The state tells when to stop: after a search it has the value
      and the gradient at the new parameters.

      >>> def body(carry):
      ...     x, state = carry
      ...     value, grads = value_and_grad(x, state=state)
      ...     updates, state = tx.update(grads, state, x, value=value, grad=grads, value_fn=f)
      ...     return gradx.apply_updates(x, updates), state
      >>> def goes_on(carry):
      ...     x, (memory, _, search) = carry
      ...     first = memory.count == 0
      ...     return first | ((memory.count < 100) & (gradx.global_norm(search.grad) > 1e-4))
      >>> @jax.jit
      ... def minimum(x):
      ...     return jax.lax.while_loop(goes_on, body, (x, tx.init(x)))
      >>> x, state = minimum(jnp.array([-1.2, 1.0]))
      >>> x.round(3), bool(state[0].count < 50)
      (Array([1., 1.], dtype=float32), True)

    Reference: Liu and Nocedal, *On the limited memory BFGS method for large scale optimization*,
    1989, https://doi.org/10.1007/BF01589116.
    """
    # A learning rate negates the updates; without one `scale` does.
    negative = scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)
    search = identity() if linesearch is None else linesearch
    return chain(scale_by_lbfgs(memory_size, scale_init_precond), negative, search)
