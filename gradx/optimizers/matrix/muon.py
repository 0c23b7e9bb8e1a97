"""Muon: orthogonalised momentum for matrices."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.lift.sequence import joined
from gradx.lift.sharing import Sharing
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adam import scale_by_adam
from gradx.optimizers.matrix.fallback import or_by_name, with_fallback
from gradx.optimizers.matrix.orthogonal import (
    Convention,
    Normalisation,
    NSCoefficients,
    momentum,
    orthogonalise,
    scale_by_shape,
)
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["MuonDimensionNumbers", "MuonState", "muon", "scale_by_muon"]

_KELLER = (3.4445, -4.7750, 2.0315)


@core.registered
class MuonDimensionNumbers(NamedTuple):
    """Which axes of a leaf form a matrix, under Optax's names; `MatrixAxes` can say more.

    Attributes:
      reduction_axis: the axis or axes of the inputs.
      output_axis: the axis or axes of the outputs. An axis that is in neither counts the matrices
        of a stack.
    """

    reduction_axis: int | tuple[int, ...] = 0
    output_axis: int | tuple[int, ...] = 1


class MuonState(NamedTuple):
    """The state of Muon.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters; with `b3` two averages, as `Averages`.
      ns_coeffs: the coefficients of the polynomials, float32 (3,) or (steps, 3).
    """

    count: Count
    mu: Updates
    ns_coeffs: Array


@core.recorded
def scale_by_muon(
    ns_coeffs: NSCoefficients = _KELLER,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Normalisation = "frobenius",
    weight_dimension_numbers: Any = None,
    bias_correction: bool = True,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Replaces each matrix by the polar factor of its momentum.

    .. math::
        M &\leftarrow \beta M + (1 - \beta) G \\
        U V^\top &\approx p_k(\ldots p_1(N / (\lVert N \rVert_F + \epsilon))), \qquad
            N = U S V^\top, \qquad p_i(X) = a_i X + (b_i X X^\top + c_i (X X^\top)^2) X

    where \(N\) is \(M\), or \((1 - \beta) G + \beta M\) with `nesterov`, both corrected for the
    start at zero.

    Args:
      ns_coeffs: \((a, b, c)\) for all steps, a sequence with three numbers for each step, or a
        name: ``"standard"`` (Jordan's), ``"dion"`` (You's), ``"polar_express"``,
        ``"polar_express_safe"``, ``"modded_nanogpt"``, ``"cans"``, ``"cubic"``, ``"deepseek"``, and
        ``"exact"`` for singular values. `gradx.linalg.polar.NS_PRESETS` has their numbers.
      ns_steps: how many steps, from 1 on. If there are coefficients for each step (or ``"dion"``),
        the last `ns_steps` of them are used. The other names but ``"standard"`` fix their number:
        leave the default, or give that number.
      b3: With it the state also has a slow average \(M_2\) of the gradients, as in AdEMAMix, and
        \(N + \alpha M_2\) takes the place of \(N\). It is meant to fill slowly, so it is not
        corrected for its start, and does not look ahead. The state's `mu` is then `Averages` of two
        trees.
      alpha: It should grow in the first part of a long run, and so should `b3` (see
        `half_life_schedule`).
      adaptive: multiply by \(\langle N, U V^\top \rangle\), so that the step grows with the
        gradient.
      preconditioning: what \(N\) is divided by: its ``"frobenius"`` or ``"spectral"`` norm; or,
        from the product of the first step, the row sums of \(|N N^\top|\) (``"aol"``) or the
        Frobenius norm of \(N N^\top\) (``"schatten"``). These two leave larger singular values to
        begin with.
      weight_dimension_numbers: which axes are the rows and columns: a `MatrixAxes` (or Optax's
        `MuonDimensionNumbers`), a tree of them, a function that makes one from the parameters, or
        `by_path`. Without it every leaf must have two axes.
      bias_correction: whether \(N\) is corrected for the start at zero; False is Jordan's own form.
      dtype: the dtype that matrices are multiplied in, with sums in float32 or wider; or a
        precision, ``"highest"``, ``"high"`` or ``"default"`` (see `jax.lax.Precision`), which
        leaves their dtype as it is. By default bfloat16 on accelerators, as in all published Muons,
        and ``"highest"`` on CPUs and for matrices that are not float32. Singular values stay within
        1% of the range that the coefficients promise; with `gram` in bfloat16, 10%.
      gram: whether the steps work on the Gram matrix \(N N^\top\); by default where this takes
        fewer operations, for five steps from about \(n = 1.5 m\) on. Where products are narrow,
        reads and writes count, too: then from \(1.6 m\) on for large matrices, and \(2.4 m\) for
        small ones.

    Raises:
      ValueError: a number out of range, an unknown preset; at `init`, a leaf that is not a matrix,
        with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_muon("exact")
      >>> g = jnp.array([[3.0, 0.0], [0.0, -0.1]])
      >>> tx.update(g, tx.init(g))[0]
      Array([[ 1.,  0.],
             [ 0., -1.]], dtype=float32)

    Reference: Jordan, *Muon*, https://kellerjordan.github.io/posts/muon/; Amsel et al., *The Polar
    Express*, https://arxiv.org/abs/2505.16932; Grishina et al., *CANS*,
    https://arxiv.org/abs/2506.10935; Boissin et al., *Turbo-Muon*,
    https://arxiv.org/abs/2512.04632. As in Optax, and unlike Jordan's, the average is corrected for
    its start. Deviations from Optax: matrices are multiplied in `dtype`, where Optax has the
    gradient's dtype and JAX's default precision; with stacked matrices `adaptive` has one number
    for each.
    """
    return joined(
        MuonState,
        momentum(beta, b3, alpha, mu_dtype, nesterov, bias_correction),
        orthogonalise(
            ns_coeffs,
            ns_steps,
            eps,
            preconditioning,
            adaptive=adaptive,
            axes=weight_dimension_numbers,
            dtype=dtype,
            gram=gram,
            chunk=chunk,
            share=share,
        ),
    )


