"""Gradient accumulation: one update of the inner transformation from the gradients of k calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import (
    AsGiven,
    as_gate,
    check_agreement,
    check_inner,
    gated_update,
)
from gradx.core import Params, Part, State, Transform, Updates, ranges
from gradx.core import trees as gtree
from gradx.core.known import METRICS, Measured
from gradx.core.updates import safe_increment
from gradx.lift.averages import storage
from gradx.lift.passes import widen
from gradx.lift.states import check_state
from gradx.numbers import hyper
from gradx.numbers.counting import steps
from gradx.numbers.live import array_of
from gradx.numbers.sources import Array, FromCall, Step

__all__ = [
    "MultiSteps",
    "MultiStepsState",
    "WeightedMultiStepsState",
]


class MultiStepsState(NamedTuple):
    """The state of `MultiSteps`.

    Attributes:
      mini_step: the calls since the last update, int32 (), below k.
      gradient_step: the updates so far, int32 ().
      inner_opt_state: the inner state, which only an update changes.
      acc_grads: the mean (or sum) of the gradients so far, like the parameters; after an update,
        that of its gradients until the next call. `()` where nothing is accumulated.
      skip_state: what `should_skip_update_fn` said about the last call.
    """

    mini_step: Array
    gradient_step: Array
    inner_opt_state: Any
    acc_grads: Any
    skip_state: Any = ()


class WeightedMultiStepsState(NamedTuple):
    """The state of `MultiSteps` with weights.

    Attributes:
      mini_step: the calls since the last update, int32 (), below k.
      gradient_step: the updates so far, int32 ().
      inner_opt_state: the inner state, which only an update changes.
      acc_grads: the weighted mean (or sum) of the gradients so far, like the parameters.
      skip_state: what `should_skip_update_fn` said about the last call.
      weight_sum: the sum of the weights so far, float32 ().
    """

    mini_step: Array
    gradient_step: Array
    inner_opt_state: Any
    acc_grads: Any
    skip_state: Any
    weight_sum: Array


@METRICS.of(MultiStepsState)
@METRICS.of(WeightedMultiStepsState)
def _told(state: MultiStepsState | WeightedMultiStepsState) -> dict[str, Any]:
    return {
        "mini_step": state.mini_step,
        "gradient_step": state.gradient_step,
        "skip_state": Measured(state.skip_state),
    }


SkipFunction = Callable[[Updates, Array, Params | None], tuple[Array, Any]]


@core.recorded_class
class MultiSteps(Transform):
    r"""Accumulates gradients of k calls, and updates once with their mean, as for one large batch.

    .. math:: u = T\Big(\frac{1}{k} \sum_{j=1}^{k} g_j\Big) \text{ in every } k\text{-th call},
              \qquad u = 0 \text{ in the others}

    Between updates the inner state stays as it is, bit for bit. An inner transformation that works
    leaf by leaf (Adam, say, or a chain that begins with a clip by global norm) is gated: its loops
    do nothing in the other calls, and need no memory. A part that works on whole trees (Optax's) or
    on matrices runs under a real conditional, so that it is paid for once in k calls.

    Args:
      opt: the inner transformation.
      every_k_schedule: \(k \ge 1\), or a function of the updates done so far. A constant 1
        without weights costs nothing, and has no accumulator. `None` leaves it to `emit` alone.
      use_grad_mean: accumulate the mean of the gradients; with False, their sum.
      should_skip_update_fn: `(updates, gradient_step, params) -> (skip, skip_state)`, such as
        `skip_not_finite`. A skipped gradient is not accumulated, and its call does not count.
      accumulator_dtype: the dtype to accumulate in. float32, the default, means at least that of
        the parameters; half precision is used as given. The inner transformation is given
        float32 or wider, and the updates come back in the gradients' dtypes.
      weight: the weight of a call's gradient, such as its number of tokens:
        ``weight=from_call("tokens")`` and `update(…, tokens=n)`, or a number. The mean is then
        \(\sum_j w_j g_j / \sum_j w_j\), which is the gradient of the whole batch where \(g_j\) are
        means over tokens; the sum is \(\sum_j w_j g_j\). A weight of 0 leaves a gradient out; where
        all are 0 the update waits.
      emit: a flag of the call that asks for an update now, from the calls so far, such as the last
        ones of an epoch: ``emit=from_call("last")`` and `update(…, last=flag)`, one bool that is
        the same on all devices. Without a gradient since the last update there is none.
      conditional: True runs the whole inner transformation under a real conditional; False uses
        none, which is for devices of a mapped axis that may disagree about a skip. With `pmean` in
        `opt` they must agree, or their parameters drift apart: say True where they do.

    Raises:
      ValueError: `opt` is not a transformation; k is not a whole number of at least 1, or is None
        without `emit`; in `update`, a flag or the answer of a skip function that is not a bool.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.MultiSteps(gradx.sgd(1.0), every_k_schedule=2)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 3.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      ...     print(updates, tx.has_updated(state))
      [0.] False
      [-2.] True

    It is a transformation itself, so it can be part of a chain; `gradient_transformation()` returns
    it. Deviations from Optax: `acc_grads` is emptied by the next call and not by the update, which
    saves a temporary; with half-precision gradients the inner transformation sees the mean in
    float32.
    """

    def __new__(
        cls,
        opt: Contract,
        every_k_schedule: int | Callable[[Any], Any] | None,
        use_grad_mean: bool = True,
        should_skip_update_fn: SkipFunction | None = None,
        accumulator_dtype: Any = jnp.float32,
        *,
        weight: FromCall | float | None = None,
        emit: FromCall | None = None,
        conditional: bool | None = None,
    ) -> MultiSteps:
        where = core.where()
        check_inner(opt, where, "opt")
        if should_skip_update_fn is not None and conditional is None:
            remedy = "let should_skip_update_fn answer alike on all, and say conditional=True"
            check_agreement(opt, (), where, remedy)
        if not (emit is None or isinstance(emit, FromCall)):
            raise ValueError(f"{where}: emit must be from_call(…), got {core.show(emit)}.")
        if every_k_schedule is None and emit is None:
            raise ValueError(f"{where}: without emit every_k_schedule must be a k, got None.")
        if not (every_k_schedule is None or callable(every_k_schedule)):
            steps("every_k_schedule", every_k_schedule, 1)
        weights = hyper.Hypers({} if weight is None else {"weight": weight}, where, WEIGHT)
        if weights.tunables or weights.varies_by_path:
            raise ValueError(f"{where}: weight must be a number or from_call(…), got {weight!r}.")
        accumulation = _Accumulation(
            opt,
            every_k_schedule,
            use_grad_mean,
            should_skip_update_fn,
            storage("accumulator_dtype", accumulator_dtype),
            weights,
            emit,
            conditional,
            where,
        )
        self: MultiSteps = super().__new__(
            cls,
            accumulation.init,
            accumulation.update,
            parts=AsGiven(opt, "inner_opt_state") if accumulation.at_once else accumulation.parts,
        )
        self._accumulation = accumulation
        return self

    _accumulation: _Accumulation

    @property
    def inner_opt(self) -> Contract:
        """The inner transformation."""
        return self._accumulation.opt

    def has_updated(self, state: Any) -> Array:
        """Whether nothing has been accumulated since the last update, bool ().

        It is True after a call that updates, and stays True while `should_skip_update_fn` leaves
        out the calls that follow: `state.skip_state` tells them apart.
        """
        self._accumulation.check(state)
        # Flax NNX's optimizer keeps them in variables.
        mini_step, gradient_step = map(array_of, (state.mini_step, state.gradient_step))
        return jnp.logical_and(mini_step == 0, gradient_step > 0)

    def gradient_transformation(self) -> MultiSteps:
        """The transformation itself; Optax's `MultiSteps` is not one."""
        return self


WEIGHT = {"weight": "[0, inf)"}


@dataclass(frozen=True, eq=False)
class _Accumulation:
    """The work of `MultiSteps`, which has checked the arguments."""

    opt: Contract
    every_k: Any
    mean: bool
    should_skip: SkipFunction | None
    dtype: Any
    weights: hyper.Hypers
    emit: FromCall | None
    conditional: bool | None
    where: str

    @property
    def at_once(self) -> bool:
        return not callable(self.every_k) and self.every_k == 1 and not self.weights.sources

    def parts(self, params: Params, state: State) -> list[Part]:
        return [Part("", self.opt, params, state.inner_opt_state)]

    def init(self, params: Params) -> MultiStepsState | WeightedMultiStepsState:
        zero = jnp.zeros((), jnp.int32)
        inner_state = self.opt.init(params)  # first: it raises for what cannot be optimized
        skip_state = ()
        if self.should_skip is not None:
            nothing = gtree.map_numbers(jnp.zeros_like, params)
            skip_state = self.should_skip(nothing, zero, params)[1]
        acc = () if self.at_once else jax.tree.map(self._empty, params)
        state = MultiStepsState(zero, jnp.copy(zero), inner_state, acc, skip_state)
        if not self.weights.sources:
            return state
        return WeightedMultiStepsState(*state, weight_sum=jnp.zeros((), jnp.float32))

    def check(self, state: State) -> None:
        state_class = WeightedMultiStepsState if self.weights.sources else MultiStepsState
        check_state(state, state_class, self.where)

    def _empty(self, p: Any) -> Array | None:
        p = gtree.as_number(p)
        if not gtree.is_inexact(p):
            return None  # the inner transformation leaves it out, or would have refused it
        dtype = self.dtype
        if dtype == jnp.float32 or jnp.iscomplexobj(p):
            dtype = gtree.wide(dtype, jnp.result_type(p))
        return jnp.zeros_like(p, dtype)

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        self.check(state)
        updates = jax.tree.map(gtree.as_number, updates)
        skip_state: Any = ()
        counts: Any = True  # unless the call is skipped
        if self.should_skip is not None:
            skip, skip_state = self.should_skip(updates, state.gradient_step, params)
            counts = ~as_gate(skip, f"{self.where}: should_skip_update_fn")
        step = Step(state.gradient_step, {}, extra, self.where)
        weight: Any = hyper.resolve(self.weights.sources, step).get("weight", 1.0)
        if not isinstance(weight, jax.core.Tracer):
            ranges.check_number(float(weight), WEIGHT["weight"], "weight", self.where)

        first = state.mini_step == 0
        emits = counts & self._is_full(state)
        if self.emit is not None:
            what = f"{self.where}: the extra argument {self.emit.name!r}"
            # A call that is skipped can ask for an update, too: from the calls before it.
            emits |= as_gate(self.emit.given(step), what) & (counts | ~first)
        changed: dict[str, Any] = {}
        if self.at_once:
            acc, means = state.acc_grads, updates
        else:
            total, share = weight, weight
            if self.weights.sources:
                dtype = state.weight_sum.dtype
                total = jnp.where(first, 0.0, state.weight_sum) + weight
                changed["weight_sum"] = jnp.where(counts, total, state.weight_sum).astype(dtype)
                emits &= changed["weight_sum"] > 0  # else it waits for a call with a gradient
                share = weight / jnp.where(total > 0, total, 1.0) if self.mean else weight
            elif self.mean:
                share = 1.0 / ranges.as_float(state.mini_step + 1)
            acc, means = self._accumulate(updates, state.acc_grads, share, first, counts)
        old = state.inner_opt_state
        new, inner_state = gated_update(
            self.opt, self.where, emits, means, old, params, extra, conditional=self.conditional
        )
        new = gtree.map_numbers(lambda u, g: u.astype(jnp.result_type(g)), new, updates)
        mini_step = jnp.where(emits, 0, jnp.where(counts, state.mini_step + 1, state.mini_step))
        updated = safe_increment(state.gradient_step)
        return new, state._replace(
            mini_step=mini_step.astype(jnp.int32),
            gradient_step=jnp.where(emits, updated, state.gradient_step),
            inner_opt_state=inner_state,
            acc_grads=acc,
            skip_state=skip_state,
            **changed,
        )

    def _is_full(self, state: State) -> Any:
        """Whether this call is the last one of k."""
        if self.every_k is None:
            return jnp.array(False)
        k = self.every_k(state.gradient_step) if callable(self.every_k) else self.every_k
        return state.mini_step >= k - 1

    def _accumulate(
        self, updates: Any, acc: Any, share: Any, first: Array, counts: Any
    ) -> tuple[Any, Any]:
        """The new accumulators, and what the inner transformation is given: the same, but wide, and
        `None` where there is no gradient."""
        flat = gtree.flatten(updates)
        old = gtree.flatten_like(flat, acc, "the state's acc_grads", self.where)
        new = list(old)
        for i, g in enumerate(flat.values):
            if gtree.is_inexact(g) and old[i] is not None:
                if jnp.shape(g) != jnp.shape(old[i]):
                    raise ValueError(
                        f"{self.where}: at {flat.paths[i]!r} the update has shape {jnp.shape(g)} "
                        f"and the accumulator {jnp.shape(old[i])}."
                    )
                new[i] = _add(self.mean, g, old[i], share, first, counts)
        pairs = zip(new, flat.values, strict=True)
        means = [widen(a) if gtree.is_inexact(g) and a is not None else g for a, g in pairs]
        return flat.unflatten(new), flat.unflatten(means)


@functools.partial(jax.jit, static_argnums=0)
@gtree.mixing
def _add(mean: bool, g: Array, acc: Array, share: Any, first: Any, counts: Any) -> Array:
    # The mean of the last update is dropped here: to drop it there would take another buffer.
    old = jnp.where(first, 0, widen(acc))
    share = jnp.asarray(share, old.real.dtype)
    part = jnp.where(share == 0, 0, share * widen(g))  # the mean of no tokens may be NaN
    new = (1 - share) * old + part if mean else old + part
    return jnp.where(counts, new.astype(acc.dtype), acc)
