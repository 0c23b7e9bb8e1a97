"""Which call of this library is which call of `torch.optim`: one row, one trajectory in torch.npz.

A row needs neither library to be read: `ours` takes the module to build with, torch's side is
plain data, and `make_torch.py` turns it into the stored trajectory. `why` says what had to be
chosen for the two to be the same algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Keywords = Mapping[str, Any]
Call = tuple[str, Keywords]

STEPS = 30
KEPT = (1, 2, 3, 5, 8, 13, 21, 30)  # the steps after which the parameters are stored


@dataclass(frozen=True)
class Row:
    """One pair of calls.

    `grads` names a sequence in the file: "sparse" (first gradient 0, one column always 0, many
    zeros), "dense" (no zero, for rows without eps) or "huge" (dense times 1e8). `groups` overrides
    keywords for single parameters; `schedules` are from torch.optim.lr_scheduler, the first one
    around the others if there are several; `clip` is from torch.nn.utils.
    """

    ours: Callable[[Any], Any]
    torch: str
    kwargs: Keywords
    grads: str = "sparse"
    groups: Mapping[str, Keywords] = field(default_factory=dict)
    schedules: tuple[Call, ...] = ()
    clip: Call | None = None
    why: str = ""

    def recipe(self) -> str:
        """Torch's side as text: kept beside the trajectory, so that a stale one is noticed."""
        parts = (self.torch, self.kwargs, self.grads, self.groups, self.schedules, self.clip)
        return repr(parts)


def _coupled(lib: Any, weight_decay: float, inner: Any) -> Any:
    """L2 regularisation: torch's weight_decay everywhere but in AdamW and its like."""
    return lib.chain(lib.add_decayed_weights(weight_decay), inner)


def _decoupled(lib: Any, inner: Any, weight_decay: float, learning_rate: float) -> Any:
    decay = lib.add_decayed_weights(weight_decay)
    return lib.chain(inner, decay, lib.scale_by_learning_rate(learning_rate))


_SGD: dict[str, Row] = {
    "sgd": Row(lambda lib: lib.sgd(0.01), "SGD", {"lr": 0.01}),
    "sgd_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.sgd(0.01)), "SGD", {"lr": 0.01, "weight_decay": 0.1}
    ),
    "sgd_ascent": Row(
        lambda lib: lib.scale_by_learning_rate(0.01, flip_sign=False),
        "SGD",
        {"lr": 0.01, "maximize": True},
    ),
    "sgd_momentum": Row(
        lambda lib: lib.sgd(0.01, momentum=0.9), "SGD", {"lr": 0.01, "momentum": 0.9}
    ),
    "sgd_nesterov": Row(
        lambda lib: lib.sgd(0.01, momentum=0.9, nesterov=True),
        "SGD",
        {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    ),
    "sgd_nesterov_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.sgd(0.01, momentum=0.8, nesterov=True)),
        "SGD",
        {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "sgd_ema": Row(
        lambda lib: lib.chain(lib.ema(0.9, debias=False), lib.sgd(0.01)),
        "SGD",
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.9},
        why="torch does not dampen the first gradient; here it is 0",
    ),
    "sgd_groups": Row(
        lambda lib: lib.partition(
            {"slow": lib.sgd(0.01, momentum=0.9), "fast": lib.sgd(0.05, momentum=0.5)},
            {"w": "slow", "b": "fast"},
        ),
        "SGD",
        {"lr": 0.01, "momentum": 0.9},
        groups={"b": {"lr": 0.05, "momentum": 0.5}},
    ),
    "sgd_clip_value": Row(
        lambda lib: lib.chain(lib.clip(0.5), lib.sgd(0.01)),
        "SGD",
        {"lr": 0.01},
        clip=("clip_grad_value_", {"clip_value": 0.5}),
    ),
    "sgd_clip_norm": Row(
        lambda lib: lib.chain(lib.clip_by_global_norm(1e8), lib.sgd(1e-9)),
        "SGD",
        {"lr": 1e-9},
        grads="huge",
        clip=("clip_grad_norm_", {"max_norm": 1e8}),
        why="torch adds 1e-6 to the norm, which is below rounding for a norm over 1e8",
    ),
}

