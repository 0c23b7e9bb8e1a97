"""Sophia: momentum divided by the curvature, which is estimated in a few steps only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.combinators.predicated import check_inner
from gradx.contract import MaskedNode
from gradx.core import Count, Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.meaning import Number
from gradx.core.updates import safe_increment
from gradx.lift.averages import average, real_zeros, storage, weight_so_far, zero_moments
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import measured, run, staged
from gradx.lift.sequence import NO_OLD_STATE, InSequence
from gradx.lift.stages import Call, Leaves, Numbers, Rows, is_array
from gradx.lift.states import check_state
from gradx.lift.tree_first import TreeFirst
from gradx.lowering.conditional import choose_tree, if_open, rarely
from gradx.numbers.counting import steps
from gradx.numbers.live import own_state, with_own
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adam import ScaleByAdamState
from gradx.optimizers.second_order.hutchinson import hutchinson_estimator_diag_hessian
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["SophiaState", "scale_by_sophia", "sophia"]


_HUTCHINSON = hutchinson_estimator_diag_hessian()


# ---------------------------------------------------------------- the rule


class SophiaState(NamedTuple):
    """The state of Sophia.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters.
      nu: the average of estimates of the Hessian's diagonal, like the parameters.
      hessian_fn_state: the state of the transformation that estimates it.
    """

    count: Count
    mu: Updates
    nu: Updates
    hessian_fn_state: Any


class _Curvature(NamedTuple):
    count: Count
    nu: Updates


@core.recorded
def scale_by_sophia(
    b1: Hyper = 0.965,
    b2: Hyper = 0.99,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-8,
    gamma: Annotated[Hyper, Number("(0, inf)", r"\gamma")] = 0.01,
    clip_threshold: Annotated[Hyper | None, Number("(0, inf]", "c")] = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: Contract = _HUTCHINSON,
    mu_dtype: Any = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: int = 0,
) -> Transform:
    r"""Rescales the updates by Sophia's rule: momentum over curvature, clipped.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) g, \qquad \hat\mu = \mu / (1 - \beta_1^t) \\
        u &= \min(\max(\hat\mu / \max(\gamma \nu, \epsilon), -c), c) \\
        \nu &\leftarrow \beta_2 \nu + (1 - \beta_2)\, \hat h
            \text{ in the steps } t = 1,\ 1 + k,\ 1 + 2k, \ldots

    where \(\hat h\) is an estimate of the Hessian's diagonal, made in these steps only. `update`
    gets what the estimate needs as extra arguments: `obj_fn` for Hutchinson's.

    Args:
      b2: Since \(\nu\) changes in every \(k\)-th step, it remembers \(k\) times as many steps as an
        average of gradients with the same number.
      eps: the least denominator, where the curvature is smaller or negative.
      gamma: a factor of the curvature; the larger, the fewer elements are clipped.
      clip_threshold: the largest absolute value of an element; with `None` nothing is clipped.
      update_interval: the steps from one estimate of the curvature to the next, \(k\), from 1 on.
      hessian_diagonal_fn: the transformation that replaces gradients by the estimate.
      verbose: print the win rate, the share of elements that are not clipped. The authors recommend
        0.1 to 0.5; a larger \(\gamma\) raises it.
      print_win_rate_every_n_steps: the steps from one print to the next, with `verbose`; 0 for one.

    Raises:
      ValueError: the win rate is asked for, but not `verbose`, or nothing is clipped; in `update`,
        what the estimate needs is missing; gradients are complex.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> loss = lambda p: jnp.sum(jnp.array([1.0, 100.0]) * p**2)
      >>> tx = gradx.scale_by_sophia(gamma=1.0, b2=0.5)
      >>> p = jnp.array([0.3, 0.3])
      >>> state = tx.init(p)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jax.grad(loss)(p), state, p, obj_fn=loss)
      >>> updates.round(1), state.nu.round()
      (Array([0.6, 0.6], dtype=float32), Array([  1., 100.], dtype=float32))

    Reference: Liu et al., *Sophia*, https://arxiv.org/abs/2305.14342, Algorithm 3. As in Optax, and
    unlike the paper, \(\mu\) is corrected for its start at zero, and an estimate counts from the
    step after it was made, so that in the first step \(u = \pm c\). The authors' SophiaG divides by
    \(\rho B \nu + 10^{-15}\), with the batch size \(B\), instead of \(\max(\gamma \nu, \epsilon)\)
    here and in the paper.
    """
    where = core.where()
    check_inner(hessian_diagonal_fn, where, "hessian_diagonal_fn")
    interval = steps("update_interval", update_interval, 1)
    report = steps("print_win_rate_every_n_steps", print_win_rate_every_n_steps, 0)
    if report and not verbose:
        raise ValueError(f"{where}: print_win_rate_every_n_steps does nothing without verbose.")
    if verbose and clip_threshold is None:
        raise ValueError(f"{where}: verbose needs a clip_threshold: without one all elements win.")
    clipping = {} if clip_threshold is None else {"clip_threshold": clip_threshold}
    moved = leafwise(
        _sophia,
        init=zero_moments(storage("mu_dtype", mu_dtype)),
        state=ScaleByAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "gamma": gamma, **clipping},
        flags={"clips": bool(clipping)},
        per_step=_correction,
    )
    averaged = leafwise(_average, init={"nu": real_zeros}, state=_Curvature, hypers={"b2": b2})

    def described(params: Params, state: State) -> list[Part]:
        fn_state = own_state(state).hessian_fn_state
        return [
            Part("", moved, params, _moments(state)),
            Part("hessian_diagonal_fn", hessian_diagonal_fn, params, fn_state),
        ]

    estimates = _Estimates(
        moved.stage,
        averaged.stage,
        core.with_extra_args(hessian_diagonal_fn),
        interval,
        max(report, 1) if verbose else 0,
        where,
    )
    curvature = TreeFirst(estimates.init, estimates.prepare)
    both = InSequence([curvature, moved.stage], estimates.pack, estimates.unpack, where)
    return staged(both, where, described)


def _correction(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"correct_mu": 1 / weight_so_far(h.b1, t)}


def _sophia(g: Array, s: ScaleByAdamState, p: None, h: Numbers) -> tuple[Array, ScaleByAdamState]:
    mu = average(s.mu, g, h.b1)
    u = _newton(mu, s.nu, h)
    u = jnp.clip(u, -h.clip_threshold, h.clip_threshold) if h.clips else u
    return u, s._replace(mu=mu)


def _newton(mu: Array, nu: Array, h: Numbers) -> Array:
    return h.correct_mu * mu / jnp.maximum(h.gamma * nu, h.eps)


def _wins(g: Array, s: ScaleByAdamState, p: None, h: Numbers) -> Mapping[str, Array]:
    u = _newton(average(s.mu, g, h.b1), s.nu, h)
    return {"wins": jnp.sum(jnp.abs(u) < h.clip_threshold)}


def _average(g: Array, s: _Curvature, p: None, h: Numbers) -> tuple[Array, _Curvature]:
    return g, s._replace(nu=average(s.nu, g, h.b2))


@dataclass(frozen=True, eq=False)
class _Estimates:
    """The curvature of the whole tree, which some steps renew.

    `moved` is the rule of every step, with the curvature from before the step; `averaged` is the
    rule that averages estimates.
    """

    moved: Any
    averaged: Any
    hessian: Contract
    interval: int
    report: int
    where: str

    def init(self, params: Params) -> State:
        return self.hessian.init(params), None

    def prepare(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any]
    ) -> tuple[list[None], State]:
        """Renews the state of the estimator and the average of estimates, if it is due."""
        inner = own_state(state)
        for i, u in enumerate(leaves.updates):
            if is_array(u) and jnp.iscomplexobj(u):
                raise ValueError(
                    f"{self.where}: the update at {leaves.flat.paths[i]!r} is complex, which has "
                    f"no order and cannot be clipped."
                )
        if self.report:
            self._print(leaves, state, extra)
        params = leaves.visible_params

        def renew() -> Array:  # again inside the conditional, which then need not wait for it
            now = inner.count % self.interval == 0
            return now if leaves.gate is None else now & leaves.gate

        def estimate() -> tuple[State, Updates]:
            try:
                return self._renewed(leaves, state, params, extra, renew())
            except Exception as error:
                error.add_note(f"This was in {self.where}.")
                raise

        def keep() -> tuple[State, Updates]:
            return inner.hessian_fn_state, inner.nu

        # Devices may have different gates, but a collective in the estimate needs all of them.
        due = renew() if leaves.conditional else inner.count % self.interval == 0
        new = rarely(due, estimate, keep, (leaves.updates, state, params))
        return [None] * len(leaves.updates), new

    def unpack(self, state: State) -> list[State]:
        check_state(own_state(state), SophiaState, self.where)
        return [state, _moments(state)]

    def pack(self, states: Sequence[State], old: State) -> State:
        (fn_state, nu), moved = states
        moments = own_state(moved)
        if old is NO_OLD_STATE:
            return with_own(moved, SophiaState(moments.count, moments.mu, moments.nu, fn_state))
        new = type(own_state(old))(moments.count, moments.mu, nu, fn_state)
        return with_own(moved, new)

    def _renewed(
        self,
        leaves: Leaves,
        state: State,
        params: Params | None,
        extra: Mapping[str, Any],
        gate: Array,
    ) -> tuple[State, Updates]:
        """The new state of the estimator, and the average with a new estimate in it."""
        inner = own_state(state)
        if "obj_fn" in extra:
            extra = {**extra, "obj_fn": _of_visible(leaves, extra["obj_fn"])}
        estimate, fn_state = self.hessian.update(
            leaves.tree, inner.hessian_fn_state, params, **extra
        )
        flat = gtree.flatten(leaves.tree)
        diagonal = gtree.flatten_like(flat, estimate, "the Hessian's diagonal", self.where)
        pairs = zip(flat.values, diagonal, strict=True)
        estimates = flat.unflatten([None if g is None else d for g, d in pairs])
        live = getattr(state, "hyperparams", {})
        before = self.averaged.wrapped(_Curvature(inner.count, inner.nu), None, live)
        _, after = run(self.averaged, self.where, estimates, before, None, extra)
        old = inner.hessian_fn_state, inner.nu
        new = jax.tree.map(_like, (fn_state, own_state(after).nu), old)
        if leaves.gate is not None:  # without a conditional this runs behind a closed gate, too
            new = choose_tree(leaves.gate, new, old)
        renewed: tuple[State, Updates] = if_open(gate, new, old)
        return renewed

    def _print(self, leaves: Leaves, state: State, extra: Mapping[str, Any]) -> None:
        rows: Rows = [[] for _ in leaves.updates]
        self.moved.begin(leaves, _moments(state), extra, rows)
        calls = {i: call for i, row in enumerate(rows) for call in row if isinstance(call, Call)}
        won = [
            measured(_wins, c.static, leaves.updates[i], None, c.traced, c.state)["wins"]
            for i, c in calls.items()
        ]
        t = safe_increment(own_state(state).count)
        rate = sum(won) / max(1, sum(jnp.size(leaves.updates[i]) for i in calls))
        jax.lax.cond(
            t % self.report == 0,
            lambda: jax.debug.print("sophia: win rate {rate} in step {t}", rate=rate, t=t),
            lambda: None,
        )


def _moments(state: State) -> State:
    """The part of Sophia's state that belongs to its rule."""
    inner = own_state(state)
    return with_own(state, ScaleByAdamState(inner.count, inner.mu, inner.nu))


