"""The line search of gradient descent: shorten the step until the objective decreases enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Params, State, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.updates import safe_increment
from gradx.lift.passes import widen
from gradx.lift.states import check_state
from gradx.line_search.objective import check_params, like, line_search, real_dtype
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = [
    "BacktrackingLinesearchInfo",
    "ScaleByBacktrackingLinesearchState",
    "scale_by_backtracking_linesearch",
]


class BacktrackingLinesearchInfo(NamedTuple):
    """How the last search ended.

    Attributes:
      num_linesearch_steps: the steps tried, each one evaluation of the objective, int32 ().
      decrease_error: by how much the sufficient decrease was missed, 0 if it was not, ().
    """

    num_linesearch_steps: Array
    decrease_error: Array


class ScaleByBacktrackingLinesearchState(NamedTuple):
    """The state of `scale_by_backtracking_linesearch`.

    Attributes:
      learning_rate: the step size that the last search found, ().
      value: the objective there, (); infinite before the first search.
      grad: with `store_grad` the gradient there as `jax.grad` gives it, like the parameters; else
        `None`.
      info: how the search ended.
    """

    learning_rate: Array
    value: Array
    grad: Updates | None
    info: BacktrackingLinesearchInfo


class _Search(NamedTuple):
    """The values that change in the loop of a search."""

    count: Count
    step: Array
    value: Array
    error: Array
    grads: list[Array]


@core.recorded
def scale_by_backtracking_linesearch(
    max_backtracking_steps: int,
    slope_rtol: Annotated[float, Number("[0, 1)", "c")] = 1e-4,
    decrease_factor: Annotated[float, Number("(0, 1)")] = 0.8,
    increase_factor: Annotated[float, Number("[1, inf]")] = 1.5,
    max_learning_rate: Annotated[float, Number("(0, inf]")] = 1.0,
    atol: Annotated[float, Number("[0, inf)", r"\epsilon")] = 0.0,
    rtol: Annotated[float, Number("[0, inf)", r"\delta")] = 0.0,
    store_grad: bool = False,
    verbose: bool = False,
) -> Transform:
    r"""Scales the updates by a step size that decreases the objective enough (Armijo's condition).

    .. math:: f(\theta + \eta u) \le (1 + \delta) f(\theta)
              + c \eta \langle u, \nabla f(\theta) \rangle + \epsilon

    A search begins a little above the step size of the last one, and shortens it until this holds.
    The updates have to point downhill. `update` needs the parameters and three extra arguments:
    `value` and `grad`, the objective and its gradient at the parameters, and `value_fn`, the
    objective as a function of the parameters. Its further arguments (the data, say) are taken
    from the other extra arguments, by name.

    Args:
      max_backtracking_steps: how often the step may be shortened, 0 or more.
      slope_rtol: the share of the expected decrease that is enough.
      decrease_factor: what a step that is too long is multiplied by.
      increase_factor: what the last step size is multiplied by to begin the next search, at most to
        `max_learning_rate`. With inf every search begins there.
      max_learning_rate: the largest step size.
      atol: an absolute tolerance of the decrease.
      rtol: a tolerance of the decrease, relative to the loss.
      store_grad: calculate and keep the gradient where the search ends, for
        `value_and_grad_from_state`. The same objective has to be minimised in the next step.
      verbose: print a report if a search fails.

    Raises:
      ValueError: an argument out of its range; in `update`, without the parameters or one of the
        extra arguments, or inside of `masked`, `partition` or `freeze`.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> def f(params, target):
      ...     return jnp.sum((params - target) ** 2)
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.scale_by_backtracking_linesearch(15))
      >>> params, target = jnp.zeros(2), jnp.ones(2)
      >>> state = tx.init(params)
      >>> value, grad = jax.value_and_grad(f)(params, target)
      >>> updates, state = tx.update(
      ...     grad, state, params, value=value, grad=grad, value_fn=f, target=target
      ... )
      >>> state[1].learning_rate, state[1].info.num_linesearch_steps
      (Array(0.8, dtype=float32), Array(2, dtype=int32))

    If no step gives a finite value, the parameters stay as they are, and the next search begins at
    `max_learning_rate`. For complex parameters `grad` is the conjugate of what `jax.grad` gives,
    like the updates that every transformation is given.

    Reference: Nocedal and Wright, *Numerical Optimization*, 2006, Algorithm 3.1; Vaswani et al.,
    *Painless stochastic gradient*, https://arxiv.org/abs/1905.09997.
    """
    where = core.where()
    most = steps("max_backtracking_steps", max_backtracking_steps, 0)
    if _is_infinite(increase_factor) and _is_infinite(max_learning_rate):
        raise ValueError(
            f"{where}: with increase_factor=inf every search begins at max_learning_rate, which "
            f"must be finite then."
        )

    def init(params: Params) -> ScaleByBacktrackingLinesearchState:
        check_params(params, where)
        dtype = real_dtype(params)
        grad = jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params) if store_grad else None
        return ScaleByBacktrackingLinesearchState(
            learning_rate=jnp.ones((), dtype),
            value=jnp.full((), jnp.inf, dtype),
            grad=grad,
            info=BacktrackingLinesearchInfo(jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, dtype)),
        )

    def update(
        updates: Updates,
        state: State,
        params: Params | None = None,
        *,
        value: Any = None,
        grad: Updates | None = None,
        value_fn: Callable[..., Any] | None = None,
        **extra: Any,
    ) -> tuple[Updates, ScaleByBacktrackingLinesearchState]:
        check_state(state, ScaleByBacktrackingLinesearchState, where)
        dtype = jnp.result_type(state.value)
        line = line_search(where, dtype, updates, params, value, grad, value_fn, extra)
        start = line.start

        def error_at(step: Array, value: Array) -> Array:
            error = value - (1 + rtol) * start.value - step * slope_rtol * start.slope
            return jnp.where(jnp.isnan(error), jnp.inf, jnp.maximum(error, 0.0))

        def goes_on(now: _Search) -> Array:
            return ~(now.error <= atol) & (now.count <= most)

        def body(now: _Search) -> _Search:
            step = jnp.where(now.count > 0, decrease_factor * now.step, now.step).astype(
                now.step.dtype
            )
            if store_grad:
                # The backward pass, for the gradient, runs only where the search ends.
                new_value, back = jax.vjp(line.objective, line.at(step))
                error = error_at(step, new_value).astype(now.error.dtype)
                ends = (error <= atol) | (now.count == most)
                grads = jax.lax.cond(
                    ends & ~jnp.isinf(error),
                    lambda: back(jnp.ones_like(new_value))[0],
                    lambda: now.grads,
                )
            else:
                new_value, grads = line.objective(line.at(step)), now.grads
                error = error_at(step, new_value).astype(now.error.dtype)
            return _Search(safe_increment(now.count), step, new_value, error, grads)

        last = jnp.asarray(state.learning_rate, line.dtype)
        # A search that failed leaves 0 behind; from there no step would ever grow.
        guess = jnp.where(
            last > 0, jnp.minimum(increase_factor * last, max_learning_rate), max_learning_rate
        )
        end = jax.lax.while_loop(
            goes_on,
            body,
            _Search(
                count=jnp.zeros_like(start.step, jnp.int32),
                step=guess.astype(line.dtype) + start.step,
                value=start.value,
                error=jnp.full_like(start.step, jnp.inf),
                grads=line.grads if store_grad else [],
            ),
        )
        nowhere = jnp.isinf(end.error)  # no step had a finite value: stay
        step = jnp.where(nowhere, 0.0, end.step)
        if verbose:
            jax.debug.callback(_report, end.error > atol, end[:4], start, where=where)

        info = state.info._replace(
            num_linesearch_steps=like(end.count, state.info.num_linesearch_steps),
            decrease_error=like(end.error, state.info.decrease_error),
        )
        new_state = state._replace(
            learning_rate=like(step, state.learning_rate),
            value=like(jnp.where(nowhere, start.value, end.value), state.value),
            grad=line.with_grads(state.grad, end.grads) if store_grad else None,
            info=info,
        )
        return line.scaled(step), new_state

    return Transform(init, update)


def _is_infinite(number: Any) -> bool:
    return isinstance(number, float) and math.isinf(number)


def _report(failed: Any, end: Any, start: Any, *, where: str) -> None:
    """Prints on the host how a search failed, if it did."""
    if not failed:
        return
    count, step, value, error = end
    print(
        f"{where}: no step decreased the value enough, after {count} tried.\n"
        f"  value {start.value}, slope {start.slope}\n"
        f"  last step {step}, value {value}, decrease error {error}"
    )
    if not start.slope < 0:
        print("  The updates do not point downhill: the slope should be negative.")
    if error == float("inf"):
        print("  Every step tried gave inf or NaN: the parameters stay as they are.")
