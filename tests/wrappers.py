"""Wrappers and inner optimizers, out of which random chains are made (`test_faults.py`).

A wrapper is a function of any transformation. It is here if it passes trees like the parameters;
`lookahead` and SAM, which do not, have their own tests.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradx

PARAMS = {"a": jnp.array([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0]]), "b": jnp.array([0.3, -0.7, 2.0])}
ONLY_A = {"a": True, "b": False}


def every_other(step: Any) -> Any:
    return step % 2 == 0


def averaged(tx: Any) -> Any:
    return gradx.chain(tx, gradx.ema_params(0.9, every=2), gradx.lawa_params(2, 2))


def in_groups(tx: Any) -> Any:
    return gradx.partition({"one": tx, "two": tx}, gradx.by_path({"a": "one"}, default="two"))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    # Guards.
    "skip_nonfinite": lambda tx: gradx.skip_nonfinite(tx, flag_after=3),
    "restoring": lambda tx: gradx.skip_nonfinite(tx, restore_after=2, snapshot_every=2),
    "skip_spikes": lambda tx: gradx.skip_spikes(tx, window=4),
    "apply_if_finite": lambda tx: gradx.apply_if_finite(tx, 2),
    "optax.apply_if_finite": lambda tx: optax.apply_if_finite(tx, 10**6),
    # In some steps.
    "MultiSteps": lambda tx: gradx.MultiSteps(tx, 2),
    "conditionally_mask": lambda tx: gradx.conditionally_mask(tx, every_other),
    "conditionally_transform": lambda tx: gradx.conditionally_transform(tx, every_other),
    "restart_moments": lambda tx: gradx.restart_moments(tx, 3, warmup=2),
    # In sequence.
    "clipped": lambda tx: gradx.chain(gradx.clip_by_global_norm(1.0), tx),
    "zclip": lambda tx: gradx.chain(gradx.zclip(), tx),
    "adagc": lambda tx: gradx.chain(gradx.adagc(), tx),
    "grokfast": lambda tx: gradx.chain(gradx.grokfast(), tx),
    "decayed": lambda tx: gradx.chain(tx, gradx.add_decayed_weights(-1e-3)),
    "averaged": averaged,
    "ema_nesterov": lambda tx: gradx.chain(tx, gradx.ema_nesterov()),
    "named_chain": lambda tx: gradx.named_chain(("clip", gradx.clip(1.0)), ("rest", tx)),
    "optax.chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    # Of some leaves, or of other views.
    "masked": lambda tx: gradx.masked(tx, ONLY_A),
    "in groups": in_groups,
    "freeze": lambda tx: gradx.freeze(gradx.by_path({"b": True}, default=False), tx),
    "flatten": gradx.flatten,
    "cautious": gradx.cautious,
    # Around.
    "watch": lambda tx: gradx.watch(tx, every=3),
    "tunable": gradx.tunable,
    "schedule_free": lambda tx: gradx.schedule_free(tx, 0.1),
    "gpa": gradx.gpa,
    "mechanize": gradx.mechanize,
}

INNER: dict[str, Callable[[], Any]] = {
    "sgd": lambda: gradx.sgd(0.1, momentum=0.9),
    "adam": lambda: gradx.adam(0.05),
    "adamw, scheduled": lambda: gradx.adamw(gradx.linear_schedule(0.1, 0.0, 20)),
    "lion": lambda: gradx.lion(0.01),
    "adafactor": lambda: gradx.adafactor(0.05),
    "muon": lambda: gradx.muon(0.02),
    "optax.adam": lambda: optax.adam(0.05),
    "optax.rmsprop": lambda: optax.rmsprop(0.05),
}


def built(names: list[str], inner: str) -> Any:
    """The wrappers around an inner optimizer, the first one outside.

    Raises:
      ValueError: two of them do not go together, and one says why.
    """
    tx = INNER[inner]()
    for name in reversed(names):
        tx = WRAPPERS[name](tx)
    jax.eval_shape(tx.update, PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS)
    return tx


def random_chain(random: Random) -> tuple[str, Any]:
    """A chain of one to four wrappers around an inner optimizer, and what it is made of."""
    while True:
        inner = random.choice(list(INNER))
        names = random.choices(list(WRAPPERS), k=random.randint(1, 4))
        try:
            return " > ".join([*names, inner]), built(names, inner)
        except ValueError:  # `check_pair` looks at the reason
            continue


BAD = (jnp.nan, jnp.inf, -jnp.inf, 1e30)


def gradients(random: Random, steps: int) -> tuple[list[Any], list[bool]]:
    """Gradients of a run, some with a fault in some leaf, and which steps are good.

    Zeros are no fault: a leaf may have no gradient in a step.
    """
    noise = jax.random.normal(jax.random.key(random.randrange(2**31)), (steps, 9))
    made, good = [], []
    for row in noise:
        tree = {"a": row[:6].reshape(2, 3), "b": row[6:]}
        kind, leaf = random.random(), random.choice(["a", "b"])
        if kind < 0.3:
            where = random.randrange(tree[leaf].size)
            flat = tree[leaf].ravel().at[where].set(random.choice(BAD))
            tree[leaf] = flat.reshape(tree[leaf].shape)
        elif kind < 0.4:
            tree[leaf] = jnp.zeros_like(tree[leaf])
        made.append(tree)
        good.append(kind >= 0.3)
    return made, good
