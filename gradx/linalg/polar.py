"""The polar factor U Vᵀ of a matrix U S Vᵀ: exactly, or by Newton–Schulz steps.

A Newton–Schulz step maps each singular value s to a s + b s³ + c s⁵ and keeps the singular vectors.
Coefficients that raise small values fast do not bring them to 1, but into a band around 1. That is
all an optimizer needs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradx.core.roots import rsqrt, sqrt
from gradx.linalg import decompositions
from gradx.lowering.products import HIGHEST, WAIT, Factors, rough, times, wide
from gradx.numbers.sources import Array

Coefficients = tuple[tuple[float, float, float], ...]

_KELLER = (3.4445, -4.7750, 2.0315)
_CUBIC = (1.5, -0.5, 0.0)

_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def _damped(steps: Coefficients, safety: float) -> Coefficients:
    """Coefficients for singular values that rounding makes up to `safety` times too large."""
    return tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in steps)


def _chebyshev(lower: float, count: int) -> Coefficients:
    """The cubic steps with the least maximal error, each on the band that the last one left.

    On [l, u] the best odd cubic is s (l² + lu + u² - s²), scaled so that its extremes lie as far
    above 1 as below.
    """
    steps, upper = [], 1.0
    for _ in range(count):
        middle = lower**2 + lower * upper + upper**2
        highest, lowest = 2 * (middle / 3) ** 1.5, lower * upper * (lower + upper)
        scale = 2 / (highest + lowest)
        steps.append((scale * middle, -scale, 0.0))
        lower, upper = scale * lowest, scale * highest
    return tuple(steps)


NS_PRESETS: dict[str, Coefficients] = {
    "standard": (_KELLER,) * 5,
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": _damped(_EXPRESS, 1.01),
    "polar_express_safe": _damped(_EXPRESS, 1.05),
    "modded_nanogpt": (
        *_damped(((8.156554524902461, -22.48329292557795, 15.878769915207462),), 1.02),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    "cans": _chebyshev(1e-3, 8),
    "cubic": (_CUBIC,) * 5,
    "deepseek": (_KELLER,) * 8 + ((2.0, -1.5, 0.5),) * 2,
}


def singular_values_after(steps: Any, values: Any) -> Any:
    """The singular values after the steps: their polynomials, one after the other."""
    for a, b, c in steps:
        values = a * values + b * values**3 + c * values**5
    return values


def newton_schulz(
    x: Array,
    steps: Array,
    square: Array | None = None,
    *,
    factors: Factors = HIGHEST,
    gram: bool | None = None,
) -> Array:
    """Applies the steps (n, 3) to a normalised matrix with no more rows than columns.

    `square` is x xᵀ, if the caller has it. `factors` says what the products are calculated in;
    narrow factors stay narrow from one step to the next. With `gram` the steps work on the Gram
    matrix x xᵀ, and touch x only between phases; None chooses what takes less time.
    """
    product = partial(times, factors)
    count = steps.shape[0]
    if gram is None:
        plain, by_gram = costs(x.shape[0], x.shape[1], count, factors)
        gram = by_gram < plain
    square = product(x, x.mT.conj()) if square is None else square
    begin = 0
    for end in _phases(count, factors) if gram else range(1, count + 1):
        square = product(x, x.mT.conj()) if begin else square
        x = product(_factor(square, steps[begin:end], product), x)
        begin = end
    return wide(x)


def _factor(square: Array, steps: Array, product: Any) -> Array:
    """The symmetric matrix by which these steps multiply x, if `square` is x xᵀ."""
    total: Any = None
    for i, (a, b, c) in enumerate(steps):
        most = b * wide(square) + c * wide(product(square, square))
        factor = most + a * jnp.eye(square.shape[0], dtype=most.dtype)
        total = factor if total is None else a * total + wide(product(most, total))
        if i < len(steps) - 1:
            square = product(product(factor, square), factor)
    return total


def _phases(count: int, factors: Factors = HIGHEST) -> list[int]:
    """The steps before which x xᵀ is calculated anew, since it loses digits: 2, then each third.

    Rounding gives it eigenvalues below 0, and a step multiplies these by a², up to 69. In float32
    three steps in a row are safe. In half precision the errors come near -1 in two steps, and the
    third polynomial would make them grow without end. So there it is each second step.
    """
    return [*range(2, count, 2 if rough(factors) else 3), count]


def operations(rows: int, columns: int, count: int, factors: Factors = HIGHEST) -> tuple[int, int]:
    """The multiplications and additions of the plain steps, and of those on the Gram matrix."""
    plain = count * (4 * rows**2 * columns + 2 * rows**3)
    lengths = _lengths(count, factors)
    return plain, sum(4 * rows**2 * columns + (8 * k - 6) * rows**3 for k in lengths)


def _lengths(count: int, factors: Factors) -> list[int]:
    ends = _phases(count, factors)
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def costs(rows: int, columns: int, count: int, factors: Factors = HIGHEST) -> tuple[int, int]:
    """The costs, in operations, of the plain steps and of those on the Gram matrix.

    With narrow factors, reading or writing an element takes as long as some hundred operations,
    and the Gram matrix needs many sums and products of its own. So there the elements count, too.
    """
    if not rough(factors):
        return operations(rows, columns, count)
    moved = [
        sum(4 * rows * columns + (18 * k - 10) * rows**2 for k in lengths)
        for lengths in ([1] * count, _lengths(count, factors))
    ]
    plain, by_gram = operations(rows, columns, count, factors)
    return plain + WAIT * moved[0], by_gram + WAIT * moved[1]


@jax.custom_jvp
def exact(x: Array) -> Array:
    """The polar factor by singular value decomposition; singular values of zero stay zero.

    For matrices with no more rows than columns it has a derivative, also where singular values are
    equal and their vectors have none. Along singular values of zero the derivative is 0.
    """
    u, _, nonzero, vh = _singular(x)
    return _product(u * nonzero[..., None, :].astype(u.dtype), vh)


@exact.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    u, s, nonzero, vh = _singular(x)
    dx = dx / magnitude(x)
    inside = _product(_product(u.mT.conj(), dx), vh.mT.conj())
    outside = _product(u.mT.conj(), dx) - _product(inside, vh)
    both = nonzero[..., None, :] & nonzero[..., None]
    turns = (inside - inside.mT.conj()) / jnp.where(both, s[..., None, :] + s[..., None], 1.0)
    pulls = jnp.where(nonzero, 1 / jnp.where(nonzero, s, 1.0), 0.0)[..., None] * outside
    return exact(x), _product(u, _product(jnp.where(both, turns, 0.0), vh) + pulls)


def _singular(x: Array) -> tuple[Array, Array, Array, Array]:
    """The singular values and vectors of x / magnitude(x), and which values are not zero."""
    u, s, vh = decompositions.svd(x / magnitude(x))
    return u, s, s > s[..., :1] * max(x.shape) * jnp.finfo(s.dtype).eps, vh


_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def magnitude(x: Array) -> Array:
    """A power of two near the largest element; 1 if that is zero or not finite.

    For dividing a matrix whose squares would over- or underflow.
    """
    largest = jnp.max(jnp.abs(x), initial=0.0)
    info = jnp.finfo(largest.dtype)
    exponent = jnp.clip(jnp.frexp(largest)[1], info.minexp + 1, -info.minexp)
    usable = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(usable, jnp.ldexp(jnp.ones_like(largest), exponent), 1.0)


def bounded(x: Array) -> Array:
    """Divides the matrix by a power of two if its third powers would overflow.

    For a gradient whose products are kept. An infinity in a product of matrices would be NaN for
    ever, so a far too large gradient is shrunk until its products are finite.
    """
    size = magnitude(x)
    return x / jnp.maximum(size / 2.0 ** (jnp.finfo(x.dtype).maxexp // 3), 1.0)


def norm(x: Array) -> Array:
    """The Frobenius norm, without overflow or underflow of the squares."""
    scale = magnitude(x)
    return scale * _root_of_squares(x / scale)


def _root_of_squares(x: Array) -> Array:
    return sqrt(jnp.sum(jnp.abs(x) ** 2))


def normalised(
    x: Array, preconditioning: str, eps: Any, factors: Factors = HIGHEST
) -> tuple[Array, Array | None]:
    """Scales the matrix to singular values of at most 1; returns x xᵀ, too, if that needed it.

    `preconditioning` is one of `NORMALISATIONS`.
    """
    scale, whole = magnitude(x), x
    x = x / scale
    if preconditioning in ("frobenius", "spectral"):
        spectral = preconditioning == "spectral"  # LAPACK scales this one itself
        size = (
            decompositions.largest_singular_value(whole) / scale
            if spectral
            else _root_of_squares(x)
        )
        size = size + eps / scale
        return x / jnp.where(size > 0, size, 1.0), None
    size = _root_of_squares(x)  # so that the squares of small gradients are not less than eps
    x = x / jnp.where(size > 0, size, 1.0)
    square = wide(times(factors, x, x.mT.conj()))
    rows = jnp.sum(jnp.abs(square), axis=-1)
    size = rows if preconditioning == "aol" else _root_of_squares(square)[None]
    size = jnp.maximum(size, eps)
    scale = jnp.where(size > 0, rsqrt(size), 0.0)[:, None]
    return x * scale, square * scale * scale.mT


NORMALISATIONS = ("frobenius", "spectral", "aol", "schatten")
