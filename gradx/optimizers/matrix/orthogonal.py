"""The parts that Muon and its kin share: a momentum, its polar factor, a scale by shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import Count, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.meaning import Number
from gradx.lift.averages import dtype_of, weight_so_far
from gradx.lift.leafwise import leafwise
from gradx.lift.matrices import check_paths, matrices
from gradx.lift.matrixwise import matrixwise
from gradx.lift.sharing import Sharing
from gradx.lift.stages import LeafState, Numbers
from gradx.linalg import polar
from gradx.lowering.products import Factors, with_factors
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.momentum import averaging, momentum_of, remembered
from gradx.pieces.norms import by_factor

__all__ = ["scale_by_shape"]

# Three numbers for all steps, three for each step, or the name of a preset.
NSCoefficients = Any
Normalisation = Literal["frobenius", "spectral", "aol", "schatten"]
Convention = Literal["keller", "moonlight", "spectral", "splus", "none"]


# ---------------------------------------------------------------- the momentum


class Momentum(NamedTuple):
    count: Count
    mu: Updates


def momentum(
    beta: Hyper,
    b3: Hyper | None,
    alpha: Hyper | None,
    mu_dtype: Any,
    nesterov: bool,
    bias_correction: bool,
    name: str = "beta",
) -> Transform:
    """An average of the gradients; with `nesterov`, after one more step with the same gradient.

    With `b3` there is a slow average, too, which does not look ahead.
    """
    return averaging(
        _momentum,
        Momentum,
        {name: beta},
        b3,
        alpha,
        mu_dtype,
        per_step=partial(_corrections, name=name, corrects=bias_correction),
        flags={"nesterov": nesterov},
    )


def _corrections(h: Numbers, t: Array, *, name: str, corrects: bool) -> Mapping[str, Any]:
    beta = getattr(h, name)
    own = {} if name == "b1" else {"b1": beta}
    now = 1 / weight_so_far(beta, t) if corrects else 1.0
    if not h.nesterov:
        return {**own, "of_mu": now, "of_g": 0.0}
    then = 1 / weight_so_far(beta, t + 1) if corrects else 1.0
    return {**own, "of_mu": beta * then, "of_g": (1 - beta) * now}


def _momentum(g: Array, s: Momentum, p: None, h: Numbers) -> tuple[Array, Momentum]:
    mu = remembered(s.mu, g, h)
    m = momentum_of(mu, h, h.of_mu)
    return (m + h.of_g * g if h.nesterov else m), s._replace(mu=mu)


def signs(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return jnp.sign(g), s


# ---------------------------------------------------------------- its polar factor


class Orthogonalised(NamedTuple):
    ns_coeffs: Array


def orthogonalise(
    ns_coeffs: NSCoefficients,
    ns_steps: int,
    eps: Hyper,
    preconditioning: Normalisation = "frobenius",
    *,
    adaptive: bool = False,
    axes: Any = None,
    axes_name: str = "weight_dimension_numbers",
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    """The approximate polar factor of each matrix. The state has the coefficients, as in Optax."""
    flags, scalars = polar_arguments(ns_coeffs, ns_steps, preconditioning, dtype, gram)
    return matrixwise(
        _orthogonal,
        state=Orthogonalised,
        hypers={"eps": eps},
        flags={**flags, "adaptive": adaptive},
        scalars=scalars,
        axes=axes,
        axes_name=axes_name,
        either_way=True,
        chunk=chunk,
        share=share,
    )


def polar_arguments(
    ns_coeffs: NSCoefficients, ns_steps: int, preconditioning: Normalisation, dtype: Any, gram: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flags and scalars of a rule that calls `polar_factor`; the rule also needs `eps`."""
    where = core.where()
    coeffs, count = coefficients(ns_coeffs, ns_steps, where)
    factors = factors_of("dtype", dtype)
    if isinstance(factors, np.dtype) and factors.itemsize < 2:
        if gram:
            raise ValueError(
                f"{where}: gram=True needs factors of two bytes or more, and dtype is {factors}, "
                f"whose rounding would grow from step to step. Leave gram out."
            )
        gram = False
    flags = {
        "steps": count,
        "preconditioning": preconditioning,
        "dtype": factors,
        "gram": gram,
    }
    return flags, {"ns_coeffs": coeffs}


