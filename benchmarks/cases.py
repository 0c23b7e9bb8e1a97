"""What is measured: one row a transformation, made by gradx and by Optax with the same call.

A new row is one line here; `README.md` says what the fields are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optax


@dataclass(frozen=True)
class Torch:
    """The algorithm in torch.optim; it is run fused and foreach, as far as its class can."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = None  # clip_grad_norm_ before the step


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
      name: what the tables and `--rows` call it.
      make: the library's module, `gradx` or `optax`, to the transformation.
      torch: the peer in torch.optim, if there is one.
      group: rows of a group stand together; targets speak of groups.
      libraries: who takes part. A row that Optax does not have leaves it out.
      tree: the parameters, a name in `trees.TREES`.
      calls: steps in one sample, for transformations whose steps differ from each other (an
        accumulation over k steps: k). Times are reported per step.
      compile_cost: whether the 1,000-leaf section measures it; about a minute a row.
    """

    name: str
    make: Callable[[Any], optax.GradientTransformation]
    torch: Torch | None = None
    group: str = "alias"
    libraries: tuple[str, ...] = ("gradx", "optax")
    tree: str = "blocks"
    calls: int = 1
    compile_cost: bool = False


CASES = [
    # ------------------------------------------------------------ gradient descent
    Case("sgd", lambda lib: lib.sgd(1e-3), Torch("SGD", {"lr": 1e-3})),
    Case(
        "sgd momentum",
        lambda lib: lib.sgd(1e-3, momentum=0.9),
        Torch("SGD", {"lr": 1e-3, "momentum": 0.9}),
    ),
    Case(
        "sgd nesterov",
        lambda lib: lib.sgd(1e-3, momentum=0.9, nesterov=True),
        Torch("SGD", {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
    ),
    # ------------------------------------------------------------ Adam's family
    Case("adam", lambda lib: lib.adam(1e-3), Torch("Adam", {"lr": 1e-3})),
    Case(
        "adamw",
        lambda lib: lib.adamw(1e-3),
        Torch("AdamW", {"lr": 1e-3, "weight_decay": 1e-4}),
        compile_cost=True,
    ),
    Case("nadam", lambda lib: lib.nadam(1e-3), Torch("NAdam", {"lr": 1e-3})),
    Case(
        "nadamw",
        lambda lib: lib.nadamw(1e-3),
        Torch("NAdam", {"lr": 1e-3, "weight_decay": 1e-4, "decoupled_weight_decay": True}),
    ),
    Case("amsgrad", lambda lib: lib.amsgrad(1e-3), Torch("Adam", {"lr": 1e-3, "amsgrad": True})),
    Case("adamax", lambda lib: lib.adamax(1e-3), Torch("Adamax", {"lr": 1e-3})),
    Case("adamaxw", lambda lib: lib.adamaxw(1e-3)),
    Case("radam", lambda lib: lib.radam(1e-3), Torch("RAdam", {"lr": 1e-3})),
    Case("adabelief", lambda lib: lib.adabelief(1e-3)),
    Case("yogi", lambda lib: lib.yogi(1e-3)),
    # ------------------------------------------------------------ accumulated squares
    Case("adagrad", lambda lib: lib.adagrad(1e-3), Torch("Adagrad", {"lr": 1e-3})),
    Case("adadelta", lambda lib: lib.adadelta(1.0), Torch("Adadelta", {"lr": 1.0})),
    Case("rmsprop", lambda lib: lib.rmsprop(1e-3), Torch("RMSprop", {"lr": 1e-3, "alpha": 0.9})),
    Case(
        "rmsprop centered",
        lambda lib: lib.rmsprop(1e-3, centered=True),
        Torch("RMSprop", {"lr": 1e-3, "alpha": 0.9, "centered": True}),
    ),
    Case(
        "rmsprop momentum",
        lambda lib: lib.rmsprop(1e-3, momentum=0.9),
        Torch("RMSprop", {"lr": 1e-3, "alpha": 0.9, "momentum": 0.9}),
    ),
    # ------------------------------------------------------------ signs
    Case("sign_sgd", lambda lib: lib.sign_sgd(1e-3)),
    Case("signum", lambda lib: lib.signum(1e-3)),
    Case("lion", lambda lib: lib.lion(1e-4), compile_cost=True),
    # ------------------------------------------------------------ chains
    Case(
        "clip_by_global_norm + adamw",
        lambda lib: lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(1e-3)),
        Torch("AdamW", {"lr": 1e-3, "weight_decay": 1e-4}, clip=1.0),
        group="chain",
        compile_cost=True,
    ),
]


def chosen(pattern: str) -> list[Case]:
    """The rows whose name the pattern is found in."""
    found = [case for case in CASES if re.search(pattern, case.name)]
    if not found:
        raise SystemExit(f"no row matches {pattern!r}; there are {[c.name for c in CASES]}")
    return found