# Torch's schedulers change the learning rate after the step: they give the first step the initial
# value, as a schedule of a count from 0 does.
_SCHEDULES: dict[str, Row] = {
    "exponential": Row(
        lambda lib: lib.sgd(lib.exponential_decay(0.01, 1, 0.9), momentum=0.9),
        "SGD",
        {"lr": 0.01, "momentum": 0.9},
        schedules=(("ExponentialLR", {"gamma": 0.9}),),
    ),
    "staircase": Row(
        lambda lib: lib.sgd(lib.exponential_decay(0.01, 7, 0.5, staircase=True), momentum=0.9),
        "SGD",
        {"lr": 0.01, "momentum": 0.9},
        schedules=(("StepLR", {"step_size": 7, "gamma": 0.5}),),
    ),
    "piecewise": Row(
        lambda lib: lib.sgd(lib.piecewise_constant_schedule(0.01, {5: 0.3, 20: 0.3})),
        "SGD",
        {"lr": 0.01},
        schedules=(("MultiStepLR", {"milestones": (5, 20), "gamma": 0.3}),),
    ),
    "linear": Row(
        lambda lib: lib.sgd(lib.linear_schedule(0.002, 0.01, 10)),
        "SGD",
        {"lr": 0.01},
        schedules=(("LinearLR", {"start_factor": 0.2, "total_iters": 10}),),
    ),
    "polynomial": Row(
        lambda lib: lib.sgd(lib.polynomial_schedule(0.01, 0.0, 2.0, 25)),
        "SGD",
        {"lr": 0.01},
        schedules=(("PolynomialLR", {"total_iters": 25, "power": 2.0}),),
    ),
    "cosine": Row(
        lambda lib: lib.sgd(lib.cosine_decay_schedule(0.01, 30, alpha=0.1)),
        "SGD",
        {"lr": 0.01},
        schedules=(("CosineAnnealingLR", {"T_max": 30, "eta_min": 0.001}),),
    ),
    "warm_restarts": Row(
        lambda lib: lib.sgd(
            lib.join_schedules(
                [lib.cosine_decay_schedule(0.01, n) for n in (6, 12, 24)], boundaries=[6, 18]
            )
        ),
        "SGD",
        {"lr": 0.01},
        schedules=(("CosineAnnealingWarmRestarts", {"T_0": 6, "T_mult": 2}),),
    ),
    "warmup_cosine": Row(
        lambda lib: lib.sgd(lib.warmup_cosine_decay_schedule(0.001, 0.01, 8, 30)),
        "SGD",
        {"lr": 0.01},
        schedules=(
            ("SequentialLR", {"milestones": (8,)}),
            ("LinearLR", {"start_factor": 0.1, "total_iters": 8}),
            ("CosineAnnealingLR", {"T_max": 22}),
        ),
    ),
    "onecycle_cosine": Row(
        lambda lib: lib.sgd(lib.cosine_onecycle_schedule(30, 0.01, 0.3, 20.0, 50.0)),
        "SGD",
        {"lr": 0.01},
        schedules=(
            (
                "OneCycleLR",
                {
                    "max_lr": 0.01,
                    "total_steps": 31,
                    "pct_start": 10 / 31,
                    "div_factor": 20.0,
                    "final_div_factor": 50.0,
                    "cycle_momentum": False,
                },
            ),
        ),
        why="torch counts values, not transitions: 31 for 30, and the peak is the tenth of them",
    ),
}

