"""GaLore: an optimizer that sees only a few directions of each matrix, so its state is small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, chain
from gradx.combinators.predicated import check_inner, gated_update
from gradx.contract import MaskedNode
from gradx.core import Count, Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.meaning import Number
from gradx.lift.matrices import Matrix, check_paths, matrices
from gradx.lift.passes import check_array, staged, widen
from gradx.lift.stages import NO_STATE, Call, LeafState, Leaves, Numbers
from gradx.lift.states import check_state, counted
from gradx.lift.tree_first import TreeFirst
from gradx.linalg import decompositions
from gradx.linalg.eigenbasis import known, rounding_of_products, squares
from gradx.lowering.conditional import rarely
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adam import scale_by_adam
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["GaLoreDimensionNumbers", "GaLoreState", "galore", "scale_by_galore"]


# ---------------------------------------------------------------- one matrix


@core.registered
class GaLoreDimensionNumbers(NamedTuple):
    """Which axes of a parameter are the rows of a matrix, and which its columns.

    Attributes:
      reduction_axis: the axis of the rows, or several.
      output_axis: the axis of the columns, or several. Each axis is one or the other.
    """

    reduction_axis: int | Sequence[int] = 0
    output_axis: int | Sequence[int] = 1


class _Low(NamedTuple):
    """How a matrix is projected. It is hashable: equal leaves share a program."""

    matrix: Matrix
    rank: int
    left: bool  # whether the rows are projected, not the columns

    @property
    def projector(self) -> tuple[int, int]:
        return (self.matrix.rows if self.left else self.matrix.columns, self.rank)

    @property
    def low(self) -> tuple[int, int]:
        rows, columns = self.matrix.rows, self.matrix.columns
        return (self.rank, columns) if self.left else (rows, self.rank)


@partial(jax.jit, static_argnums=0)  # one trace per shape and dtype, instead of one per leaf
@gtree.mixing
def _project(m: _Low, g: Array, projector: Array, renew: Array) -> tuple[Array, Array]:
    """The gradient along the projector's directions, and the projector, renewed if it is due."""
    matrix = m.matrix.flat(widen(g))
    old = widen(projector)

    def renewed() -> Array:
        directions = _directions(matrix if m.left else _adjoint(matrix), m.rank)
        return jnp.where(renew, _turned(directions, old), old)

    new = rarely(renew, renewed, lambda: old, (matrix, old)) if m.rank else old
    low = _adjoint(new) @ matrix if m.left else matrix @ new
    # Zero along directions that the gradient does not have: the base optimizer may divide by its
    # size, and turn rounding errors into large steps.
    bases = (new, new[:0, :0]) if m.left else (new[:0, :0], new)
    low = jnp.where(known(squares(low), rounding_of_products(low.dtype), *bases), low, 0)
    return low, new.astype(projector.dtype)


