"""Which call of this library is which call of another implementation: one trajectory in others.npz.

The authors' own code where it can be had (from PyPI, or a repository on GitHub), else a port that
others use. `make_others.py` runs them on the problem of torch.npz. A row is there only if both are
the same algorithm for its arguments; `why` says what had to be chosen for that, which is where
the two differ otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

Keywords = Mapping[str, Any]
Call = tuple[str, Keywords]


def as_they_are(arrays: Any) -> Any:
    return arrays


def as_complex(arrays: Any) -> Any:
    """Four columns of an array as two complex ones (the fifth is left out)."""
    return {k: a[..., :2] + 1j * a[..., 2:4] for k, a in arrays.items()}


def as_examples(grads: Any) -> Any:
    """A sequence of gradients as one of batches of three."""
    scaled = {k: (g, np.roll(g, -1, axis=0), -2 * np.roll(g, -2, axis=0)) for k, g in grads.items()}
    return {k: np.stack(gs, axis=1) for k, gs in scaled.items()}


def on_unit_sphere(params: Any) -> Any:
    """The matrix with the norm 1."""
    return {**params, "w": params["w"] / np.linalg.norm(params["w"])}


@dataclass(frozen=True)
class Row:
    """One pair of calls.

    `source` is a distribution on PyPI or a repository on GitHub, `call` what is called there:
    `module:name` or `file:name`. `how` names the loop in make_others.py that drives it; `inner` is
    the optimizer of torch.optim that it goes around, or that applies what it returns. `grads` and
    `schedules` are those of table.py; with "curved" the gradient is computed from the parameters.

    On this library's side, `start` makes its parameters and `read` gets back the ones to compare;
    `value` hands the loss to `update`. `params_as` and `grads_as` change the problem for both
    sides. `ahead` marks what this library lacks so far.
    """

    ours: Callable[[Any], Any]
    source: str
    call: str
    kwargs: Keywords = field(default_factory=dict)
    grads: str = "dense"
    how: str = "step"
    inner: Call | None = None
    schedules: tuple[Call, ...] = ()
    start: Callable[[Any, Any], Any] = lambda lib, params: params
    read: Callable[[Any, Any, Any], Any] = lambda lib, params, state: params
    value: bool = False
    params_as: Callable[[Any], Any] = as_they_are
    grads_as: Callable[[Any], Any] = as_they_are
    rtol: float = 1e-12
    ahead: bool = False
    why: str = ""

    def recipe(self) -> str:
        """The other side as text: kept beside the trajectory, so that a stale one is noticed."""
        views = (self.params_as.__name__, self.grads_as.__name__)
        made = (self.source, self.call, self.kwargs, self.inner, self.schedules)
        return repr((*made, self.grads, self.how, *views))


KOZISTR = "pytorch-optimizer"


def _kozistr(ours: Any, name: str, kwargs: Keywords, **about: Any) -> Row:
    return Row(ours, KOZISTR, f"pytorch_optimizer:{name}", kwargs, **about)


def _timm(ours: Any, module: str, name: str, kwargs: Keywords, **about: Any) -> Row:
    # One path of two, so that a newer version does not choose another order of rounding.
    return Row(ours, "timm", f"timm.optim.{module}:{name}", {**kwargs, "foreach": False}, **about)


def _torch(ours: Any, name: str, kwargs: Keywords, **about: Any) -> Row:
    return Row(ours, "torch", f"torch.optim:{name}", kwargs, **about)


# ---------------------------------------------------------------- adaptive per element


def _slow_decay(t: Any) -> Any:
    """The authors' warm-up of b3 from 0.8 to 0.99 over 40 steps; theirs counts from 1."""
    start, end = (math.log(0.5) / math.log(b + 1e-8) - 1 for b in (0.8, 0.99))
    a = (t + 1.0) / 40
    return 0.5 ** (1 / ((1 - a) * start + a * end + 1))


_ADEMAMIX = ("github.com/apple/ml-ademamix", "pytorch/ademamix.py:AdEMAMix")
_ADOPT = ("github.com/iShohei220/adopt", "src/adopt/adopt.py:ADOPT")

