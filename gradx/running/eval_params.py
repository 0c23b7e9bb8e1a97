"""The parameters to evaluate, whatever a chain averages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


@checked
def eval_params(
    tx: GradientTransformation, state: State, params: Params, *, which: str | None = None
) -> Params:
    """The parameters to evaluate and to save, for any chain that averages parameters.

    It answers for `ema_params`, `swa_params`, `tail_ema_params`, `lawa_params`, `ema_nesterov`,
    `gpa`, `schedule_free` (Optax's, too) and `lookahead`, alone, in chains, groups and wrappers.
    In the middle of a step of `sam` or `look_sam` it goes by the parameters without the
    adversary's move.

    Args:
      tx: the transformation, gradx's or Optax's; errors name it.
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
    if params is None:
        raise ValueError("eval_params: needs the parameters: call eval_params(tx, state, params).")
    pair = hasattr(params, "fast") and hasattr(params, "slow")
    found = [one for one in AVERAGES.find(state) if one.known.trees(one.state)]
    homes = [one for one in found if one.known.first]
    averages = [one for one in found if not one.known.first]
    names = shortest_names([(*one.steps, one.known.name) for one in averages])
    every_name = [*names, *[SLOW] * pair]
    if not every_name and not homes:
        raise ValueError(
            f"eval_params: {core.show(tx)} averages no parameters, or this is not its state. "
            f"chain(…, ema_params(0.999)) keeps an average; without one evaluate params."
        )
    if which is not None and which not in every_name:
        raise ValueError(f"eval_params: which must be one of {every_name}, got {which!r}.")

    def several(path: str) -> ValueError:
        told = f"several averages, {every_name}: say which, as in which={every_name[0]!r}."
        return ValueError(f"eval_params: {path or 'each parameter'} has {told}")

    if which not in (None, SLOW):
        averages = [one for one, name in zip(averages, names, strict=True) if name == which]
    if not pair:
        return _evaluated(_evaluated(params, homes, several), averages, several)
    # Around lookahead an average is like both trees, and inside it like the fast one.
    inner, outer = _split(averages)
    if inner and which is None:
        raise several("")
    if inner and which != SLOW:
        return _evaluated(_evaluated(params.fast, homes, several), inner, several)
    return _evaluated(params, outer, several).slow


def _evaluated(
    params: Params, averages: Sequence[Found[Averaged]], several: Callable[[str], ValueError]
) -> Params:
    flat = gtree.flatten(params)
    beside = [(one, columns(flat, one, "eval_params")) for one in averages]
    return evaluated(flat, beside, several)


def _split(
    averages: Sequence[Found[Averaged]],
) -> tuple[list[Found[Averaged]], list[Found[Averaged]]]:
    """The averages that are like the fast parameters of a pair, and those that are like both."""
    both: list[list[Found[Averaged]]] = [[], []]
    for one in averages:
        trees = one.known.trees(one.state)
        both[hasattr(trees[0], "fast")].append(one)
    return both[0], both[1]
