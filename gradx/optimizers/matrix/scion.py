"""Scion: every parameter moves towards the border of a ball, in a norm that fits its layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain, wide_throughout
from gradx.combinators.partition import partition
from gradx.core import Params, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.leafwise import leafwise
from gradx.lift.matrices import Matrix, MatrixAxes, check_paths, is_axes, matrices
from gradx.lift.matrix_names import Judgement, judged
from gradx.lift.sharing import Sharing
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers.paths import ByPath
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.matrix.orthogonal import Normalisation, NSCoefficients, orthogonalise, signs
from gradx.pieces.momentum import averaging, momentum_of, remembered
from gradx.pieces.norms import by_factor
from gradx.pieces.scaling import descend
from gradx.pieces.weight_decay import add_decayed_weights

__all__ = ["ScionState", "scale_by_scion", "scion"]

ScionNorm = Literal["auto", "spectral", "spectral_max", "spectral_conv", "sign", "rms"]


class ScionState(NamedTuple):
    """The state of Scion's average; the state of the polar factor follows it.

    Attributes:
      mu: the average of gradients, like the parameters; with `b3` two averages, as `Averages`.
    """

    mu: Updates


# ---------------------------------------------------------------- the norm of each leaf


@dataclass(frozen=True, eq=False)
class _Norms:
    """Which norm each leaf has, and which of its axes are the rows and columns."""

    norms: Any
    axes: Any
    where: str

    def check(self, params: Params) -> None:
        for choice in (self.norms, self.axes):
            check_paths(choice, gtree.flatten(params), self.where)

    def of(self, tree: Any) -> list[tuple[str, Any]]:
        """The name of each leaf's norm, and its axes: None for a norm without matrices."""
        flat = gtree.flatten(tree)
        norms = _at_leaves(self.norms, flat, f"{self.where}: norms", _is_name)
        axes = _at_leaves(self.axes, flat, f"{self.where}: axes", is_axes)
        chosen: list[tuple[str, Any]] = []
        columns = flat.paths, flat.values, judged(tree), norms, axes
        for path, x, judgement, norm, own_axes in zip(*columns, strict=True):
            if x is None:
                chosen.append(("rms", None))
                continue
            shape, usual = jnp.shape(x), judgement.axes
            by_name = _by_name(judgement)
            norm = by_name if norm in (None, "auto") else norm
            if not isinstance(norm, str) or norm not in _FACTORS:
                raise ValueError(
                    f"{self.where}: norms must be one of {['auto', *_FACTORS]} for each leaf; at "
                    f"{path!r} it is {core.show(norm)}."
                )
            if norm == "rms" and own_axes is not None and not is_axes(self.axes):
                raise ValueError(
                    f"{self.where}: the norm at {path!r} is 'rms', for which axes make no "
                    f"difference. Give it another one in norms ('sign' for a table that is a head "
                    f"as well), or None in axes."
                )
            if norm == "spectral_conv" and by_name != norm:
                usual = MatrixAxes(tuple(range(len(shape) - 1)), -1)
            seen_as = own_axes or usual or MatrixAxes(-2, -1)
            chosen.append((norm, None if norm == "rms" else seen_as))
        return chosen

    def labels(self, label_of: Mapping[str, str]) -> Callable[[Any], Any]:
        return lambda tree: gtree.flatten(tree).unflatten([label_of[n] for n, _ in self.of(tree)])

    def matrix_axes(self, tree: Any) -> Any:
        return gtree.flatten(tree).unflatten([axes for _, axes in self.of(tree)])


def _at_leaves(choice: Any, flat: gtree.Flat, what: str, is_leaf: Callable[[Any], bool]) -> Any:
    if isinstance(choice, ByPath):  # checked at `init`
        return [choice.pick(path) for path in flat.paths]
    tree = choice(flat.tree) if callable(choice) else choice
    return gtree.broadcast(tree, flat.tree, what, lambda x: x is None or is_leaf(x))


def _is_name(x: Any) -> bool:
    return isinstance(x, str)


def _by_name(judgement: Judgement) -> str:
    named = {"a head": "sign", "a convolution": "spectral_conv"}
    return named.get(judgement.why, "rms" if judgement.axes is None else "spectral")


def _of_window(m: Matrix, shape: tuple[int, ...]) -> float:
    channels = shape[m.row_axes[-1]]
    return math.sqrt(m.columns / max(channels, 1)) * channels / max(m.rows, 1)