_ADAPTIVE: dict[str, Row] = {
    "adan": Row(
        lambda lib: lib.adan(0.01, b1=0.9, b2=0.5, b3=0.95, eps=1e-2, eps_root=0.0),
        "github.com/sail-sg/Adan",
        "adan.py:Adan",
        {"lr": 0.01, "betas": (0.9, 0.5, 0.95), "eps": 1e-2, "foreach": False},
        grads="sparse",
        why="the difference's share is b2 there, 1 - b2 here: the same for b2 = 1/2",
    ),
    "adan_decay": Row(
        lambda lib: lib.adan(
            0.01, b1=0.9, b2=0.5, b3=0.95, eps=1e-8, eps_root=0.0, weight_decay=0.5
        ),
        "github.com/sail-sg/Adan",
        "adan.py:Adan",
        {
            "lr": 0.01,
            "betas": (0.9, 0.5, 0.95),
            "weight_decay": 0.5,
            "no_prox": True,
            "foreach": False,
        },
        why="see adan; with no_prox=False theirs divides by 1 + lr * weight_decay",
    ),
    "adan_paper": Row(
        lambda lib: lib.adan(0.01, b3=0.95, eps_root=0.0, weight_decay=0.5, paper=True),
        "github.com/sail-sg/Adan",
        "adan.py:Adan",
        {
            "lr": 0.01,
            "betas": (0.98, 0.92, 0.95),
            "weight_decay": 0.5,
            "no_prox": True,
            "foreach": False,
        },
        why="see adan_decay",
    ),
    "ademamix": Row(
        lambda lib: lib.ademamix(0.01, b1=0.8, b3=0.99, alpha=3.0, eps=1e-3, weight_decay=0.5),
        *_ADEMAMIX,
        {
            "lr": 0.01,
            "betas": (0.8, 0.999, 0.99),
            "alpha": 3.0,
            "eps": 1e-3,
            "weight_decay": 0.5,
        },
        grads="sparse",
    ),
    "ademamix_warmup": Row(
        lambda lib: lib.ademamix(
            0.01, b1=0.8, b3=_slow_decay, alpha=lambda t: 3.0 * (t + 1.0) / 40
        ),
        *_ADEMAMIX,
        {
            "lr": 0.01,
            "betas": (0.8, 0.999, 0.99),
            "alpha": 3.0,
            "beta3_warmup": 40,
            "alpha_warmup": 40,
        },
        why="their warm-ups count from 1, schedules from 0",
    ),
    "simplified_ademamix": Row(
        lambda lib: lib.simplified_ademamix(0.001, b1=0.9, alpha=2.0, eps=1e-3, weight_decay=0.5),
        "github.com/DepenM/Simplified-AdEMAMix",
        "simplified_AdEMAMix.py:SimAdEMAMix",
        {"lr": 0.001, "betas": (0.9, 0.95), "alpha": 2.0, "eps": 1e-3, "weight_decay": 0.5},
        grads="sparse",
    ),
    "adopt": Row(
        lambda lib: lib.adopt(0.01, b1=0.8, b2=0.95),
        *_ADOPT,
        {"lr": 0.01, "betas": (0.8, 0.95), "foreach": False},
        grads="sparse",
    ),
    "adopt_no_clip": Row(
        lambda lib: lib.adopt(1e-5, b1=0.8, b2=0.95, use_clipping=False),
        *_ADOPT,
        {"lr": 1e-5, "betas": (0.8, 0.95), "clip_lambda": None, "foreach": False},
    ),
    "acprop": Row(
        lambda lib: lib.acprop(
            lambda t: 1e-5 / (0.9 + 0.1 * (t == 0)), b2=0.95, eps=0.0, eps_root=0.0
        ),
        "github.com/juntang-zhuang/ACProp-Optimizer",
        "optimizers/ACProp.py:ACProp",
        {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 0.0, "rectify": False},
        why="the residual is from the new mean there, so b1 times that from the old one here",
    ),
    "adabelief": _kozistr(
        lambda lib: lib.adabelief(0.01, b1=0.8, b2=0.95, eps=1e-8, eps_root=1e-8),
        "AdaBelief",
        {
            "lr": 0.01,
            "betas": (0.8, 0.95),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "rectify": False,
            "foreach": False,
        },
        grads="sparse",
    ),
    "yogi": _kozistr(
        lambda lib: lib.yogi(0.01, b1=0.8, b2=0.95),
        "Yogi",
        {"lr": 0.01, "betas": (0.8, 0.95), "foreach": False},
        grads="sparse",
    ),
    "adamaxw": _kozistr(
        lambda lib: lib.adamaxw(0.01, b2=0.95, weight_decay=0.5),
        "AdaMax",
        {
            "lr": 0.01,
            "betas": (0.9, 0.95),
            "weight_decay": 0.5,
            "weight_decouple": True,
            "foreach": False,
        },
        grads="sparse",
    ),
    "rmsprop_tensorflow": _timm(
        lambda lib: lib.rmsprop(0.01, eps=1e-3, initial_scale=1.0),
        "rmsprop_tf",
        "RMSpropTF",
        {"lr": 0.01, "eps": 1e-3},
        grads="sparse",
        why="TensorFlow's: eps inside the root, the mean square from 1",
    ),
    "rmsprop_tensorflow_momentum": _timm(
        lambda lib: lib.rmsprop(
            lib.exponential_decay(0.01, 1, 0.9), eps=1e-3, initial_scale=1.0, momentum=0.8
        ),
        "rmsprop_tf",
        "RMSpropTF",
        {"lr": 0.01, "eps": 1e-3, "momentum": 0.8},
        schedules=(("ExponentialLR", {"gamma": 0.9}),),
        grads="sparse",
    ),
    "rmsprop_tensorflow_centered": _timm(
        lambda lib: lib.rmsprop(0.01, eps=1e-3, initial_scale=1.0, centered=True),
        "rmsprop_tf",
        "RMSpropTF",
        {"lr": 0.01, "eps": 1e-3, "centered": True},
        grads="sparse",
    ),
    "split_real_and_imaginary": _torch(
        lambda lib: lib.split_real_and_imaginary(lib.adam(0.01, eps=1e-2)),
        "Adam",
        {"lr": 0.01, "eps": 1e-2, "foreach": False},
        params_as=as_complex,
        grads_as=as_complex,
        grads="sparse",
        why="torch views complex parameters as pairs of real ones",
    ),
}

_MARS = ("github.com/AGI-Arena/MARS", "MARS/optimizers/mars.py:MARS")

_CORRECTED: dict[str, Row] = {
    "mars": Row(
        lambda lib: lib.mars(0.01, b1=0.8, b2=0.95, eps=1e-3, gamma=0.1, weight_decay=0.5),
        *_MARS,
        {
            "lr": 0.01,
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "gamma": 0.1,
            "weight_decay": 0.5,
            "optimize_1d": True,
        },
        grads="sparse",
    ),
    "correct_by_mars_lion": Row(
        lambda lib: lib.chain(
            lib.correct_by_mars(b1=0.9, gamma=0.05),
            lib.ema(0.9, debias=False),
            lib.scale_by_sign(),
            lib.add_decayed_weights(0.5),
            lib.scale_by_learning_rate(0.01),
        ),
        *_MARS,
        {
            "lr": 0.01,
            "betas": (0.9, 0.95),
            "gamma": 0.05,
            "weight_decay": 0.5,
            "mars_type": "mars-lion",
            "optimize_1d": True,
        },
        grads="sparse",
    ),
    "cautious": Row(
        lambda lib: lib.chain(
            lib.cautious(lib.scale_by_adam(b1=0.8, b2=0.95, eps=1e-30), direction="ascent"),
            lib.add_decayed_weights(0.5),
            lib.scale_by_learning_rate(0.01),
        ),
        "github.com/kyleliang919/C-Optim",
        "c_adamw.py:AdamW",
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-30, "weight_decay": 0.5, "foreach": False},
        grads="sparse",
        why="theirs adds eps before the bias correction",
    ),
    "cautious_lion": _timm(
        lambda lib: lib.chain(
            lib.cautious(lib.scale_by_lion(b1=0.8, b2=0.95), direction="ascent"),
            lib.add_decayed_weights(0.5),
            lib.scale_by_learning_rate(0.01),
        ),
        "lion",
        "Lion",
        {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.5, "caution": True},
        grads="sparse",
        why="the authors' own Lion divides by the mean of the mask with one more element in it",
    ),
}

_GIDEL = "github.com/GauthierGidel/Variational-Inequality-GAN"
_FIRST = "theirs takes 0 for the gradient before the first, which is 0 here"

_OPTIMISTIC: dict[str, Row] = {
    "optimistic_gradient_descent": Row(
        lambda lib: lib.optimistic_gradient_descent(0.01),
        _GIDEL,
        "optim/omd.py:OMD",
        {"lr": 0.01},
        grads="sparse",
        why=_FIRST,
    ),
    "optimistic_adam": Row(
        lambda lib: lib.optimistic_adam(0.01, b1=0.8, eps=1e-30, nesterov=False),
        _GIDEL,
        "optim/omd.py:OptimisticAdam",
        {"lr": 0.01, "betas": (0.8, 0.999), "eps": 1e-30},
        grads="sparse",
        why=_FIRST + "; it adds eps before the bias correction",
    ),
    "optimistic_adam_v2": Row(
        lambda lib: lib.optimistic_adam_v2(0.01, b1=0.8, eps=1e-30, nesterov=False),
        _GIDEL,
        "optim/omd.py:OptimisticAdam",
        {"lr": 0.01, "betas": (0.8, 0.999), "eps": 1e-30},
        grads="sparse",
        why="see optimistic_adam",
    ),
}