def factors_of(name: str, choice: Any) -> Factors | None:
    """Checks the dtype or precision of matrix products; None stays: then the target decides.

    Raises:
      ValueError: it is neither a floating-point dtype nor a precision.
    """
    if choice is None or isinstance(choice, jax.lax.Precision):
        return choice
    names = [precision.name.lower() for precision in jax.lax.Precision]
    if isinstance(choice, str) and choice in names:
        return jax.lax.Precision[choice.upper()]
    dtype: Factors | None = dtype_of(choice, jnp.floating)
    if dtype is None:
        raise ValueError(
            f"{core.where()}: {name} must be a floating-point dtype, one of {names}, or None for "
            f"what suits the hardware; got {core.show(choice)}."
        )
    return dtype


def coefficients(ns_coeffs: NSCoefficients, ns_steps: int, where: str) -> tuple[np.ndarray, int]:
    """The coefficients for the state, (3,) or (n, 3), and the number of steps; 0 for "exact"."""
    count = steps("ns_steps", ns_steps, 1)
    if isinstance(ns_coeffs, str):
        if ns_coeffs == "exact":
            _check_own_steps(ns_coeffs, count, 0, where)
            return np.zeros((0, 3)), 0
        if ns_coeffs not in polar.NS_PRESETS:
            raise ValueError(
                f"{where}: ns_coeffs must be three numbers, a sequence of three numbers for each "
                f"step, 'exact', or one of {list(polar.NS_PRESETS)}; got {ns_coeffs!r}."
            )
        preset = polar.NS_PRESETS[ns_coeffs]
        if ns_coeffs == "standard":
            return np.asarray(preset[0]), count
        if ns_coeffs == "dion":
            ns_coeffs = preset
        else:
            _check_own_steps(ns_coeffs, count, len(preset), where)
            return np.asarray(preset), len(preset)
    coeffs: Any
    try:
        coeffs = np.asarray(ns_coeffs, np.float64)
    except (TypeError, ValueError):
        coeffs = np.zeros(0)
    if coeffs.ndim not in (1, 2) or coeffs.shape[-1] != 3 or not np.isfinite(coeffs).all():
        raise ValueError(
            f"{where}: ns_coeffs must be three finite numbers, or three for each step; got "
            f"{core.show(ns_coeffs)}."
        )
    if coeffs.ndim == 1:
        return coeffs, count
    if len(coeffs) < count:
        raise ValueError(
            f"{where}: ns_steps is {count}, and ns_coeffs are for {len(coeffs)} steps only."
        )
    return coeffs[-count:], count


def _check_own_steps(name: str, count: int, own: int, where: str) -> None:
    """A preset with its own number of steps takes no other; 5, the default, counts as not given."""
    if count not in (5, own):
        raise ValueError(
            f"{where}: ns_steps is {count}, and ns_coeffs={name!r} has {own or 'no'} steps. Leave "
            f"ns_steps out."
        )


def _orthogonal(g: Array, s: Orthogonalised, p: None, h: Numbers) -> tuple[Array, Orthogonalised]:
    factor = polar_factor(g, h)
    # The product is the dual norm of g, so that the step grows with the gradient.
    return (jnp.sum(g.conj() * factor) * factor if h.adaptive else factor), s


def polar_factor(g: Array, h: Numbers) -> Array:
    """The approximate polar factor of a matrix of any shape, by the flags of `polar_arguments`."""
    if g.shape[0] > g.shape[1]:
        return polar_factor(g.T, h).T
    if not h.steps:
        return polar.exact(g)
    coeffs = h.ns_coeffs.astype(g.real.dtype)
    every = jnp.broadcast_to(coeffs, (h.steps, 3))

    def nearly(factors: Factors, g: Array, every: Array) -> Array:
        x, square = polar.normalised(g, h.preconditioning, h.eps, factors)
        factor = polar.newton_schulz(x, every, square, factors=factors, gram=h.gram)
        return factor.astype(g.dtype)

    return with_factors(h.dtype, nearly, g, every)