_ADAM: dict[str, Row] = {
    "adam": Row(lambda lib: lib.adam(0.01), "Adam", {"lr": 0.01}),
    "adam_betas": Row(
        lambda lib: lib.adam(0.02, b1=0.5, b2=0.95, eps=1e-2),
        "Adam",
        {"lr": 0.02, "betas": (0.5, 0.95), "eps": 1e-2},
    ),
    "adam_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.adam(0.01)), "Adam", {"lr": 0.01, "weight_decay": 0.1}
    ),
    "adamw": Row(
        lambda lib: lib.adamw(0.01, weight_decay=0.5), "AdamW", {"lr": 0.01, "weight_decay": 0.5}
    ),
    "adamw_schedule": Row(
        lambda lib: lib.adamw(lib.exponential_decay(0.05, 1, 0.9), weight_decay=0.5),
        "AdamW",
        {"lr": 0.05, "weight_decay": 0.5},
        schedules=(("ExponentialLR", {"gamma": 0.9}),),
    ),
    "adamw_mask": Row(
        lambda lib: lib.adamw(0.01, weight_decay=0.5, mask={"w": True, "b": False}),
        "AdamW",
        {"lr": 0.01, "weight_decay": 0.5},
        groups={"b": {"weight_decay": 0.0}},
    ),
    "adamw_clip_norm": Row(
        lambda lib: lib.chain(
            lib.clip_by_global_norm(1e8), lib.adamw(0.01, eps=1e6, weight_decay=0.5)
        ),
        "AdamW",
        {"lr": 0.01, "eps": 1e6, "weight_decay": 0.5},
        grads="huge",
        clip=("clip_grad_norm_", {"max_norm": 1e8}),
        why="torch adds 1e-6 to the norm, which is below rounding for a norm over 1e8",
    ),
    "nadam": Row(
        lambda lib: lib.nadam(0.01, b1=0.8),
        "NAdam",
        {"lr": 0.01, "betas": (0.8, 0.999), "momentum_decay": 1e9},
        why="torch's b1 (1 - 0.96^(t psi) / 2) is b1 for a large psi; for psi = 0 it is b1 / 2",
    ),
    "nadam_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.nadam(0.01)),
        "NAdam",
        {"lr": 0.01, "momentum_decay": 1e9, "weight_decay": 0.1},
        why="see nadam",
    ),
    "nadamw": Row(
        lambda lib: lib.nadamw(0.01, weight_decay=0.5),
        "NAdam",
        {"lr": 0.01, "momentum_decay": 1e9, "weight_decay": 0.5, "decoupled_weight_decay": True},
        why="see nadam",
    ),
    "amsgrad_no_memory": Row(
        lambda lib: lib.amsgrad(0.01, b2=0.0),
        "Adam",
        {"lr": 0.01, "betas": (0.9, 0.0), "amsgrad": True},
        why="torch takes the maximum before the bias correction; with b2 = 0 there is none",
    ),
    "amsgrad_late_correction": Row(
        lambda lib: lib.amsgrad(
            lambda t: 0.01 * (1 - 0.9 ** (t + 1)) ** 0.5, b2=0.9, eps=0.0, bias_correction_nu=False
        ),
        "Adam",
        {"lr": 0.01, "betas": (0.9, 0.9), "eps": 0.0, "amsgrad": True},
        grads="dense",
        why="torch corrects the maximum: without eps that is a factor in the learning rate",
    ),
    "amsgrad_paper": Row(
        lambda lib: lib.amsgrad(
            lambda t: 0.01 * (1 - 0.9 ** (t + 1)) ** 0.5 / (1 - 0.8 ** (t + 1)),
            b1=0.8,
            b2=0.9,
            eps=0.0,
            bias_correction_mu=False,
            bias_correction_nu=False,
        ),
        "Adam",
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.0, "amsgrad": True},
        grads="dense",
        why="both of torch's corrections put into the learning rate",
    ),
    "amsgrad_decoupled": Row(
        lambda lib: _decoupled(lib, lib.scale_by_amsgrad(b2=0.0), 0.5, 0.01),
        "AdamW",
        {"lr": 0.01, "betas": (0.9, 0.0), "weight_decay": 0.5, "amsgrad": True},
        why="see amsgrad_no_memory",
    ),
    "adamax": Row(lambda lib: lib.adamax(0.01), "Adamax", {"lr": 0.01}),
    "adamax_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.adamax(0.01, b1=0.8, b2=0.9, eps=1e-2)),
        "Adamax",
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1},
    ),
    "radam": Row(
        lambda lib: lib.radam(0.01, eps=0.0),
        "RAdam",
        {"lr": 0.01, "eps": 0.0},
        grads="dense",
        why="torch adds eps before the bias correction of the second moment",
    ),
    "radam_short": Row(
        lambda lib: lib.radam(0.01, b1=0.8, b2=0.9, eps=0.0),
        "RAdam",
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.0},
        grads="dense",
        why="see radam",
    ),
    "radam_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.radam(0.01, eps=0.0)),
        "RAdam",
        {"lr": 0.01, "eps": 0.0, "weight_decay": 0.1},
        grads="dense",
        why="see radam",
    ),
    "radam_decoupled": Row(
        lambda lib: _decoupled(lib, lib.scale_by_radam(eps=0.0), 0.5, 0.01),
        "RAdam",
        {"lr": 0.01, "eps": 0.0, "weight_decay": 0.5, "decoupled_weight_decay": True},
        grads="dense",
        why="see radam",
    ),
}

