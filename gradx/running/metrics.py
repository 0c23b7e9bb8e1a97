"""What the states in a chain tell, as a flat dictionary for a logger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.known import METRICS, Found, Measured
from gradx.inspection.hyperparams import numbers
from gradx.numbers.live import PLUMBING, shortest_names
from gradx.numbers.sources import Array
from gradx.running.watch import WatchState

__all__ = ["metrics"]

Steps = tuple[str, ...]


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
      Arrays with axes that were measured are left out, as no logger takes them. Where nothing in
      the state tells anything the dictionary is empty.

    Raises:
      ValueError: the state is not that of `tx`; it is of several runs or devices, so that counts or
        numbers have axes: take one of them, or call `jax.vmap(metrics)(state)`.

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
    in_use = [(tuple(steps), value) for steps, value in numbers(state, tx)]
    told = [
        ((*found.steps, name), value)
        for found in METRICS.find(state)
        for name, value in _scalars(found.known(found.state))
        if not _is_copy(found, name, [steps for steps, _ in in_use])
    ]
    names = _names([steps for steps, _ in told], [steps for steps, _ in in_use])
    values = [value for _, value in (*told, *in_use)]
    for name, value in zip(names, values, strict=True):
        _check_scalar(name, value)
    return dict(zip(names, values, strict=True))


def _scalars(told: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """What a state tells, and of what a function of the user measured the scalars, by path."""
    for name, value in sorted(told.items()):
        measured = isinstance(value, Measured)
        flat = gtree.flatten({name: value.tree if measured else value})
        for path, x in zip(flat.paths, flat.values, strict=True):
            if gtree.is_number(x) and not (measured and jnp.ndim(x)):
                yield path, jnp.asarray(x)


def _check_scalar(name: str, value: Array) -> None:
    if jnp.ndim(value):
        raise ValueError(
            f"metrics: {name} has shape {jnp.shape(value)} instead of (): these are the states of "
            f"several runs or devices. Take one, jax.tree.map(lambda x: x[0], state), or ask for "
            f"all, jax.vmap(metrics)(state)."
        )


def _is_copy(found: Found[Any], name: str, in_use: Sequence[Steps]) -> bool:
    """Whether a number that `watch` tells is among those in use now."""
    if not isinstance(found.state, WatchState):
        return False
    watch = _labels(found.steps)
    inside = [steps for steps in in_use if steps[: len(watch)] == watch]
    short = [tuple(s for s in steps if not s.isdigit()) for steps in inside]
    return any(f"/{'/'.join(steps)}".endswith(f"/{name}") for steps in (*inside, *short))


def _labels(steps: Steps) -> Steps:
    return tuple(s for s in steps if s not in PLUMBING)


def _names(told: Sequence[Steps], in_use: Sequence[Steps]) -> list[str]:
    """The shortest names of both, without the fields of wrappers if names differ without them."""
    names = shortest_names([*map(_labels, told), *in_use])
    if len(set(names)) < len(names):
        names = shortest_names([*told, *(("hyperparams", *steps) for steps in in_use)])
    return names