def _project_back(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    if h.how is None:
        return h.low, s
    u = h.projector @ h.low if h.how.left else h.low @ _adjoint(h.projector)
    return h.how.matrix.unflat(h.scale * u, g), s


def _adjoint(x: Array) -> Array:
    return x.conj().T


def _directions(x: Array, rank: int) -> Array:
    """The left singular vectors of the largest singular values, as the columns of a matrix.

    They come from the eigenvectors of the smaller Gram matrix, at a half to a quarter of the cost
    of a singular value decomposition. In float32 vectors whose singular value is below 3e-4 of the
    largest, the root of the precision, may be mixed with each other; their span is right.
    """
    largest = jnp.max(jnp.abs(x))
    x = x / jnp.where(largest > 0, largest, 1.0)  # so that squares do not over- or underflow
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    wide = x.shape[0] < x.shape[1]
    inner = product(x, _adjoint(x)) if wide else product(_adjoint(x), x)
    _, vectors = decompositions.eigh(inner)
    largest_first = vectors[:, ::-1][:, :rank]
    if wide:
        return largest_first
    # QR gives orthonormal columns even where singular values are 0; x @ vectors / values would not.
    directions: Array = decompositions.qr(product(x, largest_first))[0]
    return directions


def _turned(new: Array, old: Array) -> Array:
    """The same directions with the signs (or phases) that agree best with the old ones.

    The sign of a singular vector is arbitrary. A flip would make the moments along the old vector
    push the wrong way.
    """
    overlap = jnp.sum(old.conj() * new, axis=0, keepdims=True)
    if jnp.iscomplexobj(new):
        size = jnp.abs(overlap)
        return new * jnp.where(size > 0, overlap.conj() / jnp.where(size > 0, size, 1.0), 1.0)
    return new * jnp.where(overlap < 0, -1.0, 1.0)


# ---------------------------------------------------------------- the tree


class GaLoreState(NamedTuple):
    """The state of GaLore.

    Attributes:
      count: the updates done so far, int32 ().
      base_optimizer_state: the state of the base optimizer. For a matrix with m rows and n columns
        its arrays are (rank, n) if m >= n, else (m, rank); for other leaves they are like the
        parameter.
      projector: the directions of each matrix, (m, rank) or (n, rank); (0, 0) for other leaves.
    """

    count: Count
    base_optimizer_state: Any
    projector: Updates


@core.recorded
def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Annotated[float, Number("(0, inf)", "c")] = 1.0,
    base_optimizer: Contract | None = None,
    weight_dimension_numbers: Any = None,
    *,
    side: Literal["longer", "shorter"] = "longer",
) -> Transform:
    r"""Shows an optimizer only the largest directions of each gradient matrix, to save memory.

    .. math::
        P &\leftarrow \text{the first } r \text{ left singular vectors of } G
            \text{ in the steps } t = 1,\ 1 + k,\ 1 + 2k, \ldots \\
        U &= c\, P\, T(P^* G)

    for a matrix \(G\) with at least as many rows as columns; for others, with the right singular
    vectors, \(U = c\, T(G P) P^*\). \(T\) is the base optimizer, whose state is as small as the
    projections. It gets the other leaves unprojected, and without \(c\).

    Args:
      rank: how many directions of each matrix are kept, \(r\), a whole number from 1 on. A matrix
        that has fewer keeps all of them.
      update_proj_gap: the steps from one choice of directions to the next, \(k\), a whole number
        from 1 on.
      scale: what the updates of the matrices are multiplied by.
      base_optimizer: \(T\), gradx's or Optax's; by default `scale_by_adam()`. It gets no
        parameters.
      weight_dimension_numbers: which leaves are matrices, and which of their axes are the rows and
        the columns: one `GaLoreDimensionNumbers` for all leaves with two or more axes; a tree of
        them (or a prefix of one) with `None` for other leaves; a function that makes one; or
        `by_path`. By default the leaves with two axes.
      side: which side of a matrix is projected: the longer one as in Optax, which keeps the moments
        smallest; or the shorter one as in the paper, which keeps the projector smallest.

    Raises:
      ValueError: an argument is out of range; at `init`, dimension numbers that do not fit, with
        the path. In `update`, the base optimizer needs the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_galore(rank=1, base_optimizer=gradx.identity())
      >>> g = jnp.array([[1.0, 2.0], [2.0, 4.0]])
      >>> updates, state = tx.update(g, tx.init(g))
      >>> updates.round(4)
      Array([[1., 2.],
             [2., 4.]], dtype=float32)
      >>> state.projector.shape
      (2, 1)

    Reference: Zhao et al., *GaLore: memory-efficient LLM training by gradient low-rank projection*,
    https://arxiv.org/abs/2403.03507; \(c\) is its \(\alpha\). Singular vectors are calculated as
    eigenvectors of \(G^* G\). A new one gets the sign that agrees with the old one in its place.
    """
    where = core.where()
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(
            f"{where}: rank must be a whole number in [1, inf), got {core.show(rank)}."
        )
    gap = steps("update_proj_gap", update_proj_gap, 1)
    base = scale_by_adam() if base_optimizer is None else base_optimizer
    check_inner(base, where, "base_optimizer")
    projection = _Projection(rank, gap, scale, base, weight_dimension_numbers, side, where)

    def described(params: Params, state: State) -> list[Part]:
        has_leaves = bool(jax.tree.leaves(params))  # not if only the state is described
        seen = jax.eval_shape(projection.proxies, params) if has_leaves else params
        return [Part("base_optimizer", base, seen, state.base_optimizer_state)]

    stage = TreeFirst(projection.init, projection.prepare)
    return staged(stage, where, described)


