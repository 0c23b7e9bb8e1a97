"""What the states in a chain tell, as a flat dictionary for a logger."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.known import METRICS
from gradx.inspection.hyperparams import hyperparams
from gradx.numbers.live import PLUMBING, shortest_names
from gradx.numbers.sources import Array

__all__ = ["metrics"]


@checked
def metrics(state: Any, *, tx: Transform | None = None) -> dict[str, Array]:
    """Everything that a state tells about the run, as scalars by name, to hand to a logger.

    These are the measurements of `watch`, `monitor` and `snapshot`, the counts of steps that were
    skipped or accumulated, the scale of `reduce_on_plateau`, and the live numbers. It can be called
    inside `jit`, and then returned beside the loss, or outside, whenever something is to be logged.

    Args:
      state: the state of any chain, Optax's or gradx's, alone or inside a larger tree (a whole
        `TrainState`, or the `opt_state` of an `nnx.Optimizer`).
      tx: the transformation that has the state. Then every number of the chain is among the
        metrics, as in `hyperparams(state, tx=tx)`: constants, and schedules at their step.

    Returns:
      Name to scalar. A name that occurs more than once is preceded by what tells the places apart,
      as in `hyperparams`; a number in a tree that was measured by its path in that: ``norms/w``.
      Arrays with axes are left out, as no logger takes them. Where nothing in the state tells
      anything the dictionary is empty.

    Raises:
      ValueError: the state is not that of `tx`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(
      ...     gradx.snapshot("gradient_norm", gradx.global_norm),
      ...     gradx.apply_if_finite(gradx.adam(gradx.tunable(0.1)), 3),
      ... )
      >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))
      >>> for name, value in gradx.metrics(state).items():
      ...     print(name, value)
      gradient_norm 5.0
      last_finite True
      notfinite_count 0
      total_notfinite 0
      learning_rate 0.1
    """
    told = [
        ((*found.steps, name), value)
        for found in METRICS.find(state)
        for name, value in _scalars(found.known(found.state))
    ]
    values = [value for _, value in told]
    numbers = hyperparams(state, tx=tx)  # what is in use now, also where `watch` has told it
    return dict(zip(_names([steps for steps, _ in told]), values, strict=True)) | numbers


def _scalars(told: Any) -> list[tuple[str, Array]]:
    """The scalars in what a state tells, by path."""
    flat = gtree.flatten(told)
    pairs = zip(flat.paths, flat.values, strict=True)
    return [(p, jnp.asarray(x)) for p, x in pairs if gtree.is_number(x) and jnp.ndim(x) == 0]


def _names(places: list[tuple[str, ...]]) -> list[str]:
    """As `hyperparams` names them, unless a wrapper inside another one then has the same name."""
    names = shortest_names([[s for s in steps if s not in PLUMBING] for steps in places])
    return names if len(set(names)) == len(names) else shortest_names(places)