# ---------------------------------------------------------------- signs, layers, factors

_SIGNS: dict[str, Row] = {
    "lion": Row(
        lambda lib: lib.lion(0.01, b1=0.8, b2=0.95, weight_decay=0.5),
        "lion-pytorch",
        "lion_pytorch:Lion",
        {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.5},
        grads="sparse",
    ),
    "sign_sgd": _kozistr(
        lambda lib: lib.sign_sgd(0.01),
        "SignSGD",
        {"lr": 0.01, "momentum": 0.0, "foreach": False},
        grads="sparse",
    ),
    "signum": _kozistr(
        lambda lib: lib.signum(0.01, beta=0.8),
        "SignSGD",
        {"lr": 0.01, "momentum": 0.8, "foreach": False},
        grads="sparse",
    ),
}

_LAYERS: dict[str, Row] = {
    "lamb": _timm(
        lambda lib: lib.lamb(0.01),
        "lamb",
        "Lamb",
        {"lr": 0.01, "weight_decay": 0.0, "max_grad_norm": None, "always_adapt": True},
        grads="sparse",
        why="timm's has no adaptation without decay unless asked, and clips the gradient",
    ),
    "lamb_decay": _timm(
        lambda lib: lib.lamb(0.01, b1=0.8, b2=0.95, eps=1e-2, weight_decay=0.5),
        "lamb",
        "Lamb",
        {
            "lr": 0.01,
            "betas": (0.8, 0.95),
            "eps": 1e-2,
            "weight_decay": 0.5,
            "max_grad_norm": None,
        },
        grads="sparse",
    ),
    "lars": _timm(
        lambda lib: lib.lars(1.0, trust_coefficient=0.01, momentum=0.8),
        "lars",
        "Lars",
        {"lr": 1.0, "momentum": 0.8, "trust_coeff": 0.01, "eps": 0.0, "always_adapt": True},
        grads="sparse",
        why="with decay, theirs divides by |g| + decay |p|, this library by |g + decay p|",
    ),
    "lars_nesterov": _timm(
        lambda lib: lib.lars(1.0, trust_coefficient=0.01, eps=1e-2, nesterov=True),
        "lars",
        "Lars",
        {
            "lr": 1.0,
            "momentum": 0.9,
            "nesterov": True,
            "trust_coeff": 0.01,
            "eps": 1e-2,
            "always_adapt": True,
        },
        why="see lars",
    ),
    "lars_mask": _kozistr(
        lambda lib: lib.lars(0.01, trust_coefficient=0.1, trust_ratio_mask={"w": True, "b": False}),
        "LARS",
        {"lr": 0.01, "momentum": 0.9, "trust_coefficient": 0.1, "foreach": False},
        grads="sparse",
        why="it leaves vectors as they are",
    ),
    "novograd": _kozistr(
        lambda lib: lib.novograd(0.01, b1=0.8, b2=0.5, eps=1e-3, weight_decay=0.5),
        "NovoGrad",
        {
            "lr": 0.01,
            "betas": (0.8, 0.5),
            "eps": 1e-3,
            "weight_decay": 0.5,
            "foreach": False,
        },
        grads="sparse",
    ),
    "fromage": Row(
        lambda lib: lib.fromage(0.01),
        "github.com/jxbz/fromage",
        "fromage.py:Fromage",
        {"lr": 0.01},
        why="theirs has no least norm",
    ),
    "adaptive_grad_clip": _kozistr(
        lambda lib: lib.chain(lib.adaptive_grad_clip(0.1), lib.sgd(0.01)),
        "optimizer.agc:agc",
        {"agc_clip_val": 0.1},
        how="clip transposed",
        inner=("SGD", {"lr": 0.01}),
        grads="sparse",
        why="torch keeps matrices transposed: a unit's weights are a row there, a column here",
    ),
    "centralize": _kozistr(
        lambda lib: lib.chain(lib.centralize(), lib.sgd(0.01)),
        "optimizer.gradient_centralization:centralize_gradient",
        {},
        how="change",
        inner=("SGD", {"lr": 0.01}),
        grads="sparse",
    ),
}

_FACTORS: dict[str, Row] = {
    "adafactor": _torch(
        lambda lib: lib.adafactor(0.01, min_dim_size_to_factor=2, weight_decay_rate=0.005),
        "Adafactor",
        {"lr": 0.01, "eps": (1e-30, 1e-3), "weight_decay": 0.5, "foreach": False},
        grads="sparse",
        why="torch multiplies the decay by the learning rate",
    ),
    "adafactor_momentum": Row(
        lambda lib: lib.adafactor(
            0.01,
            min_dim_size_to_factor=2,
            decay_rate=0.7,
            clipping_threshold=0.5,
            momentum=0.8,
            dtype_momentum=np.float64,
        ),
        "torch-optimizer",
        "torch_optimizer:Adafactor",
        {
            "lr": 0.01,
            "decay_rate": -0.7,
            "clip_threshold": 0.5,
            "beta1": 0.8,
            "relative_step": False,
        },
        grads="sparse",
    ),
    "adafactor_no_scale": Row(
        lambda lib: lib.adafactor(
            0.01, min_dim_size_to_factor=2, multiply_by_parameter_scale=False
        ),
        "torch-optimizer",
        "torch_optimizer:Adafactor",
        {"lr": 0.01, "scale_parameter": False, "relative_step": False},
        grads="sparse",
    ),
    "sm3": _kozistr(
        lambda lib: lib.sm3(0.01, momentum=0.8),
        "SM3",
        {"lr": 0.01, "momentum": 0.8, "eps": 1e-8, "foreach": False},
        grads="sparse",
    ),
}

# ---------------------------------------------------------------- matrices, curvature

_MUON = {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9, "nesterov": False, "eps": 0.0}
_MUON_WHY = (
    "torch keeps matrices transposed, rounds to bfloat16 (switched off) and does not correct "
    "Nesterov's momentum for its bias"
)

_SOAP = {"learning_rate": 0.01, "eps": 0.0, "weight_decay": 0.0}


def _adam(lib: Any) -> Any:
    return lib.adam(0.01, eps=0.0)


