"""THE table: one row an algorithm. The laws in `test_laws.py` run over every row.

A row is a factory by name and keywords: the same call makes gradx's transformation, Optax's, and
the float64 reference in `references`. To add an algorithm, add its row, and its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optax

import gradx
from gradx import hyper


@dataclass(frozen=True)
class Case:
    """One algorithm with hyperparameters, and what the laws have to know about it.

    Attributes:
      factory: its name, in gradx, in Optax and among the references.
      kwargs: its arguments. A row among them is a transformation, made in the same library.
      note: tells rows of the same factory apart.
      descends: it is an optimizer: its updates go downhill.
      converges: and with these numbers it reaches the minimum of the shared problems.
      constant_rate: its learning rate is where something begins, and cannot follow a schedule.
      in_optax: Optax has it, under the same name and with the same arguments.
      complex: it accepts complex parameters.
      whole_tree: it takes its number for the whole tree, so not by path.
      ranges: of the numbers for which it has another range than the field's names have.
      renamed: names of arguments to the names that its parts have for them.
      needs_params: `update` has to be given the parameters.
      extra: what `update` is given beside gradients, state and parameters.
      value: the loss that it is given as the extra argument `value`; the reference gets it too.
      temporaries: the arrays like a parameter that a step needs beside its donated buffers.
      bad: further arguments that must be refused.
    """

    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    descends: bool = True
    converges: bool = True
    constant_rate: bool = False
    in_optax: bool = True
    complex: bool = True
    whole_tree: bool = False
    ranges: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    needs_params: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None
    temporaries: float = 0
    bad: Mapping[str, Any] = field(default_factory=dict)

    def make(self, library: Any = gradx, **changed: Any) -> Any:
        return find(library, self.factory)(**made({**self.kwargs, **changed}, library))

    def ready(self, library: Any = gradx, **changed: Any) -> Any:
        """The transformation with its extra arguments filled in, so that any loop can run it."""
        return self.bind(self.make(library, **changed))

    def bind(self, tx: Any) -> Any:
        extra = {**self.extra, **({} if self.value is None else {"value": self.value})}
        if not extra:
            return tx
        return optax.GradientTransformationExtraArgs(
            tx.init, lambda *args, **given: tx.update(*args, **{**extra, **given})
        )

    @property
    def id(self) -> str:
        return f"{self.factory}-{self.note}" if self.note else self.factory


def find(library: Any, name: str) -> Any:
    """A public name, wherever the library keeps it: Optax has several drawers, gradx one."""
    drawers = [library, *(getattr(library, d, None) for d in ("contrib", "transforms"))]
    return next(getattr(d, name) for d in drawers if hasattr(d, name))


def made(value: Any, library: Any) -> Any:
    """Arguments with the rows among them made into transformations."""
    match value:
        case Case():
            return value.make(library)
        case Mapping():
            return {k: made(v, library) for k, v in value.items()}
        case list() | tuple():
            return type(value)(made(v, library) for v in value)
    return value


def row(factory: str, note: str = "", /, **kwargs: Any) -> Case:
    """A row, from the keywords of the factory and, with a leading `_`, those of `Case`."""
    about = {name[1:]: kwargs.pop(name) for name in list(kwargs) if name.startswith("_")}
    return Case(factory, kwargs, note, **about)


# Ranges that are not those of the names.
RADAM = {"threshold": "(4, inf)"}
ADADELTA = {"rho": "(0, 1)", "eps": "(0, inf)"}
LION = {"b2": "[0.01, 1)"}
SCALE_BY_LION = {**LION, "smooth_beta": "(0, inf)"}

HEAVY = {"momentum": 0.9, "nesterov": True, "_renamed": {"momentum": "decay"}}

OPTIMIZERS = [
    row("sgd", learning_rate=0.1),
    row("sgd", "momentum", learning_rate=0.05, momentum=0.9, _renamed={"momentum": "decay"}),
    row("sgd", "nesterov", learning_rate=0.05, **HEAVY),
    row("adam", learning_rate=0.05),
    row("adam", "eps-root", learning_rate=0.05, b1=0.8, b2=0.95, eps=1e-4, eps_root=1e-4),
    row("adam", "nesterov", learning_rate=0.05, nesterov=True),
    row(
        "adamw", learning_rate=0.05, weight_decay=1e-3, _needs_params=True, _bad={"decay": "twice"}
    ),
    row("nadam", learning_rate=0.05),
    row("nadamw", learning_rate=0.05, weight_decay=1e-3, _needs_params=True),
    row("amsgrad", learning_rate=0.05),
    row(
        "amsgrad",
        "paper",
        learning_rate=0.05,
        bias_correction_mu=False,
        bias_correction_nu=False,
    ),
    row("adamax", learning_rate=0.05),
    row("adamaxw", learning_rate=0.05, weight_decay=1e-3, _needs_params=True),
    row("radam", learning_rate=0.05, b2=0.9, _ranges=RADAM),
    row("radam", "nesterov", learning_rate=0.05, b2=0.9, nesterov=True, _ranges=RADAM),
    row("adabelief", learning_rate=0.05),
    row("adabelief", "nesterov", learning_rate=0.05, nesterov=True),
    row("yogi", learning_rate=0.05),
    row("adagrad", learning_rate=0.5),
    row("adadelta", learning_rate=1.0, eps=1e-2, _ranges=ADADELTA),
    row(
        "adadelta",
        "decay",
        learning_rate=1.0,
        eps=1e-2,
        weight_decay=1e-3,
        _needs_params=True,
        _ranges=ADADELTA,
        _temporaries=1,
    ),
    row("rmsprop", learning_rate=0.02),
    row("rmsprop", "eps-outside", learning_rate=0.02, eps_in_sqrt=False, initial_scale=1.0),
    row("rmsprop", "bias", learning_rate=0.02, bias_correction=True),
    row("rmsprop", "centered", learning_rate=0.02, centered=True, eps=1e-3),
    row(
        "rmsprop",
        "centered-bias",
        learning_rate=0.02,
        centered=True,
        eps=0.1,
        bias_correction=True,
    ),
    row("rmsprop", "momentum", learning_rate=0.005, momentum=0.9, _renamed={"momentum": "decay"}),
    row("rmsprop", "nesterov", learning_rate=0.005, **HEAVY, _temporaries=1),
    row("sign_sgd", learning_rate=0.02),
    row("signum", learning_rate=0.02, _renamed={"beta": "decay"}),
    row("lion", learning_rate=0.02, weight_decay=1e-2, _needs_params=True, _ranges=LION),
]

PIECES = [
    row("scale", step_size=-0.5, _ranges={"step_size": hyper.ANY}),
    row("scale_by_learning_rate", learning_rate=0.1),
    row("scale_by_adam", b2=0.95),
    row("scale_by_amsgrad"),
    row("scale_by_adamax"),
    row("scale_by_radam", b2=0.9, _ranges=RADAM),
    row("scale_by_belief"),
    row("scale_by_yogi", eps_root=1e-4),
    row("scale_by_rss", _bad={"initial_accumulator_value": -1.0}),
    row("scale_by_rms"),
    row("scale_by_stddev", eps=1e-3),
    row("scale_by_adadelta", _ranges=ADADELTA),
    row("scale_by_sign"),
    row("scale_by_lion", _ranges=SCALE_BY_LION, _bad={"mode": "soft"}),
    row("scale_by_lion", "smooth", mode="smooth", smooth_beta=3.0, _ranges=SCALE_BY_LION),
    row("scale_by_lion", "refined", mode="refined", _ranges=SCALE_BY_LION),
    row("trace", decay=0.9),
    row("trace", "nesterov", decay=0.9, nesterov=True),
    row("ema", decay=0.9),
    row("ema", "biased", decay=0.9, debias=False),
    row(
        "add_decayed_weights",
        weight_decay=0.1,
        _needs_params=True,
        _ranges={"weight_decay": hyper.ANY},
    ),
    row("clip", max_delta=0.5, _complex=False),
    row("clip_by_global_norm", max_norm=1.0, _whole_tree=True),
    row("clip_by_block_rms", threshold=0.5),
    row("adaptive_grad_clip", clipping=0.1, _needs_params=True),
    row("centralize"),
    row("zero_nans", _temporaries=0.25),
]

CASES = OPTIMIZERS + [
    Case(**{**vars(case), "descends": False, "converges": False}) for case in PIECES
]
