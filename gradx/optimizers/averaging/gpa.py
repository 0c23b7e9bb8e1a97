"""Generalised primal averaging (GPA): schedule-free learning with two rates of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import State, Transform, Updates
from gradx.core.known import AVERAGES, Averaged
from gradx.core.meaning import Number
from gradx.lift.averages import storage
from gradx.lift.leafwise import leafwise
from gradx.lift.sequence import NO_OLD_STATE
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.lift.states import check_state
from gradx.numbers.live import own_state, with_own
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.averaging.interpolation import (
    averaged,
    first_b1,
    interpolate,
    start,
    turned,
    with_averaging,
)

__all__ = ["GPAState", "gpa"]


class GPAState(NamedTuple):
    """The state of `gpa`.

    Attributes:
      b1: the share of x in the parameters, as of the last update, float32 ().
      base_optimizer_state: the state of the base optimizer.
      z: where the base optimizer is, like the parameters.
    """

    b1: Array
    base_optimizer_state: Any
    z: Updates


class _Own(NamedTuple):
    """The part of the state that is not the base optimizer's."""

    last_b1: Array
    z: Updates


@core.recorded
def gpa(
    base_optimizer: Contract,
    decay: Annotated[
        Hyper, Number("[0, 1)", r"\mu_x", "how much of the average is kept each step")
    ] = 0.9967,
    b1: Annotated[Hyper, Number("(0, 1]", r"\mu_y")] = 0.7,
    *,
    state_dtype: Any = None,
) -> Transform:
    r"""Generalised primal averaging: an optimizer that moves z, an average x, gradients in between.

    .. math::
        z &\leftarrow z + T(\nabla f(y)) \\
        x &\leftarrow \mu_x x + (1 - \mu_x)\, z \\
        y &\leftarrow \mu_y x + (1 - \mu_y)\, z

    The parameters are \(y\), and the update moves them. Evaluate at \(x\), which is
    `eval_params(tx, state, params)`. Schedule-free learning is this with a \(\mu_x\) that grows to
    1; here the two shares are free, and the base optimizer's learning rate may have a schedule. It
    does smoothly what outer steps with Nesterov momentum (DiLoCo with one worker) do every k steps.

    Args:
      base_optimizer: \(T\), gradx's or Optax's. It sees the parameters \(y\), so weight decay acts
        there, as in the authors' code.
      decay: The closer to 1, the longer the average. One number for the whole tree.
      b1: the share of \(x\) in \(y\). One number for the whole tree.
      state_dtype: the dtype to keep \(z\) in; by default the parameter's, at least float32.

    Raises:
      ValueError: `base_optimizer` is no transformation; `update` is called without the parameters.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.gpa(gradx.sgd(0.5), decay=0.5)
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     grads = jax.grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = gradx.apply_updates(params, updates)
      >>> gradx.eval_params(tx, state, params).round(2)
      Array([0., 0.], dtype=float32)

    Reference: Defazio et al., *Smoothing DiLoCo with primal averaging for faster training of LLMs*,
    https://arxiv.org/abs/2512.17131.
    """
    rule = leafwise(
        interpolate,
        init={"z": partial(start, dtype=storage("state_dtype", state_dtype))},
        state=_Own,
        hypers={"decay": decay, "b1": b1},
        per_tree=_decide,
        scalars={"last_b1": first_b1(b1)},
        flags={"scaled": False},
        needs_params=True,
    )
    return with_averaging(base_optimizer, rule, _opened, _closed)


def _decide(h: Numbers, sums: Sums) -> Decided:
    numbers, last = turned(1 - h.decay, h.b1, h.last_b1)
    return numbers, {"last_b1": last}


def _opened(state: State, where: str) -> list[State]:
    inner = own_state(state)
    check_state(inner, GPAState, where)
    return [inner.base_optimizer_state, with_own(state, _Own(inner.b1, inner.z))]


def _closed(states: Sequence[State], old: State) -> State:
    base, state = states
    own = own_state(state)
    state_class = GPAState if old is NO_OLD_STATE else type(own_state(old))
    return with_own(state, state_class(own.last_b1, base, own.z))


AVERAGES.add(GPAState, Averaged("gpa", lambda state: [state.z], averaged))