_KL = {"lr": 0.01, "weight_decay": 0.0, "precondition_frequency": 4, "cast_dtype": "float64"}

_SPLUS = ("github.com/kvfrans/splus", "optax/splus.py:splus")
_SPLUS_NUMBERS = {
    "learning_rate": 0.1,
    "inverse_every": 1,
    "weight_decay": 0.5,
    "mask": {"w": True, "b": False},
    "verbose": False,
}


def _splus_and_signs(lib: Any) -> Any:
    others = lib.signum(0.1 * 0.001, beta=0.9)
    return lib.splus(0.1, weight_decay=0.5, precondition_frequency=1, fallback=others)


def _averaging(lib: Any, tx: Any, decay: float) -> Any:
    """The same, with the averaged parameters at the end of the state."""
    average = lib.ema(decay)

    def init(params: Any) -> Any:
        return tx.init(params), average.init(params), params

    def update(updates: Any, state: Any, params: Any) -> Any:
        averaged, kept = average.update(params, state[1])
        updates, inner = tx.update(updates, state[0], params)
        return updates, (inner, kept, averaged)

    return lib.GradientTransformation(init, update)


_DION = ("github.com/microsoft/dion", "dion/dion_reference.py:Dion")
_DION2 = ("github.com/microsoft/dion", "dion/dion2.py:Dion2")


def directions(length: int, count: int) -> Any:
    """What Dion begins with, instead of the random numbers of either side."""
    return np.random.default_rng(20240303).normal(size=(length, count))


def _directed(lib: Any, tx: Any) -> Any:
    """The same, from those directions."""
    import jax

    def init(params: Any) -> Any:
        own = lambda x: isinstance(x, lib.DionState)
        start = lambda basis: jax.numpy.asarray(directions(*basis.shape), basis.dtype)
        return jax.tree.map(
            lambda x: x._replace(basis=jax.tree.map(start, x.basis)) if own(x) else x,
            tx.init(params),
            is_leaf=own,
        )

    return lib.GradientTransformation(init, tx.update)


@cache
def first_key() -> Any:
    """A key of a generator that counts: its noise in step t depends on t and nothing else.

    So both sides have the same, and it stays what it is when JAX has other generators.
    """
    import jax
    from jax.extend.random import define_prng_impl

    table = np.random.default_rng(20240304).integers(0, 2**64, size=(40, 3, 4), dtype=np.uint64)

    def split(key: Any, shape: Any) -> Any:
        assert shape == (2,)
        return jax.numpy.stack([key + 1, key])  # those of the next step and of this one

    generator = define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: jax.numpy.zeros(1, "uint32"),
        split=split,
        random_bits=lambda key, width, shape: jax.numpy.asarray(table)[key[0]].reshape(shape),
        fold_in=lambda key, count: key + count.astype("uint32"),
        name="counting",
        tag="count",
    )
    return jax.random.wrap_key_data(jax.numpy.zeros(1, "uint32"), impl=generator)


_NORMUON = ("github.com/microsoft/dion", "dion/normuon.py:NorMuon")
_SCION = ("github.com/LIONS-EPFL/scion", "scion.py:Scion")
_PSGD = ("github.com/evanatyourservice/psgd_jax", "psgd_jax/kron.py:kron")
_ADAMUON = ("github.com/Chongjie-Si/AdaMuon", "gpt2/models/optimizers/adamuon.py:AdaMuon")
_SHAMPOO = (
    "github.com/facebookresearch/optimizers",
    "distributed_shampoo/distributed_shampoo.py:DistributedShampoo",
)
_ADAM: Call = ("Adam", {"lr": 0.01, "eps": 0.0})
_SHAMPOO_FLOAT64 = {
    "distributed_config": ("SingleDeviceDistributedConfig", {"target_parameter_dimensionality": 2}),
    "preconditioner_config": (
        "RootInvShampooPreconditionerConfig",
        {"factor_matrix_dtype": "float64", "inv_factor_matrix_dtype": "float64"},
    ),
}


def _only_matrix(lib: Any, tx: Any) -> Any:
    """This for the matrix alone."""
    return lib.partition({"w": tx, "b": _adam(lib)}, {"w": "w", "b": "b"})


def _divided(scale: float) -> Any:
    """Muon's coefficients, for a matrix that is to be divided by this in the first step."""
    a, b, c = 3.4445, -4.7750, 2.0315
    return ((a / scale, b / scale**3, c / scale**5), *((a, b, c),) * 4)


