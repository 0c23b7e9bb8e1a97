"""The line search of quasi-Newton methods: the value decreases enough, and the slope is small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Params, State, Transform, Updates
from gradx.core.meaning import Number
from gradx.lift.passes import widen
from gradx.lift.states import check_state
from gradx.line_search import wolfe
from gradx.line_search.objective import Line, Point, check_params, like, line_search, real_dtype
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = ["ScaleByZoomLinesearchState", "ZoomLinesearchInfo", "scale_by_zoom_linesearch"]


class ZoomLinesearchInfo(NamedTuple):
    """How the last search ended.

    Attributes:
      num_linesearch_steps: the steps tried, each one evaluation of value and gradient, int32 ().
      decrease_error: by how much the sufficient decrease was missed, 0 if it was not, ().
      curvature_error: by how much the slope was still too steep, 0 if it was not, ().
    """

    num_linesearch_steps: Array
    decrease_error: Array
    curvature_error: Array


class ScaleByZoomLinesearchState(NamedTuple):
    """The state of `scale_by_zoom_linesearch`.

    Attributes:
      learning_rate: the step size that the last search found, ().
      value: the objective there, (); infinite before the first search.
      grad: the gradient there as `jax.grad` gives it, like the parameters.
      info: how the search ended.
    """

    learning_rate: Array
    value: Array
    grad: Updates
    info: ZoomLinesearchInfo


@core.recorded
def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: Annotated[float | None, Number("(0, inf]")] = None,
    tol: Annotated[float, Number("[0, inf)")] = 0.0,
    increase_factor: Annotated[float, Number("(1, inf)")] = 2.0,
    slope_rtol: Annotated[float, Number("[0, 1)", "c_1")] = 1e-4,
    curv_rtol: Annotated[float, Number("[0, inf]", "c_2")] = 0.9,
    approx_dec_rtol: Annotated[float | None, Number("[0, inf)", "c_3")] = 1e-6,
    stepsize_precision: Annotated[float, Number("[0, inf)")] = 1e-5,
    initial_guess_strategy: Literal["one", "keep"] = "keep",
    verbose: bool = False,
) -> Transform:
    r"""Scales the updates by a step size that meets the strong Wolfe conditions.

    .. math::
        f(\theta + \eta u) &\le f(\theta) + c_1 \eta \langle u, \nabla f(\theta) \rangle \\
        |\langle u, \nabla f(\theta + \eta u) \rangle| &\le
            c_2\, |\langle u, \nabla f(\theta) \rangle|

    The updates have to point downhill. `update` needs the parameters and three extra arguments:
    `value` and `grad`, the objective and its gradient at the parameters, and `value_fn`, the
    objective as a function of the parameters. Its further arguments (the data, say) are taken
    from the other extra arguments, by name. Each step tried is one evaluation of value and
    gradient, and those of the last one are kept for `value_and_grad_from_state`.

    Args:
      max_linesearch_steps: the most steps to try, 1 or more.
      max_learning_rate: the largest step size. By default there is none.
      tol: by how much the conditions may be missed.
      increase_factor: what the step is multiplied by until an interval is found.
      slope_rtol: the share of the expected decrease that is enough.
      curv_rtol: the share of the first slope that may be left. With inf only the decrease counts.
      approx_dec_rtol: the tolerance of Hager and Zhang's condition on the slope, \(\langle u,
        \nabla f(\theta + \eta u) \rangle \le (2 c_1 - 1) \langle u, \nabla f(\theta) \rangle\). It
        replaces the decrease if \(f(\theta + \eta u) \le f(\theta) + c_3 |f(\theta)|\): close to a
        minimum, where values differ by rounding only. `None`: never.
      stepsize_precision: the length of the interval at which the search ends, with the best step
        that has a sufficient decrease.
      initial_guess_strategy: the step to try first: ``"one"``, which is right for quasi-Newton
        methods, or ``"keep"``, the last step found, which is right for gradient descent.
      verbose: print why a search fails.

    Raises:
      ValueError: an argument out of its range; in `update`, without the parameters or one of the
        extra arguments, or inside of `masked`, `partition` or `freeze`.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> def f(params, scale):
      ...     return jnp.sum(scale * (params - 1) ** 2)
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.scale_by_zoom_linesearch(15))
      >>> params, scale = jnp.zeros(2), jnp.array([1.0, 4.0])
      >>> state = tx.init(params)
      >>> value, grad = jax.value_and_grad(f)(params, scale)
      >>> updates, state = tx.update(
      ...     grad, state, params, value=value, grad=grad, value_fn=f, scale=scale
      ... )
      >>> state[1].learning_rate.round(3), state[1].value.round(3)
      (Array(0.13, dtype=float32), Array(0.554, dtype=float32))

    For complex parameters `grad` is the conjugate of what `jax.grad` gives, like the updates that
    every transformation is given.

    Reference: Nocedal and Wright, *Numerical Optimization*, 2006, Algorithms 3.5 and 3.6; Hager and
    Zhang, *Algorithm 851: CG_DESCENT*, 2006, https://doi.org/10.1145/1132973.1132979.
    """
    where = core.where()
    conditions = wolfe.Conditions(
        max_steps=steps("max_linesearch_steps", max_linesearch_steps, 1),
        max_step=max_learning_rate,
        tol=tol,
        increase_factor=increase_factor,
        slope_rtol=slope_rtol,
        curv_rtol=curv_rtol,
        approx_dec_rtol=approx_dec_rtol,
        precision=stepsize_precision,
    )

    def init(params: Params) -> ScaleByZoomLinesearchState:
        check_params(params, where)
        dtype = real_dtype(params)
        infinite = jnp.full((), jnp.inf, dtype)
        return ScaleByZoomLinesearchState(
            learning_rate=jnp.ones((), dtype),
            value=infinite,
            grad=jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params),
            # Buffers of their own: a donated state must not hold one twice.
            info=ZoomLinesearchInfo(
                jnp.zeros((), jnp.int32), jnp.array(infinite), jnp.array(infinite)
            ),
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
    ) -> tuple[Updates, ScaleByZoomLinesearchState]:
        check_state(state, ScaleByZoomLinesearchState, where)
        dtype = jnp.result_type(state.value)
        line = line_search(where, dtype, updates, params, value, grad, value_fn, extra)
        guess = jnp.ones((), line.dtype)
        if initial_guess_strategy == "keep":
            # A search that failed leaves 0 behind; from there no step would ever grow.
            last = state.learning_rate.astype(line.dtype)
            guess = jnp.where(last > 0, last, guess)
        end, found, grads = _search(line, guess, conditions)
        if verbose:
            tol, precision = conditions.tol, conditions.precision
            jax.debug.callback(_report, end, line.start, tol, precision, where=where)

        info = state.info._replace(
            num_linesearch_steps=like(end.count, state.info.num_linesearch_steps),
            decrease_error=like(end.decrease_error, state.info.decrease_error),
            curvature_error=like(end.curvature_error, state.info.curvature_error),
        )
        new_state = state._replace(
            learning_rate=like(found.step, state.learning_rate),
            value=like(found.value, state.value),
            grad=line.with_grads(state.grad, grads),
            info=info,
        )
        return line.scaled(found.step), new_state

    return Transform(init, update)


def _search(
    line: Line, guess: Array, conditions: wolfe.Conditions
) -> tuple[wolfe.Progress, Point, list[Array]]:
    """How the search ended, the step that it found, and the gradients there."""
    value_and_grad = jax.value_and_grad(line.objective)

    def goes_on(carry: Any) -> Array:
        now, _, _ = carry
        return ~(now.done | now.failed)

    def body(carry: Any) -> Any:
        now, _, safe_grads = carry
        step = wolfe.next_step(now, guess, conditions).astype(line.dtype)
        value, grads = value_and_grad(line.at(step))
        at = Point(step, value, line.slope(grads))
        new, is_safe = wolfe.advance(now, at, line.start, conditions)
        new = jax.tree.map(lambda n, o: n.astype(o.dtype), new, now)
        return new, grads, [_select(is_safe, g, s) for g, s in zip(grads, safe_grads, strict=True)]

    first = wolfe.begin(line.start), line.grads, line.grads
    end, last_grads, safe_grads = jax.lax.while_loop(goes_on, body, first)
    # A search that failed takes the safe step; without one it stays rather than leave the domain.
    fall_back = end.failed & ((end.safe.step > 0) | jnp.isinf(end.decrease_error))
    found = jax.tree.map(lambda s, n: jnp.where(fall_back, s, n), end.safe, end.last)
    pairs = zip(safe_grads, last_grads, strict=True)
    return end, found, [_select(fall_back, s, n) for s, n in pairs]


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _select(condition: Array, yes: Array, no: Array) -> Array:
    return jnp.where(condition, yes, no)


def _report(end: wolfe.Progress, start: Point, tol: Any, precision: Any, *, where: str) -> None:
    """Prints on the host why a search failed, if it did."""
    if max(end.decrease_error, end.curvature_error) <= tol:
        return
    lines = [
        f"{where}: no step met both conditions, after {end.count} tried.",
        f"  value {start.value}, slope {start.slope}, last step {end.last.step}",
        f"  decrease error {end.decrease_error}, curvature error {end.curvature_error}",
    ]
    if not start.slope < 0:
        lines.append("  The updates do not point downhill: the slope should be negative.")
    elif not end.bracketed:
        lines.append("  It is steep up to the last step: raise max_learning_rate or the steps.")
    elif abs(end.high.step - end.low.step) <= precision:
        lines.append("  The interval has become shorter than stepsize_precision.")
    else:
        lines.append("  Raise max_linesearch_steps, or calculate in float64.")
    if end.safe.step > 0:
        lines.append(f"  Took the step {end.safe.step}, which decreases the value enough.")
    elif end.decrease_error == float("inf"):
        lines.append("  The last step gave inf or NaN: the parameters stay as they are.")
    else:
        lines.append("  Took the last step, although the value does not decrease enough.")
    print("\n".join(lines))
