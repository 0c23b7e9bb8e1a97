"""The parameters to evaluate, whatever a chain averages."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradx import core
from gradx.contract import GradientTransformation
from gradx.core import Params, State
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.known import AVERAGES, Averaged, Found
from gradx.lift.evaluation import columns, evaluated
from gradx.numbers.live import shortest_names

__all__ = ["eval_params"]

SLOW = "lookahead"


class _Average(NamedTuple):
    """A state with an average of parameters, or with something to calculate it from."""

    name: str
    found: Found[Averaged]
    columns: list[list[Any]]
    of_all: bool  # like all parameters; else like the fast ones of `lookahead`


@checked
def eval_params(
    tx: GradientTransformation, state: State, params: Params, *, which: str | None = None
) -> Params:
    """The parameters to evaluate and to save, for any chain that averages parameters.

    It answers for `ema_params`, `swa_params`, `tail_ema_params`, `lawa_params`, `ema_nesterov`,
    `gpa`, `schedule_free` (Optax's, too) and `lookahead`, alone, in chains, groups and wrappers;
    and in the midst of a step of `sam` or `look_sam` it gives the parameters without the
    adversary's.

    Args:
      tx: the transformation, gradx's or Optax's.
      state: its state, alone or inside a larger tree (a whole `TrainState`).
      params: the parameters after the last update; for `lookahead` the `LookaheadParams`. The
        newest ones are a part of most averages.
      which: the name of one average, where a parameter has several: ``"ema_params"``, say.

    Returns:
      A tree like `params` in its dtypes, or like `params.slow`. Parameters that nothing averages
      are returned as they are.

    Raises:
      ValueError: nothing is averaged; a parameter has several averages and `which` names none of
        them; an average is not like the parameters. The message lists the averages.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.clip(1.0), gradx.adam(0.1), gradx.ema_params(0.99))
      >>> params = jnp.ones(2)
      >>> state = tx.init(params)
      >>> gradx.eval_params(tx, state, params)
      Array([1., 1.], dtype=float32)
    """
    if not core.is_transform(tx):
        raise ValueError(f"eval_params: tx must be a transformation, got {core.show(tx)}.")
    fast = getattr(params, "fast", None) if hasattr(params, "slow") else None
    averages = _averages(state, params, fast)
    names = [one.name for one in averages] + [SLOW] * (fast is not None)
    if not names:
        raise ValueError(
            f"eval_params: {core.show(tx)} averages no parameters, or this is not its state. "
            f"chain(…, ema_params(0.999)) keeps an average; without one evaluate params."
        )
    if which is not None and which not in names:
        raise ValueError(f"eval_params: which must be one of {names}, got {which!r}.")

    def several(path: str) -> ValueError:
        what = repr(path) if path else "each parameter"
        told = f"{what} has several averages, {names}: say which, as in which={names[0]!r}."
        return ValueError(f"eval_params: {told}")

    if which is not None and which != SLOW:
        averages = [one for one in averages if one.name == which]
    outer = [one for one in averages if one.of_all]
    params = evaluated(gtree.flatten(params), [one[1:3] for one in outer], several)
    if fast is None:
        return params
    inner = [one for one in averages if not one.of_all]
    if not inner or which == SLOW:
        return params.slow
    if which is None:
        raise several("")
    return evaluated(gtree.flatten(params.fast), [one[1:3] for one in inner], several)


def _averages(state: State, params: Params, fast: Params | None) -> list[_Average]:
    """The averages in a state; with `lookahead` some may be like the fast parameters only."""
    found = [one for one in AVERAGES.find(state) if one.known.trees(one.state)]
    names = shortest_names([(*one.steps, one.known.name) for one in found])
    return [
        _Average(name, one, *_beside(one, params, fast))
        for name, one in zip(names, found, strict=True)
    ]


def _beside(
    found: Found[Averaged], params: Params, fast: Params | None
) -> tuple[list[list[Any]], bool]:
    try:
        return columns(gtree.flatten(params), found, "eval_params"), True
    except ValueError:
        if fast is None:
            raise
        return columns(gtree.flatten(fast), found, "eval_params"), False