_MATRICES: dict[str, Row] = {
    "muon": _torch(
        lambda lib: lib.muon(0.01, beta=0.9, eps=0.0, nesterov=False),
        "Muon",
        _MUON,
        how="matrices",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why=_MUON_WHY,
    ),
    "muon_decay": _torch(
        lambda lib: lib.muon(
            0.01, beta=0.9, eps=0.0, nesterov=False, weight_decay=0.5, consistent_rms=0.2
        ),
        "Muon",
        {**_MUON, "weight_decay": 0.5, "adjust_lr_fn": "match_rms_adamw"},
        how="matrices",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why=_MUON_WHY,
    ),
    "normuon": Row(
        lambda lib: lib.normuon(
            0.01,
            "modded_nanogpt",
            b1=0.9,
            b2=0.8,
            weight_decay=0.5,
            consistent_rms=None,
            convention="spectral",
            fallback=_adam(lib),
        ),
        *_NORMUON,
        {"lr": 0.01, "mu": 0.9, "muon_beta2": 0.8, "weight_decay": 0.5, "epsilon": 1.02e-7},
        how="matrices, all in float64",
        inner=_ADAM,
        why="their momentum is a sum, ten times the average; eps is added to 1.02 times its norm",
    ),
    "normuon_coefficients": Row(
        lambda lib: lib.normuon(
            0.01,
            "dion",
            b1=0.9,
            weight_decay=0.0,
            nesterov=True,
            consistent_rms=None,
            convention="moonlight",
            fallback=_adam(lib),
        ),
        *_NORMUON,
        {
            "lr": 0.01,
            "mu": 0.9,
            "weight_decay": 0.0,
            "epsilon": 1e-7,
            "nesterov": True,
            "adjust_lr": "rms_norm",
            "use_polar_express": False,
        },
        how="matrices, all in float64",
        inner=_ADAM,
        why="see normuon",
    ),
    "normuon_authors": Row(
        lambda lib: lib.normuon(
            0.01,
            b1=0.9,
            b2=0.8,
            eps=1e-10,
            weight_decay=0.5,
            nesterov=True,
            consistent_rms=None,
            convention="keller",
            fallback=_adam(lib),
        ),
        "github.com/zichongli5/NorMuon",
        "normuon.py:SingleDeviceNorMuon",
        {"lr": 0.01, "momentum": 0.9, "beta2": 0.8, "weight_decay": 0.5},
        grads="huge",
        how="matrices",
        inner=_ADAM,
        rtol=1e-11,
        why="theirs adds 1e-7 to the norm of gradients, here huge, and 1e-10 to that of the result",
    ),
    "scion": Row(
        lambda lib: lib.scion(0.01, momentum=0.2, eps=0.0, radius=2.0),
        *_SCION,
        {"lr": 0.01, "momentum": 0.2, "scale": 2.0},
        grads="huge",
        how="matrices",
        why="theirs has 1e-7 and 1e-8 for eps, of no account beside these gradients",
    ),
    "scion_unconstrained": Row(
        lambda lib: lib.scion(0.01, momentum=1.0, eps=0.0, radius=0.5, unconstrained=True),
        *_SCION,
        {"lr": 0.01, "momentum": 1.0, "scale": 0.5, "unconstrained": True},
        grads="huge",
        how="matrices",
        why="see scion",
    ),
    "scion_sign": Row(
        lambda lib: _only_matrix(lib, lib.scion(0.01, 0.2, norms="sign", head_radius=2.0)),
        *_SCION,
        {"lr": 0.01, "momentum": 0.2, "scale": 2.0, "norm": "Sign"},
        how="matrices",
        inner=_ADAM,
    ),
    "scion_rms": Row(
        lambda lib: _only_matrix(lib, lib.scion(0.01, 0.2, norms="rms", radius=2.0)),
        *_SCION,
        {"lr": 0.01, "momentum": 0.2, "scale": 2.0, "norm": "ColNorm"},
        how="matrices",
        inner=_ADAM,
        why="their column is an input, here a row",
    ),
    "psgd_kron": Row(
        lambda lib: lib.psgd_kron(
            0.01, 0.8, weight_decay=0.5, key=first_key(), fallback=_adam(lib)
        ),
        *_PSGD,
        {"learning_rate": 0.01, "b1": 0.8, "weight_decay": 0.5},
        how="optax",
        inner=_ADAM,
        why="both get the same noise; of the vector theirs would whiten one side",
    ),
    "psgd_kron_rarely": Row(
        lambda lib: lib.psgd_kron(
            0.01,
            preconditioner_update_probability=0.25,
            memory_save_mode="one_diag",
            preconditioner_lr=0.3,
            preconditioner_init_scale=0.5,
            key=first_key(),
            fallback=_adam(lib),
        ),
        *_PSGD,
        {
            "learning_rate": 0.01,
            "preconditioner_update_probability": 0.25,
            "memory_save_mode": "one_diag",
            "preconditioner_lr": 0.3,
            "preconditioner_init_scale": 0.5,
        },
        how="optax",
        inner=_ADAM,
        why="see psgd_kron",
    ),
    "adamuon": Row(
        lambda lib: lib.adamuon(
            0.01,
            _divided(1 + 1e-7 / math.sqrt(12)),
            b1=0.9,
            b2=0.9,
            eps=0.0,
            weight_decay=0.5,
            fallback=_adam(lib),
        ),
        *_ADAMUON,
        {
            "lr": 0.01,
            "momentum": 0.9,
            "eps": 0.0,
            "weight_decay": 0.5,
            "rank": 0,
            "world_size": 1,
        },
        how="matrices, all in float64",
        inner=_ADAM,
        why="theirs adds 1e-7 to the norm of the signs, the root of 12",
    ),
    "shampoo": Row(
        lambda lib: lib.shampoo(
            2**-7,
            b2=0.95,
            eps=1e-6,
            weight_decay=0.5,
            graft_b2=0.99,
            graft_eps=1e-8,
            fallback=_adam(lib),
        ),
        *_SHAMPOO,
        {
            "lr": 2**-7,
            "betas": (0.9, 0.95),
            "epsilon": 1e-6,
            "weight_decay": 0.5,
            "grafting_config": ("AdamPreconditionerConfig", {"beta2": 0.99, "epsilon": 1e-8}),
            **_SHAMPOO_FLOAT64,
        },
        how="matrices",
        inner=_ADAM,
        why="a small matrix is a vector there by default; its learning rate is rounded to float32",
    ),
    "shampoo_blocks": Row(
        lambda lib: lib.shampoo(
            2**-7, b1=0.8, eps=1e-6, block_size=2, graft="adagrad", fallback=_adam(lib)
        ),
        *_SHAMPOO,
        {
            "lr": 2**-7,
            "betas": (0.8, 1.0),
            "epsilon": 1e-6,
            "max_preconditioner_dim": 2,
            "grafting_config": ("AdaGradPreconditionerConfig", {"epsilon": 1e-10}),
            **_SHAMPOO_FLOAT64,
        },
        how="matrices",
        inner=_ADAM,
        why="see shampoo",
    ),
    "shampoo_rmsprop": Row(
        lambda lib: lib.shampoo(
            2**-7,
            b2=0.9,
            eps=1e-6,
            graft="rmsprop",
            graft_b2=0.9,
            graft_eps=1e-8,
            bias_correction=False,
            fallback=_adam(lib),
        ),
        *_SHAMPOO,
        {
            "lr": 2**-7,
            "betas": (0.9, 0.9),
            "epsilon": 1e-6,
            "use_bias_correction": False,
            "grafting_config": ("RMSpropPreconditionerConfig", {"beta2": 0.9, "epsilon": 1e-8}),
            **_SHAMPOO_FLOAT64,
        },
        how="matrices",
        inner=_ADAM,
        why="see shampoo",
    ),
    "muon_keller": Row(
        lambda lib: lib.muon(
            0.01,
            beta=0.9,
            eps=0.0,
            weight_decay=0.5,
            bias_correction=False,
            fallback=_adam(lib),
        ),
        "github.com/KellerJordan/Muon",
        "muon.py:SingleDeviceMuon",
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.5},
        grads="huge",
        how="matrices",
        inner=_ADAM,
        why="theirs has 1e-7 for eps, of no account beside these gradients",
    ),
    "correct_by_mars_muon": Row(
        lambda lib: _only_matrix(
            lib,
            lib.chain(
                lib.correct_by_mars(b1=0.9, gamma=0.05),
                lib.muon(0.01, beta=0.9, eps=0.0, nesterov=False, weight_decay=0.5),
            ),
        ),
        *_MARS,
        {
            "lr": 0.01,
            "betas": (0.9, 0.95),
            "eps": 0.0,
            "gamma": 0.05,
            "weight_decay": 0.5,
            "mars_type": "mars-shampoo",
        },
        how="matrices",
        inner=_ADAM,
        why="what theirs calls shampoo is Muon",
    ),
    "hyperball": Row(
        lambda lib: lib.hyperball(
            lib.scale_by_adam(b1=0.8, b2=0.95, eps=0.0),
            0.05,
            fallback=lib.adamw(0.01, b1=0.8, b2=0.95, eps=0.0, weight_decay=0.5),
        ),
        "github.com/WhenWen/WhenWen.github.io",
        "wd_blog/scripts/hyperball.py:HyperballAdam",
        {"lr": 0.05, "lr_1d": 0.01, "betas": (0.8, 0.95), "eps": 0.0, "weight_decay": 0.5},
        params_as=on_unit_sphere,
        rtol=1e-11,
        why="theirs does not multiply the step by the radius, here 1, and adds 1e-12 to norms",
    ),
    "add_cautious_decay": Row(
        lambda lib: _only_matrix(
            lib,
            lib.chain(
                lib.scale_by_normuon("modded_nanogpt", b1=0.9),
                lib.scale_by_shape(convention="spectral"),
                lib.add_cautious_decay(0.5),
                lib.scale_by_learning_rate(0.01),
            ),
        ),
        *_NORMUON,
        {"lr": 0.01, "mu": 0.9, "weight_decay": 0.5, "epsilon": 1.02e-7, "cautious_wd": True},
        how="matrices, all in float64",
        inner=_ADAM,
        why="see normuon",
    ),
    "soap": Row(
        lambda lib: lib.soap(precondition_frequency=4, fallback=_adam(lib), **_SOAP),
        "github.com/nikhilvyas/SOAP",
        "soap.py:SOAP",
        {"lr": 0.01, "eps": 0.0, "weight_decay": 0.0, "precondition_frequency": 4},
        how="matrices",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="theirs adds eps to the root before it corrects it, and decays what it has updated",
    ),
    "soap_betas": Row(
        lambda lib: lib.soap(
            b1=0.8,
            b2=0.9,
            shampoo_beta=0.7,
            max_precond_dim=3,
            bias_correction=False,
            **_SOAP,
            fallback=_adam(lib),
        ),
        "github.com/nikhilvyas/SOAP",
        "soap.py:SOAP",
        {
            "lr": 0.01,
            "eps": 0.0,
            "weight_decay": 0.0,
            "betas": (0.8, 0.9),
            "shampoo_beta": 0.7,
            "max_precond_dim": 3,
            "correct_bias": False,
        },
        how="matrices",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="see soap",
    ),
    "kl_soap": Row(
        lambda lib: lib.kl_soap(precondition_frequency=4, fallback=_adam(lib), **_SOAP),
        "github.com/yorkerlin/KL-Methods",
        "optim/kl_opt.py:KLOpt",
        {**_KL, "eps": 0.0, "using_klsoap": True},
        how="matrices",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="theirs decays what it has updated",
    ),
    "kl_shampoo": Row(
        lambda lib: lib.kl_shampoo(
            precondition_frequency=4, init_factor=2.0, **{**_SOAP, "eps": 0.1}, fallback=_adam(lib)
        ),
        "github.com/yorkerlin/KL-Methods",
        "optim/kl_opt.py:KLOpt",
        {**_KL, "eps": 0.1, "init_factor": 2.0},
        how="matrices",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="theirs decays what it has updated",
    ),
    "dion": Row(
        lambda lib: _directed(
            lib, lib.dion(0.01, b1=0.8, eps=1e-3, weight_decay=0.5, fallback=_adam(lib))
        ),
        *_DION,
        {"lr": 0.01, "mu": 0.8, "epsilon": 1e-3, "weight_decay": 0.5, "qr_method": "qr"},
        how="matrices, all in float64",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="both begin with the same directions; theirs turns to float32 here and there",
    ),
    "dion_low_rank": Row(
        lambda lib: _directed(
            lib, lib.dion(0.01, rank_fraction=0.4, weight_decay=0.0, fallback=_adam(lib))
        ),
        *_DION,
        {"lr": 0.01, "rank_fraction": 0.4, "weight_decay": 0.0},
        how="matrices, all in float64",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="see dion; the orthogonal factor is by a random sketch and Cholesky's factor there",
    ),
    "dion2": Row(
        lambda lib: lib.dion2(
            0.01, fraction=0.5, ef_decay=0.8, eps=1e-3, weight_decay=0.5, fallback=_adam(lib)
        ),
        *_DION2,
        {"lr": 0.01, "fraction": 0.5, "ef_decay": 0.8, "epsilon": 1.02e-3, "weight_decay": 0.5},
        how="matrices, all in float64",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="theirs divides by 1.02 times the norm, plus eps, in bfloat16",
    ),
    "dion2_coefficients": Row(
        lambda lib: lib.dion2(
            0.01,
            ns_coeffs="dion",
            eps=1e-3,
            weight_decay=0.0,
            convention="moonlight",
            fallback=_adam(lib),
        ),
        *_DION2,
        {
            "lr": 0.01,
            "epsilon": 1e-3,
            "weight_decay": 0.0,
            "adjust_lr": "rms_norm",
            "use_polar_express": False,
        },
        how="matrices, all in float64",
        inner=("Adam", {"lr": 0.01, "eps": 0.0}),
        why="theirs takes products in bfloat16",
    ),
    "splus": Row(
        _splus_and_signs,
        *_SPLUS,
        _SPLUS_NUMBERS,
        how="optax",
        why="theirs renews the bases in the steps 1, k, 2k, ..., this library in 1, k + 1, ...",
    ),
    "splus_one_sided": Row(
        lambda lib: lib.splus(
            0.01,
            b1=0.8,
            b2=0.9,
            weight_decay=0.0,
            max_precond_dim=3,
            fallback=lib.signum(0.01 * 2 / 7, beta=0.8),
        ),
        *_SPLUS,
        {
            "learning_rate": 0.01,
            "b1": 0.8,
            "b2": 0.9,
            "weight_decay": 0.0,
            "max_dim": 4,
            "nonstandard_constant": 2 / 7,
            "verbose": False,
        },
        how="optax",
        why="this library scales by shape whatever has a basis on one side; theirs, 3 by 4, not",
    ),
    "splus_average": Row(
        lambda lib: _averaging(lib, _splus_and_signs(lib), 0.9),
        *_SPLUS,
        {**_SPLUS_NUMBERS, "ema_rate": 0.9},
        how="optax average",
        read=lambda lib, params, state: state[2],
        why="theirs averages the parameters that a step begins with",
    ),
    "galore": Row(
        lambda lib: lib.galore(0.01, rank=2, scale=0.5),
        "galore-torch",
        "galore_torch.galore_projector:GaLoreProjector",
        {"rank": 2, "update_proj_gap": 200, "scale": 0.5, "proj_type": "reverse_std"},
        how="project",
        inner=("Adam", {"lr": 0.01}),
        rtol=1e-6,
        why="both take singular vectors in float32; Optax's side is the authors' reverse_std",
    ),
    "galore_shorter": Row(
        lambda lib: lib.galore(0.01, rank=2, scale=0.5, side="shorter"),
        "galore-torch",
        "galore_torch.galore_projector:GaLoreProjector",
        {"rank": 2, "update_proj_gap": 200, "scale": 0.5},
        how="project",
        inner=("Adam", {"lr": 0.01}),
        rtol=1e-6,
        why="the authors' default; see galore",
    ),
    "galore_refresh": Row(
        lambda lib: lib.galore(0.01, rank=2, update_proj_gap=7, base_optimizer=lib.identity()),
        "galore-torch",
        "galore_torch.galore_projector:GaLoreProjector",
        {"rank": 2, "update_proj_gap": 7, "proj_type": "reverse_std"},
        how="project",
        inner=("SGD", {"lr": 0.01}),
        rtol=1e-6,
        why="see galore; without a memory, so that the sign of a singular vector is of no account",
    ),
    "sophia": Row(
        lambda lib: lib.sophia(
            0.01,
            b1=0.8,
            b2=0.9,
            eps=1e-15,
            gamma=0.04,
            weight_decay=0.5,
            update_interval=4,
            hessian_diagonal_fn=lib.stateless(_squared),
        ),
        "sophia-opt",
        "sophia_opt:SophiaG",
        {"lr": 0.01, "betas": (0.8, 0.9), "rho": 0.04, "weight_decay": 0.5},
        how="hessian after step 1, 5, 9, ...",
        why="theirs has no bias correction: its rho is multiplied by 1 - b1^t at each step",
    ),
    "lbfgs": _torch(
        lambda lib: lib.lbfgs(0.2, memory_size=3, linesearch=None),
        "LBFGS",
        {
            "lr": 0.2,
            "max_iter": 1,
            "history_size": 3,
            "tolerance_grad": 0.0,
            "tolerance_change": 0.0,
        },
        grads="curved",
        how="closure",
        why="torch's first step is limited by the 1-norm, here by the 2-norm: both under 1 here",
    ),
}