@core.recorded
def muon(
    learning_rate: Hyper,
    ns_coeffs: NSCoefficients = _KELLER,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Normalisation = "frobenius",
    adam_b1: Annotated[Hyper, Number("[0, 1)")] = 0.9,
    adam_b2: Annotated[Hyper, Number("[0, 1)")] = 0.999,
    adam_eps_root: Annotated[Hyper, Number("[0, inf)")] = 0.0,
    adam_weight_decay: Annotated[Hyper, Number("[0, inf)")] = 0.0,
    adam_learning_rate: Annotated[Hyper | None, Number("[0, inf)")] = None,
    muon_weight_dimension_numbers: Any = None,
    consistent_rms: float | None = None,
    adam_nesterov: bool = False,
    convention: Convention | None = None,
    decay: DecayKind = "learning_rate",
    fallback: Contract | None = None,
    bias_correction: bool = True,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Muon: orthogonalised momentum for the matrices, and Adam for all other leaves.

    .. math:: u = -\eta_t \left(s(m, n)\, U V^\top + \lambda \theta\right)

    with the polar factor of `scale_by_muon` and the factor of `scale_by_shape`.

    Args:
      learning_rate: Jordan begins with 0.02.
      weight_decay: how strongly the matrices are drawn to zero.
      adam_b1: how much of Adam's average of gradients is kept each step.
      adam_b2: how much of Adam's average of squares is kept each step.
      adam_eps_root: a small number inside Adam's root.
      adam_weight_decay: how strongly Adam's parameters are drawn to zero.
      adam_learning_rate: the step size of Adam; by default `learning_rate`.
      muon_weight_dimension_numbers: which leaves are matrices, and which axes are their rows and
        columns: as for `scale_by_muon`, with None for any other leaf. By default
        `matrices_by_name`, which leaves out embeddings, heads, norms and biases.
      consistent_rms: see `scale_by_shape`, a constant; 0.2 is Moonlight's.
      adam_nesterov: whether Adam looks ahead.
      convention: see `scale_by_shape`; by default ``"keller"``.
      fallback: It takes the place of Adam with these numbers. By default
        Adam has `learning_rate`, the betas (0.9, 0.999), eps 1e-8 and no weight decay. A rate for
        orthogonal updates, such as 0.02, is usually far too large for Adam: give an
        `adam_learning_rate`, or ``fallback=gradx.adamw(3e-3)``.
      bias_correction, dtype, gram, chunk, share: see `scale_by_muon`.

    Raises:
      ValueError: a number out of range, an unknown preset, `consistent_rms` and `convention`
        together; at `init`, axes that do not fit a leaf, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.muon(0.1, "exact")
      >>> params = {"mlp": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": 9 * jnp.eye(2), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["mlp"]
      Array([[-0.1, -0. ],
             [-0. , -0.1]], dtype=float32)
      >>> updates["bias"]
      Array([-0.1, -0.1], dtype=float32)

    Reference: Jordan, *Muon*, https://kellerjordan.github.io/posts/muon/. Deviations from Optax:
    names decide, too, which leaves are matrices. Optax takes exactly those with two axes
    (``muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda x: gradx.MatrixAxes() if
    x.ndim == 2 else None, params)``); Adam does not inherit `nesterov` (``adam_nesterov=True``).
    Jordan's Adam has the rate 3e-4, betas (0.9, 0.95) and eps 1e-10.
    """
    axes = muon_weight_dimension_numbers
    inner = or_by_name(axes)
    matrix = chain(
        scale_by_muon(
            ns_coeffs,
            ns_steps,
            beta,
            eps,
            mu_dtype,
            b3=b3,
            alpha=alpha,
            nesterov=nesterov,
            adaptive=adaptive,
            preconditioning=preconditioning,
            weight_dimension_numbers=inner,
            bias_correction=bias_correction,
            dtype=dtype,
            gram=gram,
            chunk=chunk,
            share=share,
        ),
        scale_by_shape(inner, consistent_rms, convention=convention),
        *scale_and_decay(learning_rate, weight_decay, weight_decay_mask, decay),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam = chain(
        scale_by_adam(
            adam_b1,
            adam_b2,
            eps,
            adam_eps_root,
            mu_dtype,
            nesterov=adam_nesterov,
        ),
        *scale_and_decay(rate, adam_weight_decay, None, decay),
    )
    other = adam if fallback is None else fallback
    return with_fallback("muon", matrix, "adam", other, axes, "muon_weight_dimension_numbers")
