"""The rows of the benchmarks: one a transformation, made by gradx and by Optax with the same call.

A new row is one line here; `README.md` says what the fields are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
import optax.contrib


@dataclass(frozen=True)
class Torch:
    """The algorithm in torch.optim; it is run fused and foreach, if its class can."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = None  # clip_grad_norm_ before the step
    others: str | None = None  # the class for leaves that are no matrices, if it takes only these


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
      name: what the tables and `--rows` call it.
      make: makes the transformation from the library's module, `gradx` or `optax`.
      torch: the peer in torch.optim, if there is one.
      group: rows of a group are listed together; targets name groups.
      libraries: the libraries that have the row.
      tree: the parameters, a name in `trees.TREES`.
      calls: steps in one sample, for transformations whose steps differ from each other (an
        accumulation over k steps: k). Times are reported per step.
      compile_cost: whether the 1,000-leaf section compiles it too; about a minute a row.
      compiled_tree: the parameters if the row is compiled for a chip (`compiled/`).
      extra: makes the extra arguments of `update` from `(params, grads)`.
      heavyball: the class in HeavyBall and its arguments, for the section on the matrix family.
    """

    name: str
    make: Callable[[Any], optax.GradientTransformation]
    torch: Torch | None = None
    group: str = "alias"
    libraries: tuple[str, ...] = ("gradx", "optax")
    tree: str = "blocks"
    calls: int = 1
    compile_cost: bool = False
    compiled_tree: str = "wide"
    extra: Callable[[Any, Any], Mapping[str, Any]] | None = None
    heavyball: tuple[str, Mapping[str, Any]] | None = None


EVERY_TENTH = {"precondition_frequency": 10}


def contrib(library: Any) -> Any:
    """`optax.contrib`, or gradx itself, which has all names at the top."""
    return getattr(library, "contrib", library)


def two_axes(params: Any) -> Any:
    """Takes every leaf of two axes for a matrix, Optax's choice, for both libraries."""
    numbers = optax.contrib.MuonDimensionNumbers()
    return jax.tree.map(lambda p: numbers if p.ndim == 2 else None, params)


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
    Case("noisy_sgd", lambda lib: lib.noisy_sgd(1e-3, key=0)),
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
    # ------------------------------------------------------------ Adam's relatives
    Case("adan", lambda lib: lib.adan(1e-3)),
    Case("acprop", lambda lib: contrib(lib).acprop(1e-3)),
    Case("adopt", lambda lib: contrib(lib).adopt(1e-3)),
    Case("ademamix", lambda lib: contrib(lib).ademamix(1e-3)),
    Case("simplified_ademamix", lambda lib: contrib(lib).simplified_ademamix(1e-5)),
    Case("optimistic_gradient_descent", lambda lib: lib.optimistic_gradient_descent(1e-3)),
    Case("optimistic_adam", lambda lib: lib.optimistic_adam(1e-3)),
    Case("optimistic_adam_v2", lambda lib: lib.optimistic_adam_v2(1e-3)),
    # ------------------------------------------------------------ signs
    Case("rprop", lambda lib: lib.rprop(1e-3), Torch("Rprop", {"lr": 1e-3})),
    Case("sign_sgd", lambda lib: lib.sign_sgd(1e-3)),
    Case("signum", lambda lib: lib.signum(1e-3)),
    Case("lion", lambda lib: lib.lion(1e-4), compile_cost=True),
    # ------------------------------------------------------------ layer-wise rates
    Case("lars", lambda lib: lib.lars(1e-3, weight_decay=1e-4)),
    Case("lamb", lambda lib: lib.lamb(1e-3, weight_decay=1e-4)),
    Case("fromage", lambda lib: lib.fromage(1e-3)),
    Case("novograd", lambda lib: lib.novograd(1e-3)),
    # ------------------------------------------------------------ factored second moments
    Case("adafactor", lambda lib: lib.adafactor(1e-3), Torch("Adafactor", {"lr": 1e-3})),
    Case("adafactor momentum", lambda lib: lib.adafactor(1e-3, momentum=0.9)),
    Case("sm3", lambda lib: lib.sm3(1e-3)),
    # ------------------------------------------------------------ curvature, singular vectors
    Case(
        "sophia",
        lambda lib: contrib(lib).sophia(1e-3, hessian_diagonal_fn=lib.scale(1.0)),
        calls=10,
    ),
    # The steps between two choices of directions; choosing takes far longer.
    Case(
        "galore",
        lambda lib: contrib(lib).galore(1e-3, rank=64, update_proj_gap=10**6),
    ),
    # ------------------------------------------------------------ own step sizes
    Case("dog", lambda lib: contrib(lib).dog()),
    Case("dowg", lambda lib: contrib(lib).dowg()),
    Case(
        "scale_by_distance_over_gradients",
        lambda lib: lib.scale_by_distance_over_gradients(global_scale=-1.0),
    ),
    Case("prodigy", lambda lib: contrib(lib).prodigy()),
    Case("dadapt_adamw", lambda lib: contrib(lib).dadapt_adamw()),
    Case("polyak_sgd", lambda lib: lib.polyak_sgd(), extra=lambda params, grads: {"value": 1.0}),
    Case(
        "momo",
        lambda lib: contrib(lib).momo(),
        extra=lambda params, grads: {"value": 1.0},
    ),
    Case(
        "momo_adam",
        lambda lib: contrib(lib).momo_adam(),
        extra=lambda params, grads: {"value": 1.0},
    ),
    Case("madgrad", lambda lib: contrib(lib).madgrad(1e-3)),
    Case("cocob", lambda lib: contrib(lib).cocob()),
    # ------------------------------------------------------------ wrappers
    Case("MultiSteps(4)", lambda lib: lib.MultiSteps(lib.adamw(1e-3), 4), group="wrapper", calls=4),
    Case(
        "MultiSteps(4), clipped",
        lambda lib: lib.MultiSteps(lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(1e-3)), 4),
        group="wrapper",
        calls=4,
    ),
    Case("apply_if_finite", lambda lib: lib.apply_if_finite(lib.adamw(1e-3), 5), group="wrapper"),
    Case(
        "conditionally_transform",
        lambda lib: lib.conditionally_transform(lib.adamw(1e-3), lambda step: step % 2 == 0),
        group="wrapper",
        calls=2,
    ),
    Case(
        "conditionally_mask",
        lambda lib: lib.conditionally_mask(lib.adamw(1e-3), lambda step: step % 2 == 0),
        group="wrapper",
        calls=2,
    ),
    Case(
        "inject_hyperparams(adamw)",
        lambda lib: lib.inject_hyperparams(lib.adamw)(1e-3),
        group="wrapper",
    ),
    Case(
        "inject_hyperparams(lion)",
        lambda lib: lib.inject_hyperparams(lib.lion)(1e-4),
        group="wrapper",
    ),
    Case(
        "snapshot + adamw",
        lambda lib: lib.chain(lib.snapshot("norm", optax.tree.norm), lib.adamw(1e-3)),
        group="wrapper",
    ),
    Case(
        "adamw + apply_every(4)",
        lambda lib: lib.chain(lib.adamw(1e-3), lib.apply_every(4)),
        group="wrapper",
        calls=4,
    ),
    Case(
        "sgd + keep_params_nonnegative",
        lambda lib: lib.chain(lib.sgd(1e-3), lib.keep_params_nonnegative()),
        group="chain",
    ),
    Case(
        "schedule_free",
        lambda lib: contrib(lib).schedule_free(lib.adamw(1e-3, b1=0.0), 1e-3),
        group="wrapper",
    ),
    Case(
        "schedule_free_sgd",
        lambda lib: contrib(lib).schedule_free_sgd(1e-3),
        group="wrapper",
    ),
    Case(
        "schedule_free_adamw",
        lambda lib: contrib(lib).schedule_free_adamw(1e-3),
        group="wrapper",
    ),
    Case(
        "sam",
        lambda lib: contrib(lib).sam(
            lib.adamw(1e-3), lib.chain(contrib(lib).normalize(), lib.sgd(0.05))
        ),
        group="wrapper",
        calls=2,
    ),
    Case(
        "asam",
        lambda lib: lib.asam(lib.adamw(1e-3)),
        group="wrapper",
        libraries=("gradx",),
        calls=2,
    ),
    Case(
        "look_sam",
        lambda lib: lib.look_sam(lib.adamw(1e-3), lib.chain(lib.normalize(), lib.sgd(0.05))),
        group="wrapper",
        libraries=("gradx",),
        calls=6,
    ),
    Case("flatten", lambda lib: lib.flatten(lib.adamw(1e-3)), group="wrapper"),
    Case(
        "split_real_and_imaginary",
        lambda lib: contrib(lib).split_real_and_imaginary(lib.adamw(1e-3)),
        group="wrapper",
    ),
    Case(
        "mechanize",
        lambda lib: contrib(lib).mechanize(lib.adamw(1.0)),
        group="wrapper",
    ),
    Case(
        "adamw + reduce_on_plateau",
        lambda lib: lib.chain(lib.adamw(1e-3), contrib(lib).reduce_on_plateau()),
        group="wrapper",
        extra=lambda params, grads: {"value": 1.0},
    ),
    Case(
        "adamw + early_stopping",
        lambda lib: lib.chain(lib.adamw(1e-3), lib.early_stopping(10)),
        group="wrapper",
        libraries=("gradx",),
        extra=lambda params, grads: {"value": 1.0},
    ),
    # ------------------------------------------------------------ quasi-Newton
    Case("lbfgs", lambda lib: lib.lbfgs(1e-3, memory_size=4, linesearch=None)),
    # ------------------------------------------------------------ chains
    Case(
        "adam + clip_by_block_rms",
        lambda lib: lib.chain(lib.scale_by_adam(), lib.clip_by_block_rms(1.0), lib.scale(-1e-3)),
        group="chain",
    ),
    Case(
        "normalize_by_update_norm",
        lambda lib: lib.normalize_by_update_norm(-1e-3),
        group="chain",
    ),
    Case(
        "clip_by_global_norm + adamw",
        lambda lib: lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(1e-3)),
        Torch("AdamW", {"lr": 1e-3, "weight_decay": 1e-4}, clip=1.0),
        group="chain",
        compile_cost=True,
    ),
    *[
        Case(f"{name}, 1,000 leaves", make, group="launches", tree="small", compiled_tree="small")
        for name, make in [
            ("sgd", lambda lib: lib.sgd(1e-3)),
            ("adamw", lambda lib: lib.adamw(1e-3)),
            (
                "clip + adamw",
                lambda lib: lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(1e-3)),
            ),
        ]
    ],
    *[
        Case(
            f"{piece} + sgd",
            lambda lib, piece=piece, args=args: lib.chain(
                getattr(lib, piece)(*args), lib.sgd(1e-3)
            ),
            group="chain",
        )
        for piece, args in [
            ("clip", (1.0,)),
            ("adaptive_grad_clip", (0.01,)),
            ("centralize", ()),
            ("zero_nans", ()),
            ("scale_by_param_block_norm", ()),
        ]
    ],
    # ------------------------------------------------------------ matrices
    Case(
        "muon",
        lambda lib: contrib(lib).muon(0.02, muon_weight_dimension_numbers=two_axes),
        Torch("Muon", {"lr": 0.02}, others="AdamW"),
        group="matrix",
        compile_cost=True,
    ),
    *[
        Case(name, make, group="family", libraries=("gradx",), calls=calls, heavyball=peer)
        for name, make, calls, peer in [
            ("polar express", lambda lib: lib.muon(0.02, "polar_express"), 1, ("Muon", {})),
            ("normuon", lambda lib: lib.normuon(0.02), 1, None),
            ("adamuon", lambda lib: lib.adamuon(0.02), 1, None),
            ("scion", lambda lib: lib.scion(0.02), 1, None),
            ("dion", lambda lib: lib.dion(0.02, rank_fraction=0.25), 1, None),
            ("dion2", lambda lib: lib.dion2(0.02), 1, None),
            ("soap", lambda lib: lib.soap(3e-3), 10, ("SOAP", EVERY_TENTH)),
            ("soap staggered", lambda lib: lib.soap(3e-3, staggered=True), 10, None),
            ("splus", lambda lib: lib.splus(0.2, precondition_frequency=10), 10, None),
            ("kl_soap", lambda lib: lib.kl_soap(3e-3), 10, ("KLSOAP", EVERY_TENTH)),
            ("kl_shampoo", lambda lib: lib.kl_shampoo(3e-3), 10, ("KLShampoo", EVERY_TENTH)),
            ("shampoo", lambda lib: lib.shampoo(3e-3), 10, None),
            ("psgd_kron", lambda lib: lib.psgd_kron(3e-3), 1, ("PSGDKron", {})),
        ]
    ],
    # ------------------------------------------------------------ what goes with any of them
    *[
        Case(name, make, group="modifier", libraries=("gradx",))
        for name, make in [
            ("mars", lambda lib: lib.mars(1e-3)),
            ("correct_by_mars + sgd", lambda lib: lib.chain(lib.correct_by_mars(), lib.sgd(1e-3))),
            ("cautious adamw", lambda lib: lib.cautious(lib.adamw(1e-3))),
            (
                "adam + add_cautious_decay",
                lambda lib: lib.chain(
                    lib.scale_by_adam(), lib.add_cautious_decay(1e-2), lib.scale(-1e-3)
                ),
            ),
            ("grokfast + adamw", lambda lib: lib.chain(lib.grokfast(), lib.adamw(1e-3))),
            ("adamw + ema_params", lambda lib: lib.chain(lib.adamw(1e-3), lib.ema_params(0.999))),
            (
                "adamw + ema_params(every=10)",
                lambda lib: lib.chain(lib.adamw(1e-3), lib.ema_params(0.999, every=10)),
            ),
            ("adamw + swa_params", lambda lib: lib.chain(lib.adamw(1e-3), lib.swa_params(1000))),
            (
                "adamw + tail_ema_params",
                lambda lib: lib.chain(lib.adamw(1e-3), lib.tail_ema_params(1000)),
            ),
            (
                "adamw + lawa_params",
                lambda lib: lib.chain(lib.adamw(1e-3), lib.lawa_params(window=3, every=100)),
            ),
            ("adamw + ema_nesterov", lambda lib: lib.chain(lib.adamw(1e-3), lib.ema_nesterov())),
            ("gpa", lambda lib: lib.gpa(lib.adamw(1e-3))),
            ("hyperball", lambda lib: lib.hyperball(lib.scale_by_adam(), 1e-2)),
            ("zclip + adamw", lambda lib: lib.chain(lib.zclip(), lib.adamw(1e-3))),
            ("adagc + adamw", lambda lib: lib.chain(lib.adagc(), lib.adamw(1e-3))),
            ("skip_nonfinite", lambda lib: lib.skip_nonfinite(lib.adamw(1e-3))),
            ("skip_spikes", lambda lib: lib.skip_spikes(lib.adamw(1e-3))),
            (
                "restart_moments",
                lambda lib: lib.restart_moments(lib.adamw(1e-3), 500, warmup=150),
            ),
        ]
    ],
    Case(
        "adamw + qk_clip",
        lambda lib: lib.chain(lib.adamw(1e-3), lib.qk_clip()),
        group="modifier",
        libraries=("gradx",),
        extra=lambda params, grads: {"max_logits": 4.0},
    ),
    Case(
        "selective_transform",
        # Optax takes no function for a mask, and would freeze everything.
        lambda lib: lib.selective_transform(lib.adamw(1e-3), freeze_mask=False),
        group="wrapper",
    ),
]


# Each is followed by itself, watched (`--study watch`).
WATCHED = [
    Case(title.format(name), make, libraries=("gradx",))
    for name, inner in [
        ("adamw", lambda lib: lib.adamw(1e-3)),
        (
            "clip_by_global_norm + adamw",
            lambda lib: lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(1e-3)),
        ),
    ]
    for title, make in [
        ("{}", inner),
        ("watch({})", lambda lib, inner=inner: lib.watch(inner(lib))),
    ]
]


def chosen(pattern: str, within: str = "", table: Sequence[Case] = CASES) -> list[Case]:
    """The rows whose names match both patterns."""
    found = [case for case in table if re.search(pattern, case.name)]
    if not found:
        raise SystemExit(f"no row matches {pattern!r}; there are {[c.name for c in table]}")
    return [case for case in found if re.search(within, case.name)]
