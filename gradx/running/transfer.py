"""Changes the chain in the middle of a run, and begins parts of its state anew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Params, State
from gradx.core import trees as gtree
from gradx.core.annotations import check_known
from gradx.core.calls import checked
from gradx.core.ranges import is_real
from gradx.core.suggestions import hint
from gradx.inspection.walk import candidates
from gradx.lift.states import wrong_state
from gradx.numbers.paths import check_pattern
from gradx.running.guards import SkipState
from gradx.running.matching import Plan, carried, dtype_of
from gradx.running.places import Place, places
from gradx.running.restore_points import RestorePoint

__all__ = ["Transfer", "reset", "transfer_state"]


class Transfer(NamedTuple):
    """What `transfer_state` did; `print` shows it, a line for each field.

    Attributes:
      state: the new state.
      kept: the arrays of the new state that come from the old one, by name, such as
        ``ScaleByAdamState.mu[dense/kernel]``.
      begun: those that begin anew.
      dropped: the arrays of the old state that are in the new one no more.
    """

    state: Any
    kept: list[str]
    begun: list[str]
    dropped: list[str]

    def __repr__(self) -> str:
        lists = {"kept": self.kept, "begun anew": self.begun, "dropped": self.dropped}
        told = [[what, *(f"  {name}" for name in _grouped(x))] for what, x in lists.items() if x]
        return "\n".join(line for lines in told for line in lines) or "nothing to keep"


@checked
def transfer_state(
    old_state: Any, tx: Contract, params: Params, *, strict: bool = True, count: int | None = None
) -> Transfer:
    """Carries the state of a run over to another transformation, to change the chain in the middle.

    An array keeps its value if the new state has one of the same class of state, field and
    parameter, wherever these are in the chain; else if one class alone has an array of this field,
    parameter and shape (Adam's `mu` for Muon). Live numbers are kept by name. What else a state
    has, its count first of all, follows its arrays; what cannot keep all of its arrays, such as the
    last values of `skip_spikes`, begins anew. A schedule that had no count begins at the count of
    the old state. The snapshot of a guard is taken anew.

    Args:
      old_state: the state of any chain, Optax's or gradx's, or a larger one that has it as its
        `opt_state` (a `TrainState`, Flax NNX's `Optimizer`).
      tx: the new transformation, gradx's or Optax's.
      params: the parameters as they are now.
      strict: raise an error if something of the old state is dropped, or something begins anew.
        Only a part that is new to the chain (an added guard, accumulator or average: the old state
        has none of its class) and a new live number may begin as they do in `tx.init`.
      count: the step at which schedules begin that had no count, at least 0. By default the one on
        which the old counts agree, without those of averages of the parameters and those inside
        `restart_moments`, which count from elsewhere.

    Returns:
      The new state, and what was kept, begun anew and dropped, by name.

    Raises:
      ValueError: the states have nothing in common; with `strict`, something would be dropped or
        begin anew, also because two old arrays fit one place. The message lists the arrays. The
        count is no whole number of at least 0.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> params = {"w": jnp.ones(2)}
      >>> old = gradx.adam(1e-3).init(params)
      >>> decaying = gradx.adam(gradx.cosine_decay_schedule(1e-3, 1000))
      >>> transfer = gradx.transfer_state(old, gradx.chain(gradx.clip(1.0), decaying), params)
      >>> print(transfer)
      kept
        ScaleByAdamState.count
        ScaleByAdamState.mu[w]
        ScaleByAdamState.nu[w]
        ScaleByScheduleState.count (from ScaleByAdamState.count)
      >>> state = transfer.state

    Arrays that are kept are the old ones, with their shardings, and are cast where the new state
    has another precision. Averages that begin anew beside others share their count, so that their
    bias is not corrected: give unfrozen layers a group of their own (`partition`). Under `jit` a
    schedule begins at 0 where the old counts turn out to differ; outside it this is an error.

    States that share a class are taken to mean the same. Adam's `nu` is a mean of squares and
    Adamax's a largest value, both in a `ScaleByAdamState`. After such a change say
    ``reset(state, tx, params, field="nu")``.
    """
    if not core.is_transform(tx):
        raise ValueError(f"transfer_state: tx must be a transformation, got {core.show(tx)}.")
    if count is not None:
        count = _checked_count(count)
    state = tx.init(params)
    old, new = places(candidates(old_state)[-1], params), places(state, params)
    plan = Plan(old, new, count)
    begun, missed = (
        [_told(p, plan.why.get(p)) for p in some] for some in (plan.begun, plan.missed)
    )
    dropped = [q.name for q in plan.dropped]
    if not plan.sources and (old or new):
        raise ValueError(
            f"transfer_state: the two states have nothing in common. The old one has "
            f"{_listed(dropped)}; that of {core.show(tx)} has {_listed(begun)}. To begin anew, "
            f"call tx.init(params)."
        )
    if strict and (missed or dropped):
        fates = {"begin anew": missed, "be dropped": dropped}
        told = "; ".join(f"{_listed(names)} would {fate}" for fate, names in fates.items() if names)
        remedy = " New schedules begin at count=…, if you give it." if plan.lost else ""
        raise ValueError(f"transfer_state: {told}. If that is meant, say strict=False.{remedy}")
    values, used = [], set()
    for p in new:
        found = plan.sources.get(p, [])
        values.append(carried(found, p.value, found[0] in used) if found else p.value)
        used.update(found)
    kept = [_told(p, _origin(p, plan.sources[p])) for p in new if p in plan.sources]
    structure: Any = jax.tree.structure(state)
    return Transfer(_snapped(structure.unflatten(values)), kept, begun, dropped)


def _checked_count(count: Any) -> int:
    check_known("count", count, "transfer_state")
    if not is_real(count) or not float(count).is_integer() or count < 0:
        raise ValueError(
            f"transfer_state: count must be a whole number of at least 0, got {core.show(count)}."
        )
    return int(count)


def _snapped(state: Any) -> Any:
    """The state with snapshots of guards that are of their inner states as they are now."""

    def snap(x: Any) -> Any:
        if not isinstance(x, SkipState):
            return x
        x = x._replace(inner_state=_snapped(x.inner_state))
        if not isinstance(x.snapshot, RestorePoint):
            return x
        return x._replace(snapshot=x.snapshot.of(x.inner_state))

    return jax.tree.map(snap, state, is_leaf=lambda x: isinstance(x, SkipState))


def _origin(p: Place, found: Sequence[Place]) -> str:
    """Where a value comes from, if it has another name or type there."""
    names = dict.fromkeys(q.name for q in found)
    told = [f"from {' and '.join(names)}"] * (list(names) != [p.name])
    was, now = dtype_of(found[0].value), dtype_of(p.value)
    return ", ".join([*told, *[f"{was} → {now}"] * (was != now)])


def _told(p: Place, about: str | None) -> str:
    return f"{p.name} ({about})" if about else p.name


def _grouped(names: Sequence[str]) -> list[str]:
    """The first name for each field, and how many there are like it."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("[")[0], []).append(name)
    return [f"{first} and {len(more)} more" if more else first for first, *more in groups.values()]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_grouped(names)) or "nothing"


# ---------------------------------------------------------------- one part anew


@checked
def reset(
    state: State,
    tx: Contract,
    params: Params,
    *,
    path: str | None = None,
    field: str | None = None,
) -> State:
    """Gives a part of a state the values that it would begin with, such as one layer's momentum.

    Give a field to reset it everywhere, a path to reset all that belongs to some parameters, or
    both. Nothing else changes: the count of a bias correction goes on.

    Args:
      state: the state of `tx`; it is not changed.
      tx: the transformation, gradx's or Optax's.
      params: the parameters as they are now.
      path: a regular expression that is searched in the parameters' paths, as in `by_path`.
      field: a field of a class of states, such as ``"mu"``; ``"hyperparams"`` resets live numbers.

    Returns:
      A state of the same structure.

    Raises:
      ValueError: neither a path nor a field is given; the path is no regular expression; the state
        has none like it, or is not one of `tx`. The message lists what there is.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> params = {"head": jnp.ones(1), "body": jnp.ones(1)}
      >>> tx = gradx.sgd(0.1, momentum=0.9)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> gradx.reset(state, tx, params, path="head", field="trace")[0]
      TraceState(trace={'body': Array([1.], dtype=float32), 'head': Array([0.], dtype=float32)})
    """
    if path is None and field is None:
        raise ValueError("reset: give a path, a field, or both; tx.init(params) resets everything.")
    if path is not None:
        check_pattern(path, "reset")
    here, first = places(state, params), places(tx.init(params), params)
    layouts = [[(p.holder.labels, p.kind, jnp.shape(p.value)) for p in x] for x in (here, first)]
    if layouts[0] != layouts[1]:
        raise wrong_state("reset", f"in which {core.show(tx)} cannot find its own")
    chosen = {
        p for p in here if field in (None, p.field) and (path is None or _matches(path, p.param))
    }
    if not chosen:
        raise ValueError(f"reset: {_lacking(here, path, field)}")
    values = [
        carried([q], p.value, again=False) if p in chosen else p.value
        for p, q in zip(here, first, strict=True)
    ]
    structure: Any = jax.tree.structure(state)
    return structure.unflatten(values)


def _matches(path: str, param: str | None) -> bool:
    return param is not None and re.search(path, param) is not None


def _lacking(here: Sequence[Place], path: str | None, field: str | None) -> str:
    fields = list(dict.fromkeys(p.field for p in here))
    if field is not None and field not in fields:
        return f"the state has no field {field!r}; it has {fields}.{hint(field, fields)}"
    there = [str(p.param) for p in here if p.param is not None and field in (None, p.field)]
    if not there:
        return f"{field or 'the state'} has no arrays of parameters, of which {path!r} names some."
    found = gtree.listed(list(dict.fromkeys(there)), 20)
    return f"{path!r} is found in none of the paths of {field or 'the state'}: {found}."