# ---------------------------------------------------------------- a part of a matrix


def part_of(length: int, fraction: float, multiple: int = 1) -> int:
    """The fraction of a length, rounded up to a multiple, but at most the whole length."""
    # Less a part in 10⁹, since 0.1 * 30 is a little more than 3 in floating point.
    return min(multiple * math.ceil(fraction * length / multiple * (1 - 1e-9)), length)


# ---------------------------------------------------------------- a scale for each shape


def by_shape(factor: Callable[[int, int], float], axes: Any, axes_name: str) -> Transform:
    """Multiplies each matrix by a function of its numbers of rows and columns."""
    where = core.where()

    def facts(leaves: gtree.Flat, extra: Any) -> list[Mapping[str, Any] | None]:
        if extra is None:
            check_paths(axes, leaves, where)
            return [None] * len(leaves.values)
        found = matrices(axes, leaves, where, axes_name, stacked=True)
        return [None if m is None else {"factor": float(factor(m.rows, m.columns))} for m in found]

    return leafwise(by_factor, facts=facts)


_FACTORS: dict[str, Callable[[int, int], float]] = {
    "keller": lambda m, n: math.sqrt(max(1.0, n / max(m, 1))),
    "spectral": lambda m, n: math.sqrt(n / max(m, 1)),
    "moonlight": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "splus": lambda m, n: 2 / max(m + n, 1),
    "none": lambda m, n: 1.0,
}


def convention_or(
    default: Convention, convention: Convention | None, consistent_rms: Any
) -> Convention | None:
    """The convention that scales updates; None if `consistent_rms` does."""
    where = core.where()
    if consistent_rms is None:
        return default if convention is None else convention
    if convention is not None:
        raise ValueError(
            f"{where}: consistent_rms and convention are two answers to one question, how large an "
            f"update is; got {core.show(consistent_rms)} and {convention!r}. Give one of them, and "
            f"None for the other."
        )
    return None


@core.recorded
def scale_by_shape(
    weight_dimension_numbers: Any = None,
    consistent_rms: Annotated[float | None, Number("(0, inf)", "c")] = None,
    *,
    convention: Convention | None = None,
) -> Transform:
    r"""Multiplies orthogonal updates by a factor that follows from the shape of the matrix.

    .. math::
        \text{keller:} \ \sqrt{\max(1, n / m)} \qquad
        \text{spectral:} \ \sqrt{n / m} \qquad
        \text{moonlight:} \ 0.2 \sqrt{\max(m, n)} \qquad
        \text{splus:} \ 2 / (m + n)

    for \(m\) rows (inputs) and \(n\) columns (outputs).

    Args:
      weight_dimension_numbers: which leaves are matrices (see `muon`); others stay as they are.
        Without it, those with two axes.
      consistent_rms: the root mean square that an orthogonal matrix gets, by the factor \(c
        \sqrt{\max(m, n)}\).
      convention: instead of `consistent_rms`: ``"keller"``, ``"moonlight"``, ``"spectral"``,
        ``"splus"`` or ``"none"``. By default ``"keller"``.

    Raises:
      ValueError: an unknown convention, a number out of range, or both arguments are given.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_shape(convention="spectral")
      >>> tx.update(jnp.ones((1, 4)), tx.init(None))[0]
      Array([[2., 2., 2., 2.]], dtype=float32)

    Reference: https://github.com/KellerJordan/Muon; Liu et al., *Muon is scalable for LLM
    training*, https://arxiv.org/abs/2502.16982; Pethick et al., *Training deep learning models with
    norm-constrained LMOs*, https://arxiv.org/abs/2502.07529; Frans et al., *A stable whitening
    optimizer*, https://arxiv.org/abs/2506.07254.
    """
    chosen = convention_or("keller", convention, consistent_rms)
    size: Any = consistent_rms
    factor = _FACTORS[chosen] if chosen else lambda m, n: size * math.sqrt(max(m, n))
    return by_shape(factor, weight_dimension_numbers, "weight_dimension_numbers")