def _squared(updates: Any, params: Any) -> Any:
    return {name: g * g for name, g in updates.items()}


# ---------------------------------------------------------------- learning rates found on the way

_FOUND: dict[str, Row] = {
    "prodigy": Row(
        lambda lib: lib.prodigy(weight_decay=0.1, estim_lr0=1e-3),
        "prodigyopt",
        "prodigyopt:Prodigy",
        {"weight_decay": 0.1, "d0": 1e-3, "use_bias_correction": True},
        why="this library always corrects the bias",
    ),
    "prodigy_safeguard": Row(
        lambda lib: lib.prodigy(
            lib.exponential_decay(1.0, 1, 0.9),
            betas=(0.8, 0.95),
            beta3=0.9,
            eps=1e-3,
            estim_lr0=1e-3,
            estim_lr_coef=2.0,
            safeguard_warmup=True,
        ),
        "prodigyopt",
        "prodigyopt:Prodigy",
        {
            "betas": (0.8, 0.95),
            "beta3": 0.9,
            "eps": 1e-3,
            "d0": 1e-3,
            "d_coef": 2.0,
            "safeguard_warmup": True,
            "use_bias_correction": True,
        },
        schedules=(("ExponentialLR", {"gamma": 0.9}),),
        why="see prodigy",
    ),
    "dadapt_adamw": Row(
        lambda lib: lib.dadapt_adamw(betas=(0.8, 0.95), estim_lr0=1e-3, weight_decay=0.1),
        "dadaptation",
        "dadaptation:DAdaptAdam",
        {
            "betas": (0.8, 0.95),
            "d0": 1e-3,
            "weight_decay": 0.1,
            "decouple": True,
            "use_bias_correction": True,
        },
        why="this library always corrects the bias",
    ),
    "dog": Row(
        lambda lib: lib.dog(init_step=("heuristic", 1e-2), eps=1e-3, weight_decay=0.1),
        "dog-optimizer",
        "dog:DoG",
        {"reps_rel": 1e-2, "eps": 1e-3, "weight_decay": 0.1},
        grads="sparse",
    ),
    "dog_first_rate": Row(
        lambda lib: lib.dog(init_step=("learning_rate", 1e-2)),
        "dog-optimizer",
        "dog:DoG",
        {"init_eta": 1e-2},
    ),
    "scale_by_distance_over_gradients": Row(
        lambda lib: lib.chain(
            lib.scale_by_distance_over_gradients(1e-2, 1e-3, param_dtype=np.float64),
            lib.scale(-1.0),
        ),
        "dog-optimizer",
        "dog:LDoG",
        {"reps_rel": 1e-2, "eps": 1e-3},
        grads="sparse",
    ),
    "dowg": Row(
        lambda lib: lib.dowg(eps=1e-2),
        "github.com/rka97/dowg",
        "dowg/dowg.py:DoWG",
        {"eps": 1e-2},
        grads="sparse",
    ),
    "cocob": Row(
        lambda lib: lib.cocob(alpha=10.0, weight_decay=0.1),
        "parameterfree",
        "parameterfree:COCOB",
        {"alpha": 10.0, "weight_decay": 0.1},
        grads="sparse",
    ),
    "momo": Row(
        lambda lib: lib.momo(0.05, beta=0.8, lower_bound=0.5),
        "momo-opt",
        "momo:Momo",
        {"lr": 0.05, "beta": 0.8, "lb": 0.5},
        how="loss",
        value=True,
        why="with decay, theirs divides the step as well by 1 + lr * weight_decay",
    ),
    "momo_bound": Row(
        lambda lib: lib.momo(0.05, lower_bound=0.1, adapt_lower_bound=True),
        "momo-opt",
        "momo:Momo",
        {"lr": 0.05, "lb": 0.1, "use_fstar": True},
        how="loss",
        value=True,
        why="see momo",
    ),
    "momo_adam": Row(
        lambda lib: lib.momo_adam(0.05, b1=0.8, b2=0.95, lower_bound=0.5),
        "momo-opt",
        "momo:MomoAdam",
        {"lr": 0.05, "betas": (0.8, 0.95), "lb": 0.5},
        how="loss",
        value=True,
        why="see momo",
    ),
    "momo_adam_bound": Row(
        lambda lib: lib.momo_adam(0.05, lower_bound=0.1, adapt_lower_bound=True),
        "momo-opt",
        "momo:MomoAdam",
        {"lr": 0.05, "lb": 0.1, "use_fstar": True},
        how="loss",
        value=True,
        why="see momo",
    ),
    "polyak_sgd": Row(
        lambda lib: lib.polyak_sgd(max_learning_rate=0.02, eps=1e-3),
        "github.com/oval-group/ali-g",
        "alig/th/alig.py:AliG",
        {"max_lr": 0.02, "eps": 1e-3},
        how="closure",
        value=True,
        why="ALI-G without momentum is SPS_max with c = 1",
    ),
    "reduce_on_plateau": _torch(
        lambda lib: lib.chain(
            lib.sgd(0.05),
            lib.reduce_on_plateau(0.5, patience=2, rtol=0.1, cooldown=3, min_scale=0.1),
        ),
        "lr_scheduler.ReduceLROnPlateau",
        {"factor": 0.5, "patience": 1, "threshold": 0.1, "cooldown": 3, "min_lr": 0.005, "eps": 0},
        how="plateau",
        inner=("SGD", {"lr": 0.05}),
        value=True,
        why="torch waits for one value more than its patience",
    ),
}