_ADAGRAD_WHY = "torch adds eps outside the root"

_ADAPTIVE: dict[str, Row] = {
    "adagrad": Row(
        lambda lib: lib.adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
        "Adagrad",
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 0.0},
        why=_ADAGRAD_WHY,
    ),
    "adagrad_from_zero": Row(
        lambda lib: lib.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0),
        "Adagrad",
        {"lr": 0.1, "eps": 0.0},
        grads="dense",
        why=_ADAGRAD_WHY,
    ),
    "adagrad_schedule": Row(
        lambda lib: lib.adagrad(lambda t: 0.1 / (1 + 0.2 * t), eps=0.0),
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.1, "eps": 0.0},
        why=_ADAGRAD_WHY,
    ),
    "adagrad_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.adagrad(0.1, eps=0.0)),
        "Adagrad",
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 0.0, "weight_decay": 0.1},
        why=_ADAGRAD_WHY,
    ),
    "adadelta": Row(lambda lib: lib.adadelta(1.0), "Adadelta", {}),
    "adadelta_decay": Row(
        lambda lib: lib.adadelta(0.5, rho=0.8, eps=1e-3, weight_decay=0.1),
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "rmsprop": Row(
        lambda lib: lib.rmsprop(0.01, decay=0.99, eps_in_sqrt=False),
        "RMSprop",
        {"lr": 0.01},
    ),
    "rmsprop_decay": Row(
        lambda lib: _coupled(lib, 0.1, lib.rmsprop(0.01, eps=1e-2, eps_in_sqrt=False)),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.1},
    ),
    "rmsprop_momentum": Row(
        lambda lib: lib.rmsprop(0.01, momentum=0.8, eps_in_sqrt=False),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "momentum": 0.8},
        why="the momentum gathers steps here, directions in torch: equal for a constant rate",
    ),
    "rmsprop_momentum_schedule": Row(
        lambda lib: lib.chain(
            lib.scale_by_rms(eps_in_sqrt=False),
            lib.trace(0.8),
            lib.scale_by_learning_rate(lib.exponential_decay(0.01, 1, 0.9)),
        ),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "momentum": 0.8},
        schedules=(("ExponentialLR", {"gamma": 0.9}),),
        why="torch's order, with a learning rate that moves",
    ),
    "rmsprop_centered": Row(
        lambda lib: lib.rmsprop(0.01, centered=True, eps_in_sqrt=False),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "centered": True},
    ),
    "rmsprop_centered_momentum": Row(
        lambda lib: lib.rmsprop(0.01, centered=True, momentum=0.8, eps=1e-2, eps_in_sqrt=False),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "centered": True, "momentum": 0.8, "eps": 1e-2},
        why="see rmsprop_momentum",
    ),
    "rprop": Row(
        lambda lib: lib.rprop(0.01, max_step_size=0.05),
        "Rprop",
        {"lr": 0.01, "step_sizes": (1e-6, 0.05)},
    ),
    "rprop_steps": Row(
        lambda lib: lib.rprop(0.01, 0.3, 1.5, min_step_size=0.005, max_step_size=1.0),
        "Rprop",
        {"lr": 0.01, "etas": (0.3, 1.5), "step_sizes": (0.005, 1.0)},
        grads="dense",
    ),
}

ROWS: dict[str, Row] = {**_SGD, **_SCHEDULES, **_ADAM, **_ADAPTIVE}