# The factor of the polar factor, of the signs or of the normalised vectors, for each norm.
_FACTORS: dict[str, Callable[[Any, tuple[int, ...]], float]] = {
    "spectral": lambda m, shape: math.sqrt(m.columns / max(m.rows, 1)),
    "spectral_max": lambda m, shape: math.sqrt(max(1.0, m.columns / max(m.rows, 1))),
    "spectral_conv": _of_window,
    "sign": lambda m, shape: 1 / max(m.rows, 1),
    "rms": lambda m, shape: 1.0,
}
_HEAD_OR_BODY = {norm: "head" if norm == "sign" else "body" for norm in _FACTORS}
_MATRIX_OR_VECTORS = {norm: "vectors" if norm == "rms" else "matrices" for norm in _FACTORS}


def _by_size(norms: _Norms) -> Transform:
    """Multiplies each leaf by the factor of its norm and shape."""

    def facts(leaves: gtree.Flat, extra: Any) -> list[Mapping[str, Any] | None]:
        if extra is None:
            norms.check(leaves.tree)
            return [None] * len(leaves.values)
        seen = matrices(norms.matrix_axes, leaves, norms.where, "axes", stacked=True)
        columns = norms.of(leaves.tree), seen, leaves.values
        return [
            None if x is None else {"factor": float(_FACTORS[norm](m, jnp.shape(x)))}
            for (norm, _), m, x in zip(*columns, strict=True)
        ]

    return leafwise(by_factor, facts=facts)


# ---------------------------------------------------------------- the step