def _of_visible(leaves: Leaves, obj_fn: Any) -> Any:
    """The loss as a function of the leaves that are not masked; the others are constants."""
    hidden = any(isinstance(u, MaskedNode) for u in leaves.updates)
    if leaves.params is None or not hidden or not callable(obj_fn):
        return obj_fn
    whole = leaves.params

    def of_visible(params: Params) -> Array:
        visible = gtree.flatten_like(leaves.flat, params, "the parameters of obj_fn", "sophia")
        pairs = zip(visible, whole, strict=True)
        return obj_fn(
            leaves.flat.unflatten([p if isinstance(x, MaskedNode) else x for x, p in pairs])
        )

    return of_visible


def _like(new: Any, old: Any) -> Any:
    return new if new.dtype == old.dtype else new.astype(old.dtype)


# ---------------------------------------------------------------- the optimizer


@core.recorded
def sophia(
    learning_rate: Hyper,
    b1: Hyper = 0.965,
    b2: Hyper = 0.99,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-8,
    weight_decay: Hyper = 1e-4,
    weight_decay_mask: Any = None,
    gamma: Annotated[Hyper, Number("(0, inf)", r"\gamma")] = 0.01,
    clip_threshold: Annotated[Hyper | None, Number("(0, inf]", "c")] = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: Contract = _HUTCHINSON,
    mu_dtype: Any = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: int = 0,
    *,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""Sophia: momentum over estimated curvature, with decoupled weight decay.

    .. math:: u = -\eta_t \left(\min(\max(\hat\mu / \max(\gamma \nu, \epsilon), -c), c)
              + \lambda \theta\right)

    with the averages of `scale_by_sophia`.

    Args:
      gamma: a factor of the curvature; the larger, the fewer elements are clipped.
      clip_threshold: the largest absolute value of an element; with `None` nothing is clipped.
      update_interval: the steps from one estimate of the curvature to the next.
      hessian_diagonal_fn: the transformation that estimates it, from the extra arguments of
        `update`.
      verbose: print the share of elements that are not clipped.
      print_win_rate_every_n_steps: the steps from one print to the next, with `verbose`; 0 for one.

    Raises:
      ValueError: `update` is called without the parameters, or without what the estimate needs
        (`obj_fn`, the loss as a function of the parameters alone).

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> loss = lambda p: jnp.sum(p**2)
      >>> tx = gradx.sophia(0.1, weight_decay=0.0)
      >>> p = jnp.array([1.0, -2.0])
      >>> tx.update(jax.grad(loss)(p), tx.init(p), p, obj_fn=loss)[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference: Liu et al., *Sophia: a scalable stochastic second-order optimizer for language model
    pre-training*, https://arxiv.org/abs/2305.14342.
    """
    return chain(
        scale_by_sophia(
            b1,
            b2,
            eps,
            gamma,
            clip_threshold,
            update_interval,
            hessian_diagonal_fn,
            mu_dtype,
            verbose,
            print_win_rate_every_n_steps,
        ),
        *scale_and_decay(learning_rate, weight_decay, weight_decay_mask, decay),
    )