# ---------------------------------------------------------------- around another optimizer


def _average(lib: Any, params: Any, state: Any) -> Any:
    return lib.schedule_free_eval_params(state, params)


def _warming(t: Any) -> Any:
    return 0.04 * (t + 1) / 40


def _both(lib: Any, params: Any) -> Any:
    return lib.LookaheadParams.init_synced(params)


def _fast(lib: Any, params: Any, state: Any) -> Any:
    return params.fast


_WRAPPERS: dict[str, Row] = {
    "schedule_free_sgd": Row(
        lambda lib: lib.schedule_free_sgd(0.01, b1=0.8, weight_decay=0.1),
        "schedulefree",
        "schedulefree:SGDScheduleFree",
        {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1, "foreach": False},
        how="train",
        grads="sparse",
    ),
    "schedule_free_sgd_average": Row(
        lambda lib: lib.schedule_free_sgd(0.01),
        "schedulefree",
        "schedulefree:SGDScheduleFree",
        {"lr": 0.01, "foreach": False},
        how="train and evaluate",
        read=_average,
        grads="sparse",
    ),
    "schedule_free_adamw": Row(
        lambda lib: lib.schedule_free_adamw(0.01, b1=0.8, b2=0.95, eps=1e-2, weight_decay=0.1),
        "schedulefree",
        "schedulefree:AdamWScheduleFree",
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1, "foreach": False},
        how="train",
        grads="sparse",
    ),
    "schedule_free_adamw_average": Row(
        lambda lib: lib.schedule_free_adamw(0.01),
        "schedulefree",
        "schedulefree:AdamWScheduleFree",
        {"lr": 0.01, "foreach": False},
        how="train and evaluate",
        read=_average,
        grads="sparse",
    ),
    "schedule_free": Row(
        lambda lib: lib.schedule_free(lib.sgd(0.01, momentum=0.5), 0.01, b1=0.8),
        "schedulefree",
        "schedulefree:ScheduleFreeWrapperReference",
        {"momentum": 0.8},
        how="wrap and train",
        inner=("SGD", {"lr": 0.01, "momentum": 0.5, "foreach": False}),
        grads="sparse",
    ),
    "schedule_free_warmup": Row(
        lambda lib: lib.schedule_free(lib.sgd(_warming), _warming),
        "schedulefree",
        "schedulefree:SGDScheduleFree",
        {"lr": 0.04, "warmup_steps": 40, "foreach": False},
        how="train",
        grads="sparse",
        why="its warm-up begins with one fortieth",
    ),
    "lookahead": Row(
        lambda lib: lib.lookahead(lib.adam(0.01), sync_period=4, slow_step_size=0.3),
        "github.com/michaelrzhang/lookahead",
        "lookahead_pytorch.py:Lookahead",
        {"la_steps": 4, "la_alpha": 0.3},
        how="wrap",
        inner=("Adam", {"lr": 0.01, "foreach": False}),
        start=_both,
        read=_fast,
        grads="sparse",
    ),
    "lookahead_reset": Row(
        lambda lib: lib.lookahead(
            lib.sgd(0.01, momentum=0.9), sync_period=5, slow_step_size=0.5, reset_state=True
        ),
        "github.com/michaelrzhang/lookahead",
        "lookahead_pytorch.py:Lookahead",
        {"la_steps": 5, "la_alpha": 0.5, "pullback_momentum": "reset"},
        how="wrap",
        inner=("SGD", {"lr": 0.01, "momentum": 0.9, "foreach": False}),
        start=_both,
        read=_fast,
        grads="sparse",
    ),
    "sam": Row(
        lambda lib: lib.sam(
            lib.sgd(1e-11, momentum=0.9), lib.chain(lib.normalize(), lib.sgd(0.05))
        ),
        "github.com/davda54/sam",
        "sam.py:SAM",
        {"rho": 0.05},
        how="ascend and descend",
        inner=("SGD", {"lr": 1e-11, "momentum": 0.9, "foreach": False}),
        grads="huge",
        why="theirs adds 1e-12 to the norm",
    ),
    "dpsgd": Row(
        lambda lib: lib.dpsgd(1e-9, l2_norm_clip=1e8, noise_multiplier=0.0, key=0, momentum=0.9),
        "opacus",
        "opacus.optimizers.optimizer:DPOptimizer",
        {"noise_multiplier": 0.0, "max_grad_norm": 1e8, "expected_batch_size": 3},
        how="examples",
        inner=("SGD", {"lr": 1e-9, "momentum": 0.9, "foreach": False}),
        grads="huge",
        grads_as=as_examples,
        why="without noise: what is clipped, and where; theirs adds 1e-6 to the norm",
    ),
}

# ---------------------------------------------------------------- gradient averages

_MADGRAD: dict[str, Row] = {
    "madgrad": Row(
        lambda lib: lib.madgrad(0.01, momentum=0.8, weight_decay=0.1),
        "madgrad",
        "madgrad:MADGRAD",
        {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1},
        grads="sparse",
    ),
    "madgrad_no_momentum": Row(
        lambda lib: lib.madgrad(0.01, momentum=0.0, eps=1e-3),
        "madgrad",
        "madgrad:MADGRAD",
        {"lr": 0.01, "momentum": 0.0, "eps": 1e-3},
        grads="sparse",
    ),
}

ROWS: dict[str, Row] = {
    **_ADAPTIVE,
    **_CORRECTED,
    **_OPTIMISTIC,
    **_SIGNS,
    **_LAYERS,
    **_FACTORS,
    **_MATRICES,
    **_FOUND,
    **_MADGRAD,
    **_WRAPPERS,
}