@core.recorded
def scale_by_scion(
    momentum: Annotated[Hyper, Number("(0, 1]", r"\gamma")] = 0.1,
    ns_coeffs: NSCoefficients = "standard",
    ns_steps: int = 5,
    eps: Hyper = 1e-8,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    norms: Any = None,
    radius: Annotated[Hyper, Number("[0, inf)", r"\rho")] = 50.0,
    head_radius: Annotated[Hyper, Number("[0, inf)", r"\rho")] = 3000.0,
    preconditioning: Normalisation = "frobenius",
    axes: Any = None,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Replaces the average of gradients by the farthest point along it in the ball of a norm.

    .. math::
        \mu &\leftarrow (1 - \gamma) \mu + \gamma G, \qquad
            u = \rho \operatorname{argmax}_{\lVert X \rVert \le 1} \langle \mu, X \rangle \\
        \text{spectral:} \quad u &= \rho \sqrt{n / m}\; U V^\top, \qquad \mu = U S V^\top \\
        \text{sign:} \quad u &= \rho \operatorname{sign}(\mu) / m, \qquad
        \text{rms:} \quad u = \rho\, \mu / \operatorname{RMS}(\mu)

    for a matrix of \(m\) rows (inputs) and \(n\) columns (outputs). The root mean square is taken
    along the last axis: in a table of embeddings, for each row.

    Args:
      momentum: the weight of the newest gradient: 1 minus the usual momentum, so 0.1 here is 0.9
        elsewhere.
      eps: a small number added to the norms.
      norms: the norm of each leaf: ``"spectral"``, ``"spectral_max"`` (with \(\max(1, \sqrt{n /
        m})\), for the layer that reads images), ``"spectral_conv"`` (with \(\sqrt{n / c} / k\) for
        \(c\) channels and a window of \(k\) points), ``"sign"``, ``"rms"`` or ``"auto"``. Give one
        name, a tree of them, a prefix of it, a function that makes one from the parameters, or
        `by_path`. By default ``"auto"``, which goes by names as `matrices_by_name` does: heads have
        ``"sign"``, embeddings, biases and norms ``"rms"``, matrices ``"spectral"``.
      radius: the radius for all norms but ``"sign"``.
      head_radius: the radius for ``"sign"``.
      axes: which axes are the rows and columns, as for `muon`; None at a leaf goes by its name.
        Give a table that is both embedding and head ``MatrixAxes(rows=1, columns=0)``, and
        ``"sign"`` in `norms`: by its name it has ``"rms"``, which has no axes.

    Raises:
      ValueError: a number out of range, an unknown name; at `init`, a leaf that does not fit its
        norm, with its path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_scion(ns_coeffs="exact", radius=1.0, head_radius=1.0)
      >>> g = {"mlp": 3 * jnp.eye(2), "head": jnp.full((2, 2), -3.0), "bias": jnp.full(2, 3.0)}
      >>> u, state = tx.update(g, tx.init(g))
      >>> u["mlp"]
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
      >>> u["head"]
      Array([[-0.5, -0.5],
             [-0.5, -0.5]], dtype=float32)
      >>> u["bias"]
      Array([1., 1.], dtype=float32)

    Reference: Pethick et al., *Training deep learning models with norm-constrained LMOs*,
    https://arxiv.org/abs/2502.07529, where matrices are (outputs, inputs) and ``"rms"`` is the
    norm of columns. The radii are those of the authors' nanoGPT,
    https://github.com/LIONS-EPFL/scion.
    """
    chosen = _Norms(norms, axes, core.where())
    polar_factor = orthogonalise(
        ns_coeffs,
        ns_steps,
        eps,
        preconditioning,
        axes=chosen.matrix_axes,
        axes_name="axes",
        dtype=dtype,
        gram=gram,
        chunk=chunk,
        share=share,
    )
    vectors = leafwise(_by_rms, hypers={"eps": eps})
    body = chain(
        partition(
            {"matrices": polar_factor, "vectors": vectors},
            chosen.labels(_MATRIX_OR_VECTORS),
            optional=True,
        ),
        _times("radius", radius),
    )
    head = chain(leafwise(signs), _times("head_radius", head_radius))
    return wide_throughout(
        chain(
            averaging(
                _averaged,
                ScionState,
                {"momentum": momentum},
                b3,
                alpha,
                mu_dtype,
                per_step=_decay,
            ),
            partition({"body": body, "head": head}, chosen.labels(_HEAD_OR_BODY), optional=True),
            _by_size(chosen),
        )
    )


def _averaged(g: Array, s: ScionState, p: None, h: Numbers) -> tuple[Array, ScionState]:
    mu = remembered(s.mu, g, h)
    return momentum_of(mu, h), s._replace(mu=mu)


def _decay(h: Numbers, t: Any) -> Mapping[str, Any]:
    return {"b1": 1 - h.momentum}


def _by_rms(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    vectors = jnp.atleast_1d(g)  # a bias, or the rows of a table
    mean = jnp.sum(abs_sq(vectors), axis=-1, keepdims=True) / max(vectors.shape[-1], 1)
    size = sqrt(mean).reshape(g.shape[:-1] + (1,) * min(g.ndim, 1)) + h.eps
    return g * jnp.where(size > 0, 1 / size, 0.0), s


def _times(name: str, number: Hyper) -> Transform:
    return leafwise(_by_number, hypers={name: number}, flags={"name": name})


def _by_number(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return getattr(h, h.name) * g, s


@core.recorded
def scion(
    learning_rate: Hyper,
    momentum: Annotated[Hyper, Number("(0, 1]", r"\gamma")] = 0.1,
    ns_coeffs: NSCoefficients = "standard",
    ns_steps: int = 5,
    eps: Hyper = 1e-8,
    mu_dtype: Any = None,
    *,
    b3: Hyper | None = None,
    alpha: Hyper | None = None,
    norms: Any = None,
    radius: Hyper = 50.0,
    head_radius: Hyper = 3000.0,
    unconstrained: bool = False,
    preconditioning: Normalisation = "frobenius",
    axes: Any = None,
    dtype: Any = None,
    gram: bool | None = None,
    chunk: int | None = None,
    share: Sharing = None,
) -> Transform:
    r"""Scion: a conditional gradient method, with a norm for each kind of layer and without Adam.

    .. math:: \theta \leftarrow (1 - \eta_t)\, \theta - \eta_t u

    with \(u\) of `scale_by_scion`. Parameters that begin inside the balls of the radii \(\rho\)
    never leave them. `unconstrained` leaves out the factor \(1 - \eta_t\).

    Args:
      learning_rate: More than 1 overshoots. Choose it with the radii: the authors begin with
        \(2^{-12}\) and the radii 50 and 3000, the defaults, for a GPT; with \(2^{-6}\), 1 and
        \(2^{10}\) for an MLP (``"spectral_max"`` for its first layer); and with \(2^{-4}\), 8 and
        128 for a CNN (and `momentum` 0.5).
      momentum: the weight of the newest gradient: 1 minus the usual momentum, so 0.1 here is 0.9
        elsewhere.
      b3, alpha, norms, radius, head_radius: see `scale_by_scion`.
      unconstrained: whether to leave out the decay towards zero.

    Raises:
      ValueError: a number out of range, an unknown name; at `init`, a leaf that does not fit its
        norm, with its path; `update` is called without the parameters, unless `unconstrained`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scion(0.1, ns_coeffs="exact", radius=2.0)
      >>> params = {"mlp": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> grads = {"mlp": 9 * jnp.eye(2), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["mlp"]
      Array([[-0.3, -0. ],
             [-0. , -0.3]], dtype=float32)
      >>> updates["bias"]
      Array([-0.2, -0.2], dtype=float32)

    Reference: Pethick et al., *Training deep learning models with norm-constrained LMOs*,
    https://arxiv.org/abs/2502.07529.
    """
    rule = scale_by_scion(
        momentum,
        ns_coeffs,
        ns_steps,
        eps,
        mu_dtype,
        b3=b3,
        alpha=alpha,
        norms=norms,
        radius=radius,
        head_radius=head_radius,
        preconditioning=preconditioning,
        axes=axes,
        dtype=dtype,
        gram=gram,
        chunk=chunk,
        share=share,
    )
    towards_zero = [] if unconstrained else [add_decayed_weights(1.0)]
    return wide_throughout(chain(rule, *towards_zero, descend(learning_rate)))
