"""THE table: one row an algorithm. The laws in `laws/` run over every row.

A row is a factory by name and keywords: the same call makes gradx's transformation, Optax's, and
the float64 reference in `references`. To add an algorithm, add its row, and its reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
import pytest

import gradx
from gradx.core import ranges
from gradx.core.vocabulary import RANGES


@dataclass(frozen=True, eq=False)
class Case:
    """One algorithm with hyperparameters, and what the laws have to know about it.

    Attributes:
      factory: its name, in gradx, in Optax and among the references.
      kwargs: its arguments. A row among them is a transformation, made in the same library.
      note: tells rows of the same factory apart.
      descends: it is an optimizer. Its updates go downhill, and reach the minimum of the shared
        problems with these numbers.
      constant_rate: its learning rate is only a starting value, and cannot follow a schedule.
      in_optax: Optax has it, under the same name and with the same arguments.
      scalars_in_optax: where Optax takes leaves of rank 0, too.
      narrow_in_optax: Optax calculates a part in float32, also where all else is float64.
      complex: it accepts complex parameters.
      whole_tree: its numbers hold for the whole tree, and cannot go by path.
      ranges: of the numbers for which it has another range than the field's names have.
      copies: how many further live values there are because two parts share a number.
      needs_params: `update` has to be given the parameters.
      keeps_params: its state has copies of the parameters, in their dtypes.
      extra: what `update` is given beside gradients, state and parameters.
      value: the loss that it is given as the extra argument `value`; the reference gets it too.
      temporaries: the arrays like a parameter that a step needs beside its donated buffers.
      bad: further arguments that must be refused.
      represents: it may stand for other rows with its mechanisms, in `mechanisms.py`. A program
        that takes seconds to compile does not, where a smaller one has the same.
    """

    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    descends: bool = True
    constant_rate: bool = False
    in_optax: bool = True
    scalars_in_optax: bool = True
    narrow_in_optax: bool = False
    complex: bool = True
    whole_tree: bool = False
    ranges: Mapping[str, str] = field(default_factory=dict)
    copies: int = 0
    needs_params: bool = False
    keeps_params: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None
    temporaries: float = 0
    bad: Mapping[str, Any] = field(default_factory=dict)
    represents: bool = True

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

SOPHIA = {"eps": "(0, inf)", "gamma": "(0, inf)", "clip_threshold": "(0, inf]"}

ADAN = {"b3": "[0, 1)"}
MIX = {"alpha": "[0, inf)"}
TWO_MEMORIES = {**ADAN, **MIX}
OPTIMISTIC = {"alpha": "[0, inf)", "beta": "[0, inf)"}
RPROP = {
    "eta_minus": "(0, 1]",
    "eta_plus": "[1, inf)",
    "min_step_size": "[0, inf)",
    "max_step_size": "(0, inf]",
}

SCHEDULE_FREE = {"b1": "(0, 1]", "weight_lr_power": "[0, inf)"}
AVERAGED = {"_needs_params": True, "_whole_tree": True, "_ranges": SCHEDULE_FREE}

AHEAD = {"lookahead": "[0, inf)"}
MEAN = {
    "_needs_params": True,
    "_whole_tree": True,
    "_in_optax": False,
    "_ranges": {"mix": "[0, 1]", "half_life": "(0, inf]"},
}

PRODIGY = {"beta3": "[0, 1)", "estim_lr_coef": "(0, inf)"}
POLYAK = {"max_learning_rate": "(0, inf]", "f_min": ranges.ANY, "scaling": "[0, inf)"}
PLATEAU = {
    "factor": "(0, 1)",
    "rtol": "[0, 1)",
    "atol": "[0, inf)",
    "min_scale": "[0, 1]",
}
POSITIVE_EPS = {"eps": "(0, inf)"}
BAD_DOG = {"init_step": ("distance", 0.0)}
MEASURED = {"_needs_params": True, "_whole_tree": True}

MOMENTUM = {"_ranges": {"momentum": "[-1, 1]"}}
HEAVY = {"momentum": 0.9, "nesterov": True, **MOMENTUM}

TRUST = {"trust_coefficient": "(0, inf)"}
LARS = {**TRUST, "momentum": "[-1, 1]"}
FACTORED = {"decay_rate": "[0, 1]"}
ADAFACTOR = {
    **FACTORED,
    "clipping_threshold": "(0, inf]",
    "eps": "(0, inf)",
    "weight_decay_rate": "[0, inf)",
}
MARS = {"_in_optax": False, "_ranges": {"gamma": "[0, inf)"}}

BAD_MEMORY = {
    "_in_optax": False,
    "_needs_params": True,
    "_temporaries": 2,
    "_bad": {"memory_size": 0},
}
QUASI_NEWTON = {"linesearch": None, "_represents": False, **BAD_MEMORY}

OF_ADAM = ("learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay")
BY_ADAM = {f"adam_{name}": RANGES[name] for name in OF_ADAM}
# Large programs (see `represents`).
MUON = {
    "_represents": False,
    "_ranges": {"beta": "[0, 1)", **BY_ADAM},
    "_copies": 2,  # of eps and the learning rate
    "_bad": {"ns_steps": 0, "ns_coeffs": "jordan", "preconditioning": "l2", "convention": "torch"},
}

SHAMPOO = {
    "_represents": False,
    "_in_optax": False,
    "_ranges": {
        "b2": "[0, 1]",
        "eps": "(0, inf)",
        "exponent": "(0, 1]",
        "graft_b2": "[0, 1)",
        "graft_eps": "(0, inf)",
    },
    "_copies": 1,  # of the learning rate
    "_bad": {"block_size": 0, "precondition_frequency": 0, "graft": "adamw", "mu_dtype": "int8"},
}

PSGD = {
    "_represents": False,
    "probe": "expected",  # noise is no reference
    "_in_optax": False,
    "_whole_tree": True,
    "_ranges": {
        "preconditioner_lr": "[0, 1)",
        "preconditioner_update_probability": "[0, 1]",
    },
    "_copies": 1,  # of the learning rate
    "_bad": {"memory_save_mode": "diag", "probe": "sign", "max_size_triangular": -1, "key": 0.5},
}

SOAP = {
    "_represents": False,
    "_in_optax": False,
    "_ranges": {"shampoo_beta": "[0, 1)"},
    "_needs_params": True,
    "_bad": {"precondition_frequency": 0, "max_precond_dim": -1, "chunk": 0, "mu_dtype": "int8"},
}
KL = {**SOAP, "_bad": {**SOAP["_bad"], "init_factor": 0.0, "max_clamp_value": -1.0}}
SPLUS = {**SOAP, "_ranges": {}}
HYPERBALL = {
    "_in_optax": False,
    "_needs_params": True,
    "_copies": 1,  # of the learning rate
}
NORMUON = {
    "_represents": False,
    "_in_optax": False,
    "_needs_params": True,
    "_ranges": {"consistent_rms": "(0, inf)"},
    "_copies": 1,  # of the learning rate
    "_bad": {"ns_steps": 0, "ns_coeffs": "jordan", "preconditioning": "l2"},
}
SCION = {
    "_represents": False,
    "_in_optax": False,
    "_ranges": {"momentum": "(0, 1]", "radius": "[0, inf)", "head_radius": "[0, inf)"},
    "_copies": 1,  # of eps
    "_bad": {"ns_steps": 0, "ns_coeffs": "jordan", "preconditioning": "l2"},
}

DION = {
    "_represents": False,
    "_in_optax": False,
    "_bad": {
        "rank_fraction": 0.0,
        "rank_multiple_of": 0,
        "key": 0.5,
        "mu_dtype": "int8",
        "convention": "l2",
    },
}
DION2 = {
    "_represents": False,
    "_in_optax": False,
    "_ranges": {"ef_decay": "[0, 1)"},
    "_bad": {"fraction": 1.5, "ns_steps": 0, "ns_coeffs": "jordan", "preconditioning": "l2"},
}

OPTIMIZERS = [
    row("sgd", learning_rate=0.1),
    row("sgd", "momentum", learning_rate=0.05, momentum=0.9, **MOMENTUM),
    row("sgd", "nesterov", learning_rate=0.05, **HEAVY),
    row(
        "sgd",
        "dampening",
        learning_rate=0.05,
        momentum=0.9,
        dampening=0.5,
        _in_optax=False,
        _ranges={"momentum": "[-1, 1]", "dampening": "[0, 1)"},
        _bad={"nesterov": True},
    ),
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
    row("adan", learning_rate=0.05, _ranges=ADAN),
    row(
        "adan",
        "paper",
        learning_rate=0.05,
        weight_decay=1e-3,
        paper=True,
        _in_optax=False,
        _needs_params=True,
        _ranges=ADAN,
    ),
    row("acprop", learning_rate=0.05, eps_root=1e-8, _temporaries=1),
    row(
        "acprop", "decay", learning_rate=0.05, weight_decay=1e-3, _needs_params=True, _temporaries=1
    ),
    row("adopt", learning_rate=0.05, b2=0.99, _bad={"clip_value_fn": 1.0}),
    row("adopt", "nesterov", learning_rate=0.05, b2=0.99, nesterov=True, _temporaries=1),
    row("adopt", "unbounded", learning_rate=0.05, b2=0.9, use_clipping=False),
    row("ademamix", learning_rate=0.02, b3=0.99, alpha=2.0, _ranges=TWO_MEMORIES),
    row("simplified_ademamix", learning_rate=0.01, b1=0.9, alpha=2.0, _ranges=MIX),
    row(
        "optimistic_gradient_descent",
        learning_rate=0.1,
        beta=0.5,
        _ranges=OPTIMISTIC,
        _temporaries=1,
    ),
    row(
        "optimistic_adam_v2",
        learning_rate=0.05,
        beta=0.5,
        _ranges=OPTIMISTIC,
        _temporaries=2,
    ),
    row(
        "optimistic_adam",
        learning_rate=0.05,
        optimism=0.02,
        _in_optax=False,  # it is there, and warns
        _ranges={"optimism": "[0, inf)"},
        _temporaries=2,
    ),
    row(
        "rprop",
        learning_rate=4.0,
        max_step_size=5.0,  # which is reached
        _constant_rate=True,
        _in_optax=False,
        _ranges=RPROP,
        _bad={"learning_rate": 0.0, "min_step_size": 6.0},
    ),
    row(
        "noisy_sgd",
        learning_rate=0.1,
        eta=0.0,  # noise is no reference
        key=0,
        _temporaries=4,
        _bad={"eta": -1.0, "gamma": -1.0},
    ),
    row("dog", learning_rate=1.0, init_step=("distance", 0.1), **MEASURED, _bad=BAD_DOG),
    row("dog", "learning-rate", learning_rate=1.0, init_step=("learning_rate", 0.01), **MEASURED),
    row(
        "dowg",
        learning_rate=1.0,
        init_estim_sq_dist=0.01,
        _bad={"eps": 0.0, "init_estim_sq_dist": 0.0},
        _needs_params=True,
    ),
    row(
        "prodigy",
        learning_rate=1.0,
        estim_lr0=0.01,
        weight_decay=1e-3,
        _ranges=PRODIGY,
        _bad={"betas": (0.9, 1.0), "estim_lr0": 0.0},
        **MEASURED,
    ),
    row(
        "prodigy",
        "safeguard",
        learning_rate=1.0,
        betas=(0.8, 0.99),
        beta3=0.9,
        estim_lr0=0.01,
        estim_lr_coef=0.5,
        safeguard_warmup=True,
        _ranges=PRODIGY,
        **MEASURED,
    ),
    row(
        "dadapt_adamw",
        learning_rate=1.0,
        estim_lr0=0.01,
        weight_decay=1e-3,
        _ranges=POSITIVE_EPS,
        _bad={"betas": 0.9, "estim_lr0": 0.0},
        **MEASURED,
    ),
    row(
        "momo",
        learning_rate=0.1,
        weight_decay=1e-3,
        _value=2.0,
        _ranges={"beta": "[0, 1)"},
        _bad={"lower_bound": "0"},
        **MEASURED,
    ),
    row(
        "momo",
        "adapt",
        learning_rate=0.1,
        beta=0.7,
        lower_bound=-1.0,
        adapt_lower_bound=True,
        _value=2.0,
        _ranges={"beta": "[0, 1)"},
        **MEASURED,
    ),
    row("momo_adam", learning_rate=0.1, _value=2.0, _ranges=POSITIVE_EPS, **MEASURED),
    row(
        "momo_adam",
        "adapt",
        learning_rate=0.05,
        b1=0.3,
        weight_decay=1e-3,
        lower_bound=-1.0,
        adapt_lower_bound=True,
        _value=0.1,
        _ranges=POSITIVE_EPS,
        **MEASURED,
    ),
    row("madgrad", learning_rate=0.1, weight_decay=1e-4, _needs_params=True, _narrow_in_optax=True),
    row(
        "cocob",
        learning_rate=1.0,
        alpha=10.0,
        weight_decay=1e-4,
        _needs_params=True,
        _ranges={"alpha": "[0, inf)"},
        _bad={"eps": 0.0},
    ),
    row("mars", learning_rate=0.05, **MARS),
    row(
        "mars",
        "decay",
        learning_rate=0.05,
        b1=0.9,
        gamma=0.1,
        max_norm=2.0,
        weight_decay=1e-3,
        _needs_params=True,
        **MARS,
    ),
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
    row("rmsprop", "momentum", learning_rate=0.005, momentum=0.9, **MOMENTUM),
    row("rmsprop", "nesterov", learning_rate=0.005, **HEAVY, _temporaries=1),
    row("sign_sgd", learning_rate=0.02),
    row(
        "signum",
        learning_rate=0.02,
        _ranges={"beta": "[0, 1)"},
    ),
    row("lion", learning_rate=0.02, weight_decay=1e-2, _needs_params=True, _ranges=LION),
    row(
        "lars",
        learning_rate=1.0,
        trust_coefficient=0.02,
        weight_decay=1e-3,
        _needs_params=True,
        _ranges=LARS,
        _temporaries=1,
    ),
    row(
        "lars",
        "nesterov",
        learning_rate=0.4,
        trust_coefficient=0.1,
        eps=1e-2,
        momentum=0.8,
        nesterov=True,
        trust_ratio_mask=True,
        _needs_params=True,
        _ranges=LARS,
    ),
    row("lamb", learning_rate=0.3, _needs_params=True, _temporaries=1),
    row(
        "lamb",
        "decay",
        learning_rate=0.3,
        eps_root=1e-6,
        weight_decay=1e-3,
        _needs_params=True,
        _temporaries=1,
    ),
    row("fromage", learning_rate=0.3, _needs_params=True, _ranges={"min_norm": "[0, inf)"}),
    row("novograd", learning_rate=0.02),
    row("novograd", "decay", learning_rate=0.02, b2=0.9, weight_decay=1e-3, _needs_params=True),
    row(
        "adafactor",
        learning_rate=0.3,
        min_dim_size_to_factor=2,
        _narrow_in_optax=True,
        _needs_params=True,
        _ranges=ADAFACTOR,
        _bad={"min_dim_size_to_factor": 0, "dtype_momentum": "int8"},
        _temporaries=1,
    ),
    row(
        "adafactor",
        "momentum",
        learning_rate=0.05,
        min_dim_size_to_factor=2,
        decay_rate=0.9,
        decay_offset=2,
        multiply_by_parameter_scale=False,
        momentum=0.9,
        weight_decay_rate=1e-3,
        _in_optax=False,  # where the decay of the steps before the offset is NaN
        _needs_params=True,
        _ranges=ADAFACTOR,
        _temporaries=1,
    ),
    row(
        "adafactor",
        "unfactored",
        learning_rate=0.3,
        clipping_threshold=None,
        momentum=0.6,
        weight_decay_rate=1e-4,
        _narrow_in_optax=True,
        factored=False,
        _needs_params=True,
        _ranges=ADAFACTOR,
    ),
    row(
        "sm3",
        learning_rate=0.2,
        _scalars_in_optax=False,
        _temporaries=1,
    ),
    row(
        "schedule_free", base_optimizer=row("sgd", learning_rate=0.1), learning_rate=0.1, **AVERAGED
    ),
    row(
        "schedule_free",
        "adam",
        base_optimizer=row("adam", learning_rate=0.05, b1=0.0),
        learning_rate=0.05,
        b1=0.8,
        weight_lr_power=1.0,
        _bad={"base_optimizer": "adam", "state_dtype": "int8"},
        _temporaries=1,
        **AVERAGED,
    ),
    row("schedule_free_sgd", learning_rate=0.2, b1=0.8, weight_decay=1e-3, **AVERAGED),
    row(
        "schedule_free_sgd",
        "warmup",
        learning_rate=0.2,
        warmup_steps=5,
        _in_optax=False,  # where the weights are one step ahead
        _bad={"warmup_steps": -1},
        **AVERAGED,
    ),
    row(
        "schedule_free_adamw",
        learning_rate=0.05,
        weight_decay=1e-3,
        _temporaries=1,
        **AVERAGED,
    ),
    row(
        "sophia",
        learning_rate=0.02,
        b2=0.5,
        weight_decay=1e-3,
        gamma=1.0,
        update_interval=3,
        hessian_diagonal_fn=row("scale", step_size=2.0),  # deterministic, as a reference needs it
        _needs_params=True,
        _complex=False,
        _ranges=SOPHIA,
        _temporaries=1,
        _bad={"update_interval": 0, "print_win_rate_every_n_steps": 5},
    ),
    row(
        "galore",
        learning_rate=0.05,
        rank=2,
        update_proj_gap=25,
        _narrow_in_optax=True,
        weight_decay=1e-3,
        _needs_params=True,
        _temporaries=1.5,  # of which a third in the steps that renew the projectors only
        _bad={"rank": 0, "scale": -1.0, "update_proj_gap": 0.5, "base_optimizer": "adam"},
    ),
    row(  # Optax leaves the signs of renewed directions to chance
        "galore",
        "renewed",
        learning_rate=0.05,
        rank=2,
        update_proj_gap=3,
        _in_optax=False,
        _temporaries=1.5,
    ),
    row(
        "galore",
        "shorter",
        learning_rate=0.05,
        rank=2,
        update_proj_gap=25,
        side="shorter",
        _in_optax=False,
        _temporaries=1.25,
    ),
    row("muon", learning_rate=0.05, nesterov=False, _temporaries=2.25, **MUON),
    # Optax hands its Nesterov flag on to Adam.
    row("muon", "nesterov", learning_rate=0.05, _in_optax=False, _temporaries=2.25, **MUON),
    row(
        "muon",
        "slow average",
        learning_rate=0.05,
        b3=0.99,
        alpha=2.0,
        nesterov=False,
        _in_optax=False,
        _temporaries=2.25,
        **{**MUON, "_ranges": {**MUON["_ranges"], **TWO_MEMORIES}},
    ),
    row(
        "muon",
        "dion",
        learning_rate=0.05,
        ns_coeffs="dion",
        bias_correction=False,
        convention="spectral",
        _in_optax=False,
        _temporaries=2.25,
        **MUON,
    ),
    row(
        "muon",
        "aol",
        learning_rate=0.05,
        ns_steps=4,
        nesterov=False,
        preconditioning="aol",
        adam_b2=0.95,
        adam_learning_rate=0.05,
        adam_weight_decay=1e-3,
        _needs_params=True,
        _temporaries=2.25,
        **{**MUON, "_copies": 1},
    ),
    row(
        "muon",
        "schatten",
        learning_rate=0.05,
        nesterov=False,
        preconditioning="schatten",
        _temporaries=2.25,
        **MUON,
    ),
    row(
        "muon",
        "decay",
        learning_rate=0.1,
        weight_decay=1e-3,
        nesterov=False,
        consistent_rms=0.2,
        preconditioning="spectral",
        _needs_params=True,
        _temporaries=6.26,
        **MUON,
    ),
    row(
        "muon",
        "exact",
        learning_rate=0.05,
        ns_coeffs="exact",
        weight_decay=1e-3,
        _in_optax=False,
        _needs_params=True,
        _temporaries=2.5,
        **{**MUON, "_represents": True},
    ),
    row("soap", learning_rate=0.05, _copies=1, _temporaries=17.52, **SOAP),
    row(
        "soap",
        "frequent",
        learning_rate=0.05,
        b1=0.9,
        eps=1e-3,
        precondition_frequency=3,
        shampoo_beta=0.8,
        staggered=True,
        _copies=1,
        _temporaries=18.52,
        **{**SOAP, "_represents": True},
    ),
    row(
        "soap",
        "slow average",
        learning_rate=0.05,
        b3=0.99,
        alpha=2.0,
        precondition_frequency=4,
        _copies=1,
        _temporaries=18.52,
        **{**SOAP, "_ranges": {**SOAP["_ranges"], **TWO_MEMORIES}},
    ),
    row(
        "soap",
        "one-sided",
        learning_rate=0.05,
        precondition_frequency=4,
        max_precond_dim=3,
        bias_correction=False,
        fallback=row("adamw", learning_rate=0.02, weight_decay=1e-3),
        _temporaries=1,
        **SOAP,
    ),
    row(
        "psgd_kron",
        learning_rate=0.05,
        preconditioner_update_probability=1.0,
        _temporaries=30.78,
        **PSGD,
    ),
    row(
        "psgd_kron",
        "rare",
        learning_rate=0.05,
        b1=0.8,
        preconditioner_update_probability=0.4,
        preconditioner_lr=0.3,
        preconditioner_init_scale=0.5,
        weight_decay=1e-3,
        _needs_params=True,
        _temporaries=30.78,
        **PSGD,
    ),
    row(
        "psgd_kron",
        "one-diagonal",
        learning_rate=0.05,
        preconditioner_update_probability=0.5,
        memory_save_mode="one_diag",
        _temporaries=3.52,
        **PSGD,
    ),
    row(
        "psgd_kron",
        "diagonals",
        learning_rate=0.05,
        preconditioner_update_probability=0.3,
        max_size_triangular=2,
        fallback=row("adam", learning_rate=0.02),
        _temporaries=2.11,
        **{**PSGD, "_copies": 0, "_represents": True},
    ),
    row(
        "shampoo",
        learning_rate=0.05,
        eps=1e-2,
        weight_decay=1e-3,
        _needs_params=True,
        _temporaries=18.77,
        **SHAMPOO,
    ),
    row(
        "shampoo",
        "blocks",
        learning_rate=0.05,
        b2=0.9,
        eps=0.1,
        block_size=3,
        precondition_frequency=3,
        graft="rmsprop",
        graft_b2=0.95,
        _temporaries=9.3,
        **SHAMPOO,
    ),
    row(
        "shampoo",
        "sgd",
        learning_rate=0.2,
        b2=0.9,
        eps=1e-2,
        block_size=3,
        precondition_frequency=2,
        staggered=True,
        graft="sgd",
        bias_correction=False,
        _temporaries=9.29,
        **SHAMPOO,
    ),
    row(
        "shampoo",
        "no-graft",
        learning_rate=0.1,
        b2=0.9,
        eps=1e-2,
        graft="none",
        exponent=0.5,
        fallback=row("adam", learning_rate=0.05, b2=0.95),
        _temporaries=18.02,
        **{**SHAMPOO, "_copies": 0},
    ),
    row(
        "shampoo",
        "staggered",
        learning_rate=0.1,
        b2=0.9,
        eps=0.1,  # with 0.01 the rounding of an older root passes the laws' tolerance
        precondition_frequency=2,
        staggered=True,
        graft="none",
        exponent=0.5,
        fallback=row("adam", learning_rate=0.05, b2=0.95),
        _temporaries=18.02,
        **{**SHAMPOO, "_copies": 0, "_represents": True},
    ),
    row(
        "shampoo",
        "adagrad",
        learning_rate=0.1,
        eps=1e-2,
        graft="adagrad",
        _temporaries=18.77,
        **SHAMPOO,
    ),
    row("normuon", learning_rate=0.1, weight_decay=1e-3, _temporaries=2.25, **NORMUON),
    row(
        "normuon",
        "dion",
        learning_rate=0.05,
        weight_decay=0.0,
        ns_coeffs="dion",
        b2=0.8,
        nesterov=True,
        consistent_rms=None,
        _temporaries=2.25,
        **{**NORMUON, "_needs_params": False},
    ),
    row("adamuon", learning_rate=0.1, weight_decay=1e-3, _temporaries=3, **NORMUON),
    row(
        "adamuon",
        "paper",
        learning_rate=0.1,
        eps=1e-3,
        weight_decay=0.0,
        nesterov=False,
        fallback=row("sgd", learning_rate=0.05, momentum=0.9),
        _temporaries=3,
        **{**NORMUON, "_needs_params": False, "_copies": 0},
    ),
    row("scion", learning_rate=0.05, radius=10.0, _needs_params=True, _temporaries=2.25, **SCION),
    row(
        "scion",
        "unconstrained",
        learning_rate=0.1,
        momentum=0.3,
        ns_coeffs="dion",
        radius=1.0,
        unconstrained=True,
        _temporaries=2.25,
        **SCION,
    ),
    row(
        "dion",
        learning_rate=0.05,
        weight_decay=1e-3,
        _copies=1,
        _needs_params=True,
        _temporaries=3.26,
        **DION,
    ),
    row(
        "dion",
        "low rank",
        learning_rate=0.1,
        rank_fraction=0.5,
        b1=0.8,
        eps=1e-3,
        weight_decay=0.0,
        key=3,
        convention="moonlight",
        fallback=row("sgd", learning_rate=0.05, momentum=0.9),
        _temporaries=2.26,
        **{**DION, "_represents": True},
    ),
    row(
        "dion2",
        learning_rate=0.15,
        weight_decay=1e-3,
        ns_coeffs="exact",  # five steps from a singular value of 1 lose a digit of float32
        _copies=1,
        _needs_params=True,
        _temporaries=1.52,
        **DION2,
    ),
    row(
        "dion2",
        "two of three",
        learning_rate=0.2,
        fraction=0.5,
        ns_coeffs="dion",
        ef_decay=0.8,
        eps=1e-3,
        weight_decay=0.0,
        consistent_rms=0.2,
        fallback=row("sgd", learning_rate=0.05, momentum=0.9),
        _temporaries=2.06,
        **DION2,
    ),
    row(
        "kl_soap", learning_rate=0.05, precondition_frequency=4, _copies=1, _temporaries=15.53, **KL
    ),
    row(
        "kl_soap",
        "staggered",
        learning_rate=0.05,
        b2=0.9,
        max_precond_dim=3,
        precondition_frequency=3,
        shampoo_beta=0.8,
        staggered=True,
        fallback=row("adamw", learning_rate=0.02, weight_decay=1e-3),
        _temporaries=3.03,
        **KL,
    ),
    row(
        "kl_shampoo",
        learning_rate=0.05,
        precondition_frequency=4,
        _copies=1,
        _temporaries=17.52,
        **KL,
    ),
    row(
        "kl_shampoo",
        "clamped",
        learning_rate=0.05,
        b2=0.8,
        eps=1e-2,
        init_factor=1.0,
        max_clamp_value=2.0,
        max_precond_dim=3,
        precondition_frequency=3,
        _copies=1,
        _temporaries=2.04,
        **KL,
    ),
    row(
        "splus",
        learning_rate=0.2,
        precondition_frequency=4,
        fallback=row("adam", learning_rate=0.05),
        _temporaries=13.52,
        **SPLUS,
    ),
    row(
        "splus",
        "staggered",
        learning_rate=0.2,
        b1=0.8,
        b2=0.9,
        eps=1e-3,
        weight_decay=1e-3,
        precondition_frequency=3,
        staggered=True,
        fallback=row("adamw", learning_rate=0.05, weight_decay=1e-3),
        _temporaries=13.52,
        **SPLUS,
    ),
    row(
        "splus",
        "one-sided",
        learning_rate=0.2,
        weight_decay=1e-4,
        precondition_frequency=1,
        max_precond_dim=3,
        decay="independent",
        fallback=row("sgd", learning_rate=0.05, momentum=0.9),
        _temporaries=1,
        **SPLUS,
    ),
    # Without a fallback, leaves that are no matrix have a thousandth of the rate.
    row(
        "splus", "signs", learning_rate=20.0, max_precond_dim=0, _copies=1, _temporaries=1, **SPLUS
    ),
    # With arbitrary gradients some steps are left out, which Optax uses; test_lbfgs.py compares.
    row("lbfgs", learning_rate=0.05, **QUASI_NEWTON),
    row("lbfgs", "short", learning_rate=0.9, memory_size=4, **QUASI_NEWTON),
    row(
        "lbfgs",
        "unscaled",
        learning_rate=0.2,
        memory_size=5,
        scale_init_precond=False,
        **{**QUASI_NEWTON, "_represents": True},
    ),
]

PIECES = [
    row("scale", step_size=-0.5, _ranges={"step_size": ranges.ANY}),
    row("scale_by_learning_rate", learning_rate=0.1),
    row("scale_by_adam", b2=0.95),
    row("scale_by_amsgrad"),
    row("scale_by_adamax"),
    row("scale_by_radam", b2=0.9, _ranges=RADAM),
    row("scale_by_belief"),
    row("scale_by_yogi", eps_root=1e-4),
    row("scale_by_adan", eps_root=1e-4, _ranges=ADAN),
    row("scale_by_acprop", _temporaries=1),
    row("scale_by_adopt", b2=0.9),
    row("scale_by_ademamix", b3=0.99, _ranges=TWO_MEMORIES),
    row("scale_by_simplified_ademamix", eps_root=1e-4, _ranges=MIX),
    row(
        "scale_by_optimistic_gradient",
        alpha=0.5,
        beta=2.0,
        _ranges=OPTIMISTIC,
        _temporaries=1,
    ),
    row("scale_by_rprop", learning_rate=0.1, _in_optax=False, _ranges=RPROP),
    # Optax does not export the next two.
    row("scale_by_dog", init_step=("distance", 0.1), _in_optax=False, **MEASURED),
    row("scale_by_dowg", _in_optax=False, _needs_params=True, _bad={"eps": 0.0}),
    row(
        "scale_by_distance_over_gradients",
        reps_rel=0.01,
        global_scale=-1.0,
        _in_optax=False,  # which gives a scalar another shape
        _needs_params=True,
        _ranges={"global_scale": ranges.ANY},
        _bad={"reps_rel": 0.0, "param_dtype": int},
    ),
    row(
        "scale_by_polyak",
        f_min=0.5,
        eps=0.1,
        _value=2.0,
        _whole_tree=True,
        _ranges=POLYAK,
        _bad={"variant": "sps-"},
    ),
    row(
        "scale_by_polyak",
        "sps+",
        f_min=3.0,
        variant="sps+",
        _value=2.0,
        _whole_tree=True,
        _ranges=POLYAK,
    ),
    row(
        "polyak_sgd",
        max_learning_rate=0.1,
        _value=2.0,
        _whole_tree=True,
        _ranges=POLYAK,
    ),
    row(
        "polyak_sgd",
        "scaled",
        scaling=0.5,
        _value=2.0,
        _whole_tree=True,
        _ranges=POLYAK,
        _in_optax=False,  # where the scaling divides
    ),
    row(
        "scale_by_madgrad",
        learning_rate=0.1,
        momentum=0.5,
        _needs_params=True,
        _narrow_in_optax=True,
    ),
    row("scale_by_cocob", _needs_params=True, _ranges={"alpha": "[0, inf)"}, _bad={"eps": 0.0}),
    row("correct_by_mars", gamma=0.1, **MARS, _temporaries=1),
    row("scale_by_mars", gamma=0.1, **MARS),
    row("scale_by_rss", _bad={"initial_accumulator_value": -1.0}),
    row("scale_by_rms"),
    row("scale_by_stddev", eps=1e-3),
    row("scale_by_adadelta", _ranges=ADADELTA),
    row("scale_by_sign"),
    row("scale_by_lion", _ranges=SCALE_BY_LION, _bad={"mode": "soft"}),
    row("scale_by_lion", "smooth", mode="smooth", smooth_beta=3.0, _ranges=SCALE_BY_LION),
    row("scale_by_lion", "refined", mode="refined", _ranges=SCALE_BY_LION),
    row("trace", decay=0.9, _ranges={"decay": "[-1, 1]"}),
    row("trace", "nesterov", decay=0.9, nesterov=True, _ranges={"decay": "[-1, 1]"}),
    row("ema", decay=0.9),
    row("ema", "biased", decay=0.9, debias=False),
    row("grokfast", decay=0.9, _in_optax=False, _ranges={"amplification": "[0, inf)"}),
    row(
        "add_decayed_weights",
        weight_decay=0.1,
        _needs_params=True,
        _ranges={"weight_decay": ranges.ANY},
    ),
    row("clip", max_delta=0.5, _complex=False),
    row("clip_by_global_norm", max_norm=1.0, _whole_tree=True),
    row("clip_by_block_rms", threshold=0.5),
    row("adaptive_grad_clip", clipping=0.1, _needs_params=True),
    row(
        "zclip",
        threshold=0.5,
        decay=0.7,
        warmup=3,
        _whole_tree=True,
        _in_optax=False,
        _ranges={"threshold": "(0, inf)"},
        _bad={"warmup": 0},
    ),
    row(
        "adagc",
        ratio=0.9,
        decay=0.7,
        warmup=4,
        _whole_tree=True,
        _in_optax=False,
        _ranges={"ratio": "(0, inf)"},
        _bad={"warmup": 0.5},
    ),
    row("normalize"),
    row(
        "normalize_by_update_norm",
        scale_factor=-0.5,
        eps=1e-2,
        _whole_tree=True,
        _ranges={"scale_factor": ranges.ANY},
    ),
    row("scale_by_param_block_norm", _needs_params=True, _ranges={"min_scale": "[0, inf)"}),
    row(
        "scale_by_param_block_rms",
        min_scale=1.0,
        _needs_params=True,
        _ranges={"min_scale": "[0, inf)"},
    ),
    row(
        "scale_by_trust_ratio",
        min_norm=0.5,
        trust_coefficient=0.1,
        eps=1e-2,
        _needs_params=True,
        _ranges={**TRUST, "min_norm": "[0, inf)"},
    ),
    row("scale_by_novograd", b2=0.9, eps_root=1e-4, weight_decay=0.1, _needs_params=True),
    row(
        "scale_by_factored_rms",
        min_dim_size_to_factor=2,
        decay_rate=0.5,
        _narrow_in_optax=True,
        _ranges={**FACTORED, "epsilon": "(0, inf)"},
        _bad={"step_offset": -1, "min_dim_size_to_factor": float("nan"), "decay_rate_fn": 0.8},
        _temporaries=1,
    ),
    row("scale_by_sm3", _ranges={"b2": "[0, 1]"}, _scalars_in_optax=False, _temporaries=1),
    row(
        "scale_by_sm3",
        "average",
        b1=0.6,
        b2=0.9,
        eps=1e-4,
        _ranges={"b2": "[0, 1]"},
        _scalars_in_optax=False,
        _temporaries=1,
    ),
    row("add_cautious_decay", weight_decay=0.1, _in_optax=False, _needs_params=True),
    row(
        "add_cautious_decay",
        "of-steps",
        weight_decay=0.1,
        flip_sign=True,
        _in_optax=False,
        _needs_params=True,
    ),
    row("centralize"),
    row("keep_params_nonnegative", _needs_params=True, _complex=False),
    row("apply_every", k=3, _bad={"k": 1.5}),
    row("ema_nesterov", lookahead=0.5, decay=0.9, _whole_tree=True, _in_optax=False, _ranges=AHEAD),
    row("ema_params", decay=0.9, **MEAN),
    row("ema_params", "seldom", half_life=5.0, every=2, warmup=True, **MEAN),
    row("swa_params", start=2, **{**MEAN, "_whole_tree": False}),
    row("tail_ema_params", start=2, **MEAN),
    row("lawa_params", window=2, every=2, **{**MEAN, "_whole_tree": False}),
    row("zero_nans", _temporaries=0.25),
    row(
        "scale_by_sophia",
        b2=0.5,
        eps=1.0,
        gamma=1.0,
        clip_threshold=None,
        update_interval=3,
        hessian_diagonal_fn=row("scale", step_size=2.0),
        _complex=False,
        _ranges=SOPHIA,
        _temporaries=1,
        _in_optax=False,  # where only the alias is public
    ),
    row(
        "scale_by_galore",
        rank=2,
        _narrow_in_optax=True,
        scale=0.5,
        base_optimizer=row("trace", decay=0.9),
        _temporaries=1.5,
    ),
]


@gradx.registered
def all_are_queries(params: Any) -> Any:
    return jax.tree.map(lambda x: gradx.HeadAxis(()), params)


@gradx.registered
def every_other(step: Any) -> Any:
    return step % 2 == 0


ADAM = row("adam", learning_rate=0.05)

SAM = {"_needs_params": True, "_keeps_params": True}

WRAPPERS = [
    row(
        "MultiSteps",
        opt=ADAM,
        every_k_schedule=3,
        _narrow_in_optax=True,
        _bad={"every_k_schedule": 0},
    ),
    row(
        "MultiSteps",
        "sum",
        opt=row("sgd", learning_rate=0.1),
        every_k_schedule=2,
        use_grad_mean=False,
        _narrow_in_optax=True,
    ),
    row(
        "apply_if_finite",
        inner=ADAM,
        max_consecutive_errors=2,
        _temporaries=0.25,
        _bad={"max_consecutive_errors": 1.5, "inner": "adam"},
    ),
    row(  # with `skip_nonfinite` in it
        "skip_spikes",
        inner=row("sgd", learning_rate=0.1),
        window=4,
        sigmas=0.5,
        _in_optax=False,
        _ranges={"sigmas": "(0, inf)"},
        _bad={"inner": "adam", "window": 1, "norm": False, "loss": "value"},
    ),
    row(
        "restart_moments",
        inner=row("sgd", learning_rate=0.1, momentum=0.9),
        every=5,
        warmup=3,
        _in_optax=False,
        _needs_params=True,
        _bad={"inner": "adam", "every": 0, "warmup": 6},
    ),
    row("conditionally_transform", inner=ADAM, should_transform_fn=every_other),
    row(
        "mechanize",
        base_optimizer=ADAM,
        s_init=0.01,
        _ranges=POSITIVE_EPS,
        _bad={"num_betas": 0, "s_init": 0.0, "base_optimizer": 0.1},
        **MEASURED,
    ),
    row(
        "reduce_on_plateau",
        factor=0.5,
        patience=2,
        atol=1e-3,
        cooldown=3,
        min_scale=0.2,
        _value=1.0,
        _whole_tree=True,
        _ranges=PLATEAU,
        _bad={"patience": 0, "cooldown": -1, "accumulation_size": 0},
    ),
    row(
        "early_stopping",
        patience=2,
        atol=1e-3,
        _value=1.0,
        _whole_tree=True,
        _in_optax=False,
        _ranges={name: PLATEAU[name] for name in ("rtol", "atol")},
        _bad={"patience": 0, "accumulation_size": 0},
    ),
    row("conditionally_mask", inner=ADAM, should_transform_fn=every_other),
    row(
        "sam",
        "two",
        optimizer=row("adamw", learning_rate=0.05, weight_decay=0.1),
        adv_optimizer=row("normalize_by_update_norm", scale_factor=-0.1),
        _bad={"sync_period": 0, "batch_axis_name": "i", "optimizer": None, "adv_optimizer": None},
        **SAM,
    ),
    row(
        "sam",
        "three",
        optimizer=row("sgd", learning_rate=0.1),
        adv_optimizer=row("sgd", learning_rate=0.05, momentum=0.9),
        sync_period=3,
        **SAM,
    ),
    row(
        "sam",
        "kept",
        optimizer=row("sgd", learning_rate=0.1),
        adv_optimizer=row("adam", learning_rate=0.05),
        sync_period=3,
        reset_state=False,
        **SAM,
    ),
    row(  # of `asam`
        "asam_adversary",
        rho=0.3,
        eta=0.1,
        _needs_params=True,
        _in_optax=False,
        _ranges={"rho": "[0, inf)", "eta": "[0, inf)"},
        _temporaries=1,
    ),
    row(
        "look_sam",
        optimizer=row("sgd", learning_rate=0.1),
        adv_optimizer=row("normalize_by_update_norm", scale_factor=-0.1),
        period=2,
        _in_optax=False,
        _ranges={"alpha": "[0, inf)"},
        _whole_tree=True,
        _temporaries=1,
        _bad={"period": 0, "batch_axis_name": "i", "optimizer": None, "adv_optimizer": None},
        **SAM,
    ),
    row("selective_transform", optimizer=ADAM, freeze_mask=False, _bad={"optimizer": None}),
    row("flatten", inner=ADAM, _bad={"inner": "adam"}),
    row("split_real_and_imaginary", inner=ADAM, _bad={"inner": "adam"}),
    row(  # one number for all heads; test_modifiers.py has the others
        "qk_clip",
        threshold=1.0,
        heads=all_are_queries,
        _in_optax=False,
        _needs_params=True,
        _extra={"max_logits": 4.0},
    ),
    row(
        "hyperball",
        inner=row("scale_by_adam", b2=0.95),
        learning_rate=0.1,
        fallback=row("adamw", learning_rate=0.05, weight_decay=1e-3),
        _bad={"inner": "muon", "fallback": "adam"},
        _temporaries=1,
        **{**HYPERBALL, "_copies": 0},
    ),
    row(
        "gpa",
        base_optimizer=row("sgd", learning_rate=0.1),
        decay=0.5,
        _needs_params=True,
        _whole_tree=True,
        _ranges={"b1": "(0, 1]"},
        _in_optax=False,
        _bad={"base_optimizer": "sgd", "state_dtype": "int8"},
    ),
    row("hyperball", "trace", inner=row("trace", decay=0.9), learning_rate=0.3, **HYPERBALL),
    row(
        "cautious",
        inner=ADAM,
        _in_optax=False,
        _bad={"inner": "adam", "direction": "down", "min_share": 0.0},
        _temporaries=1,
    ),
    row(
        "cautious",
        "ascent",
        inner=row("scale_by_adam", b2=0.95),
        direction="ascent",
        min_share=0.7,
        _in_optax=False,
        _temporaries=1,
    ),
    # The parameters go uphill here, so that the memory has nothing but steps to leave out.
    row("scale_by_lbfgs", memory_size=3, **BAD_MEMORY),
]

CASES = OPTIMIZERS + [Case(**{**vars(case), "descends": False}) for case in PIECES + WRAPPERS]


def each(rows: Iterable[Case]) -> Any:
    """Marks a test to run over these rows."""
    return pytest.mark.parametrize("case", list(rows), ids=lambda row: row.id)


def each_factory(rows: Iterable[Case]) -> Any:
    """Marks a test to run over the first row of each factory, and under ``-m full`` over those with
    other numbers."""
    seen: set[str] = set()
    marked = []
    for case in rows:
        marked.append(pytest.param(case, marks=[pytest.mark.full] * (case.factory in seen)))
        seen.add(case.factory)
    return pytest.mark.parametrize("case", marked, ids=lambda row: row.id)


def first_of(name: str, values: Iterable[Any], ids: Any = None) -> Any:
    """Marks a test that holds for the same reason with any of the values: it runs with the first
    of them, and under ``-m full`` with the others."""
    first, *rest = values
    several = "," in name
    marked = [
        pytest.param(*(value if several else [value]), marks=pytest.mark.full) for value in rest
    ]
    return pytest.mark.parametrize(name, [first, *marked], ids=ids)
