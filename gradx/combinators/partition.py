"""Transformations by parameter: on some leaves only, or a different one for each group of leaves.

The leaves are chosen by a tree of marks or a prefix of it, by a function that makes one, or by
`by_path`. A set of groups is itself a stage (see `gradx.lift.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import MaskedNode

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Params, Part, State, Transform
from gradx.core import trees as gtree
from gradx.lift.around import Around, Given
from gradx.lift.masks import marks, mask_flags
from gradx.lift.passes import staged
from gradx.lift.rule import Rule
from gradx.lift.sequence import NO_OLD_STATE, InSequence, stage_of
from gradx.lift.stages import (
    LeafState,
    Leaves,
    Numbers,
    Stage,
    is_array,
)
from gradx.lift.states import check_state
from gradx.numbers import hyper
from gradx.numbers.paths import check_optional
from gradx.numbers.sources import Array

__all__ = ["MaskedState", "PartitionState", "freeze", "masked", "partition", "set_to_zero"]


class MaskedState(NamedTuple):
    """The state of `masked`: that of the inner transformation, for the chosen leaves.

    Attributes:
      inner_state: the inner state; `MaskedNode()` stands for the leaves that are left out.
    """

    inner_state: Any


class PartitionState(NamedTuple):
    """The state of `partition`.

    Attributes:
      inner_states: label to `MaskedState`.
    """

    inner_states: Mapping[Hashable, Any]


def hide(tree: Any, chosen: Sequence[bool]) -> Any:
    """The tree with an empty `MaskedNode` at each leaf that is not chosen."""
    flat = gtree.flatten(tree)
    values = [x if c else MaskedNode() for x, c in zip(flat.values, chosen, strict=True)]
    return flat.unflatten(values)


def _visible(params: Params, mask: Any, where: str) -> Params:
    if not gtree.flatten(params).values:
        return params  # optax.tree_utils.tree_map_params asks with a placeholder without leaves
    return hide(params, mask_flags(mask, params, where))


def _hidden(inner: Stage, mask: Any, where: str, extra_too: bool) -> Around:
    """A stage that sees the leaves of the mask only, with `extra_too` in extra arguments too."""

    def init(params: Params) -> State:
        return MaskedState(inner.init(_visible(params, mask, where)))

    def enter(leaves: Leaves, state: State, extra: Mapping[str, Any]) -> Given:
        check_state(state, MaskedState, where)
        # A mask inside a mask is not asked about the leaves that the outer one hides.
        flags = mask_flags(mask, leaves.tree, where)
        if extra_too:
            same: Any = jax.tree.structure(leaves.tree)
            extra = {
                k: hide(v, flags) if jax.tree.structure(v) == same else v for k, v in extra.items()
            }
        return leaves.only(flags), state.inner_state, extra

    return Around(inner, init, enter, leave=lambda new, old: type(old)(new))


@core.recorded
def masked(inner: Contract, mask: Any, *, mask_compatible_extra_args: bool = False) -> Transform:
    r"""Applies a transformation to some leaves, and passes the others on as they are.

    .. math:: u_i = T(g)_i \text{ where } m_i, \qquad u_i = g_i \text{ elsewhere}

    To keep leaves from training use `freeze`. Leaves that `masked` leaves out stay raw gradients.

    Args:
      inner: the transformation; it has state for the chosen leaves only.
      mask: a tree of bools like the parameters, or a prefix of it; a function that makes one from
        the parameters (or updates); or `by_path` with bools. It must be known before the run.
      mask_compatible_extra_args: hide the same leaves in extra arguments that are trees like the
        updates.

    Returns:
      A transformation with a `MaskedState`.

    Raises:
      ValueError: `inner` is not a transformation; the mask does not fit, or is not a tree of bools.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.masked(gradx.scale(2.0), gradx.by_path({"w": True}, default=False))
      >>> grads = {"w": jnp.ones(1), "b": jnp.ones(1)}
      >>> tx.update(grads, tx.init(grads))[0]
      {'b': Array([1.], dtype=float32), 'w': Array([2.], dtype=float32)}
    """
    where = core.where()
    if not core.is_transform(inner):
        raise ValueError(f"{where}: inner must be a transformation, got {core.show(inner)}.")

    def described(params: Params, state: State) -> list[Part]:
        return [Part("", inner, _visible(params, mask, where), state.inner_state)]

    stage = _hidden(stage_of(inner), mask, where, mask_compatible_extra_args)
    return staged(stage, where, described)


@core.recorded
def partition(
    transforms: Mapping[Hashable, Contract],
    param_labels: Any,
    *,
    mask_compatible_extra_args: bool = False,
    optional: bool | Collection[Hashable] = False,
) -> Transform:
    r"""Gives each leaf to the transformation with its label: an optimizer for each group of leaves.

    .. math:: u_i = T_{\ell(i)}(g)_i

    Args:
      transforms: label to transformation. Each sees its own leaves only: a global norm inside is
        the norm of the group.
      param_labels: a tree of labels like the parameters, or a prefix of it; a function that makes
        one from the parameters; or `by_path` with labels.
      mask_compatible_extra_args: see `masked`.
      optional: labels that may have no leaf, or True for all. Optax accepts them silently.

    Returns:
      A transformation with a `PartitionState`.

    Raises:
      ValueError: at `init`, a leaf has a label without a transformation, or a label has no leaf.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.partition(
      ...     {"fast": gradx.sgd(1.0), "slow": gradx.sgd(0.1)},
      ...     gradx.by_path({"head": "fast"}, default="slow"),
      ... )
      >>> params = {"body": jnp.ones(1), "head": jnp.ones(1)}
      >>> tx.update(params, tx.init(params), params)[0]
      {'body': Array([-0.1], dtype=float32), 'head': Array([-1.], dtype=float32)}
    """
    where = core.where()
    _check_labels(transforms, optional, where)
    for label, tx in transforms.items():
        if not core.is_transform(tx):
            raise ValueError(f"{where}: {label!r} has no transformation, got {core.show(tx)}.")

    def mask_of(label: Hashable) -> Callable[[Any], Any]:
        def mask(tree: Any) -> Any:
            flat = gtree.flatten(tree)
            labels = marks(param_labels, tree, f"{where}: param_labels")
            return flat.unflatten([found == label for found in labels])

        return mask

    def check(params: Params) -> None:
        flat = gtree.flatten(params)
        if not flat.values:
            return
        labels = marks(param_labels, params, f"{where}: param_labels")
        for i, label in enumerate(labels):
            if is_array(flat.values[i]) and label not in transforms:
                raise ValueError(
                    f"{where}: the leaf {flat.paths[i]!r} has the label {label!r}, for which there "
                    f"is no transformation; there are {list(transforms)}."
                )
        for label in transforms:
            may_idle = optional if isinstance(optional, bool) else label in optional
            if label not in labels and not may_idle:
                raise ValueError(
                    f"{where}: no leaf has the label {label!r}; the labels are "
                    f"{sorted(set(labels), key=str)}. If that is meant, say optional=[{label!r}]."
                )

    def described(params: Params, state: State) -> list[Part]:
        states = state.inner_states
        return [
            Part(str(k), tx, _visible(params, mask_of(k), where), states[k].inner_state)
            for k, tx in transforms.items()
        ]

    def unpack(state: State) -> list[State]:
        check_state(state, PartitionState, where, transforms)
        return [state.inner_states[label] for label in transforms]

    def pack(states: Sequence[State], old: State) -> State:
        state_class = PartitionState if old is NO_OLD_STATE else type(old)
        return state_class(dict(zip(transforms, states, strict=True)))

    groups = [
        _hidden(stage_of(tx), mask_of(label), where, mask_compatible_extra_args)
        for label, tx in transforms.items()
    ]
    return staged(
        InSequence(groups, pack, unpack, where, check=check, side_by_side=True), where, described
    )


def _check_labels(transforms: Any, optional: bool | Collection[Hashable], where: str) -> None:
    if not isinstance(transforms, Mapping):
        raise ValueError(
            f"{where}: transforms must be a dict {{label: transformation}}, got "
            f"{core.show(transforms)}."
        )
    try:
        sorted(transforms)
    except TypeError as error:
        raise ValueError(
            f"{where}: the labels {list(transforms)} must be of one kind, since JAX sorts them."
        ) from error
    check_optional(optional, transforms, where)


# ---------------------------------------------------------------- zero


@core.recorded
def set_to_zero() -> Transform:
    r"""Replaces every update by zero, so that the parameters do not train.

    .. math:: u = 0

    Leaves may be of any kind. Those that are not numbers (a random key, a `float0` gradient) stay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.set_to_zero()
      >>> tx.update(jnp.array([jnp.nan]), tx.init(jnp.ones(1)))[0]
      Array([0.], dtype=float32)
    """
    where = core.where()
    # It takes any leaf, as it optimizes none; one without a zero (a key, a text) stays as it is.
    rule = Rule(update=_zero, hypers=hyper.Hypers({}, where), any_kind=True, where=where)
    return staged(rule, where)


def _zero(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    # zeros_like(g) alone does not depend on g, so jit would make it without the sharding of g.
    return jnp.where(jnp.zeros_like(g, bool), g, jnp.zeros_like(g)), s


@core.recorded
def freeze(mask: Any, inner: Contract | None = None) -> Transform:
    r"""Keeps some leaves from training.

    .. math:: u_i = 0 \text{ where } m_i, \qquad u_i = T(g)_i \text{ elsewhere}

    Args:
      mask: True for the leaves to freeze: a tree of bools or a prefix of it, a function that makes
        one, or `by_path`.
      inner: the transformation of the other leaves. The frozen ones do not exist for it: it has no
        state for them, and they have no share in its norms. Without it, as in Optax, the updates of
        the frozen leaves are zeroed at this place in the chain: place it last, since later parts
        (weight decay, momentum) would move them again.

    Raises:
      ValueError: the mask does not fit, or is not a tree of bools.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.freeze(gradx.by_path({"backbone": True}, default=False), gradx.sgd(0.5))
      >>> params = {"backbone": jnp.ones(1), "head": jnp.ones(1)}
      >>> tx.update(params, tx.init(params), params)[0]
      {'backbone': Array([0.], dtype=float32), 'head': Array([-0.5], dtype=float32)}
    """
    if inner is None:
        return masked(set_to_zero(), mask)
    where = core.where()

    def labels(tree: Any) -> Any:
        flat = gtree.flatten(tree)
        frozen = mask_flags(mask, tree, where)
        return flat.unflatten(["freeze" if f else "train" for f in frozen])

    return partition({"train": inner, "freeze": set_to_zero()}, labels, optional=True)