@dataclass(frozen=True, eq=False)
class _Projection:
    """Projects all leaves, and runs the base optimizer on the projections."""

    rank: int
    gap: int
    scale: Any
    base: Contract
    numbers: Any
    side: str
    where: str

    def lows(self, flat: gtree.Flat) -> list[_Low | None]:
        """How each leaf is projected; None for one that is not."""
        found = matrices(self.numbers, flat, self.where, "weight_dimension_numbers")
        return [m and self._low(m) for m in found]

    def _low(self, matrix: Matrix) -> _Low:
        m, n = matrix.rows, matrix.columns
        return _Low(matrix, min(self.rank, m, n), m >= n if self.side == "longer" else m < n)

    def proxies(self, params: Params) -> Params:
        """Stand-ins for the parameters: zeros of the shapes that the base optimizer sees."""
        flat = gtree.flatten(params)
        pairs = zip(flat.values, self.lows(flat), strict=True)
        return flat.unflatten([None if p is None else _zeros(p, m and m.low) for p, m in pairs])

    def init(self, params: Params) -> GaLoreState:
        flat = gtree.flatten(params)
        for i, p in enumerate(flat.values):
            if p is not None:
                check_array(p, flat, i, self.where, "parameter")
        check_paths(self.numbers, flat, self.where)
        pairs = zip(flat.values, self.lows(flat), strict=True)
        projectors = flat.unflatten(
            [None if p is None else _zeros(p, m.projector if m else (0, 0)) for p, m in pairs]
        )
        base_state = self.base.init(self.proxies(params))
        return GaLoreState(jnp.zeros((), jnp.int32), base_state, projectors)

    def prepare(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any]
    ) -> tuple[list[Call | None], State]:
        """Runs the base optimizer on all projections; each leaf then projects its update back."""
        check_state(state, GaLoreState, self.where)
        flat, gate = gtree.flatten(leaves.tree), leaves.gate
        projectors = gtree.flatten_like(flat, state.projector, "the state's projector", self.where)
        lows = self.lows(flat)
        self._check(flat, projectors, lows)
        renew = state.count % self.gap == 0
        renew = renew if gate is None else renew & gate
        seen: list[Any] = list(flat.values)
        for i, (g, m) in enumerate(zip(flat.values, lows, strict=True)):
            if m is not None:
                seen[i], projectors[i] = _project(m, g, projectors[i], renew)
            elif g is not None:
                seen[i] = widen(g)
        projected = flat.unflatten(seen)
        updates, base_state = self._base(leaves, projected, state.base_optimizer_state, extra)
        updates = gtree.flatten_like(flat, updates, "the base optimizer's updates", self.where)
        active = [i for i, u in enumerate(leaves.updates) if not isinstance(u, MaskedNode)]
        constant = isinstance(self.scale, float)  # an array may come from inject_hyperparams, say
        fixed = (("scale", self.scale, ""),) if constant else ()
        scale = {} if constant else {"scale": self.scale}
        calls: list[Call | None] = [None] * len(leaves.updates)
        for i, u, p, m in zip(active, updates, projectors, lows, strict=True):
            if u is not None:
                static = (("how", m, ""), *fixed)
                traced = {"low": widen(u), "projector": widen(p), **scale}
                calls[i] = Call(_project_back, static, traced, NO_STATE, False)
        count = counted(state.count, gate)
        return calls, type(state)(count, base_state, flat.unflatten(projectors))

    def _base(
        self, leaves: Leaves, seen: Updates, state: State, extra: Mapping[str, Any]
    ) -> tuple[Updates, State]:
        gate, conditional = leaves.gate, None if leaves.conditional else False
        try:
            if gate is not None:
                arguments = seen, state, None, extra
                return gated_update(
                    self.base, self.where, gate, *arguments, conditional=conditional
                )
            return core.with_extra_args(self.base).update(seen, state, None, **extra)
        except Exception as error:
            error.add_note(
                f"This was in the base optimizer of {self.where}, which gets no parameters: for "
                f"weight decay use weight_decay of galore."
            )
            raise

    def _check(
        self, flat: gtree.Flat, projectors: Sequence[Any], lows: Sequence[_Low | None]
    ) -> None:
        for i, (g, p, m) in enumerate(zip(flat.values, projectors, lows, strict=True)):
            if g is None:
                continue
            check_array(g, flat, i, self.where, "update")
            expected = (0, 0) if m is None else m.projector
            if jnp.shape(p) != expected:
                raise ValueError(
                    f"{self.where}: at {flat.paths[i]!r} the state's projector has shape "
                    f"{jnp.shape(p)}, and an update of shape {jnp.shape(g)} needs {expected}."
                )


def _zeros(p: Any, shape: tuple[int, int] | None) -> Array:
    wide = gtree.wide(jnp.result_type(p))
    return jnp.zeros_like(p, wide) if shape is None else jnp.zeros(shape, wide)


# ---------------------------------------------------------------- the optimizer


@core.recorded
def galore(
    learning_rate: Hyper,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Annotated[float, Number("(0, inf)", "c")] = 1.0,
    base_optimizer: Contract | None = None,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    side: Literal["longer", "shorter"] = "longer",
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""GaLore: Adam, or another optimizer, on low-rank projections of gradients, to save memory.

    .. math:: U = -\eta_t \left(c\, P\, T(P^* G) + \lambda \Theta\right)

    with the projector \(P\) and the base optimizer \(T\) of `scale_by_galore`.

    Args:
      rank: how many directions of each matrix are kept, a whole number from 1 on.
      update_proj_gap: the steps from one choice of directions to the next.
      scale: what the updates of the matrices are multiplied by.
      base_optimizer: \(T\), without a learning rate and weight decay; by default `scale_by_adam()`.
      weight_dimension_numbers: which leaves are matrices (see `scale_by_galore`).
      side: which side of a matrix is projected: the longer one, or the shorter one as in the paper.

    Raises:
      ValueError: an argument is out of range; dimension numbers do not fit a leaf.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> params = {"w": jnp.ones((64, 32)), "b": jnp.ones(32)}
      >>> gradx.state_bytes(gradx.galore(0.01, rank=4).init(params))
      2312
      >>> gradx.state_bytes(gradx.adam(0.01).init(params))
      16644

    Reference: Zhao et al., *GaLore: memory-efficient LLM training by gradient low-rank
    projection*, https://arxiv.org/abs/2403.03507.
    """
    return chain(
        scale_by_galore(
            rank, update_proj_gap, scale, base_optimizer, weight_dimension_numbers, side=side
        ),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )
