"""QK-clip: shrinks queries and keys whose attention logits have grown too large."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.calls import check
from gradx.core.meaning import Number
from gradx.lift.leafwise import leafwise
from gradx.lift.matrices import axis_numbers
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers import hyper
from gradx.numbers.paths import ByPath
from gradx.numbers.sources import Array, Hyper

__all__ = ["HeadAxis", "qk_clip"]


@core.registered
class HeadAxis(NamedTuple):
    r"""Where a leaf of queries or keys has its heads, for `qk_clip`.

    Attributes:
      axis: the axis that counts the heads; several if the logits have several axes, as for stacked
        layers; or none, ``()``, if there is one logit for the leaf.
      side_by_side: whether the heads lie next to each other along `axis` (the last one), as in a
        kernel (in, heads · size). There are then as many heads as logits.
      power: the power of \(\gamma\) that multiplies the leaf: 0.5 for queries and keys; 1 for
        queries whose keys several heads share, and that are left out.

    Example:
      >>> import gradx
      >>> gradx.HeadAxis(-1, side_by_side=True)
      HeadAxis(axis=-1, side_by_side=True, power=0.5)
    """

    axis: int | tuple[int, ...] = -2
    side_by_side: bool = False
    power: float = 0.5


class _Heads(NamedTuple):
    """The checked `HeadAxis` of a leaf, with axes from 0 on."""

    axes: tuple[int, ...]
    side_by_side: bool
    power: float


def _facts(
    leaves: gtree.Flat, extra: Mapping[str, Any] | None, *, choice: Any, where: str
) -> list[Mapping[str, Any] | None]:
    """The heads of each query or key, and their logits; None for other leaves."""
    columns = leaves.paths, leaves.values, _chosen(choice, leaves, where)
    pairs = list(zip(*columns, strict=True))
    seen = [None if x is None else _checked(h, path, x, where) for path, x, h in pairs]
    if extra is None:
        paths = gtree.array_paths(leaves)
        if paths and isinstance(choice, ByPath):
            choice.check(paths, f"{where}: by_path")
        if paths and not any(heads is not None for heads in seen):
            raise ValueError(
                f"{where}: no leaf is a query or a key. Say in heads which leaves are, as in "
                f"by_path({{'wq|wk': HeadAxis(-2)}}, default=None). The leaves are "
                f"{gtree.listed(paths, 20)}."
            )
        return [{}] * len(seen)
    logits = _by_block(extra.get("max_logits"), where) if any(seen) else {}

    def facts(path: str, x: Any, heads: _Heads) -> Mapping[str, Any]:
        own = _checked_logits(_logits_of(logits, path, where), heads, jnp.shape(x), path, where)
        return {"heads": heads, "logits": own}

    checked = zip(pairs, seen, strict=True)
    return [None if heads is None else facts(path, x, heads) for (path, x, _), heads in checked]


@core.recorded
def qk_clip(
    threshold: Annotated[Hyper, Number(symbol=r"\tau")] = 100.0, heads: Any = None
) -> Transform:
    r"""Shrinks the queries and keys of each head whose attention logits are too large.

    .. math::
        \gamma_h = \min(1, \tau / S_h), \qquad
        u \leftarrow \sqrt{\gamma_h}\,(\theta + u) - \theta

    for the weights \(\theta\) of head \(h\), queries and keys alike, after their step \(u\). Put it
    at the end of a chain, behind the learning rate; ``chain(muon(0.02), qk_clip())`` is MuonClip.

    Args:
      heads: which leaves are queries and keys, and where they have their heads: a tree of
        `HeadAxis`, with None for other leaves; a function that makes one from the parameters; or
        `by_path`. By default leaves called ``query``, ``key``, ``q``, ``k``, ``query_proj``,
        ``key_proj``, ``q_proj``, ``k_proj``, ``wq`` or ``wk``, or a ``kernel``, ``w``, ``weight``,
        ``bias`` or ``b`` in one of these. Their shapes are kernels (in, heads, size) and biases
        (heads, size), perhaps stacked; or kernels (in, heads · size) and biases (heads · size). A
        ``weight`` has its outputs first, as in Equinox and PyTorch: (heads · size, in), perhaps
        stacked.

    `update` needs ``max_logits``, \(S_h\), the largest logit of each head in this step's batch: an
    array (heads,), or (layers, heads) for stacked layers, or one number for all heads. Give a
    dictionary by block, ``{"layer_0/attention": …}``, or one nested like the parameters. An entry
    holds for all queries and keys below it; an array without a dictionary holds for all of them.
    Logits that are not finite change nothing. On several devices, give the maximum over the
    devices.

    Raises:
      ValueError: at `init`, no leaf is a query or key, or an axis does not fit, with its path; in
        `update`, no parameters, no logits for a leaf, or for another number of heads.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> params = {"attention": {"query": jnp.ones((1, 2, 1)), "key": jnp.ones((1, 2, 1))}}
      >>> tx = gradx.chain(gradx.sgd(0.0), gradx.qk_clip(100.0))
      >>> logits = {"attention": jnp.array([400.0, 99.0])}
      >>> updates, _ = tx.update(params, tx.init(params), params, max_logits=logits)
      >>> updates["attention"]["query"].ravel()
      Array([-0.5, 0. ], dtype=float32)

    Reference: Kimi Team, *Kimi K2: open agentic intelligence*, https://arxiv.org/abs/2507.20534.
    There a rotary part of the keys that all heads share is left out, and the rotary part of the
    queries is multiplied by \(\gamma_h\) (``HeadAxis(power=1.0)``). Do the same here for the shared
    keys of grouped queries.
    """
    return leafwise(
        _clip,
        hypers={"threshold": threshold},
        facts=partial(_facts, choice=heads, where=core.where()),
        per_leaf=_scale,
        needs_params=True,
    )


def _scale(g: Any, s: LeafState, p: Any, h: Numbers) -> Mapping[str, Array]:
    large = (h.logits > h.threshold) & jnp.isfinite(h.logits)
    gamma = jnp.where(large, h.threshold / jnp.where(large, h.logits, 1.0), 1.0)
    return {"scale": jnp.sqrt(gamma) if h.heads.power == 0.5 else gamma**h.heads.power}


def _clip(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    axes, side_by_side, _ = h.heads
    scale = h.scale
    if side_by_side and scale.ndim:
        scale = jnp.repeat(scale, g.shape[axes[-1]] // scale.shape[-1], axis=-1)
    if scale.ndim:
        scale = scale.reshape([n if i in axes else 1 for i, n in enumerate(g.shape)])
    # In this form a head with the scale 1 makes its step without a rounding error.
    return scale * g + (scale - 1) * p, s


# ---------------------------------------------------------------- which leaves

_NAMES = r"query|key|q|k|q_proj|k_proj|query_proj|key_proj|wq|wk"
_LEAF = re.compile(rf"(?:^|/)(?:{_NAMES})(?:/(?P<kind>kernel|weight|w|bias|b))?$")


def heads_by_name(path: str, shape: tuple[int, ...]) -> HeadAxis | None:
    found = _LEAF.search(path)
    if found is None or not shape:
        return None
    if found["kind"] == "weight" and len(shape) > 1:
        return HeadAxis(tuple(range(len(shape) - 1)), side_by_side=True)
    inputs = 0 if found["kind"] in ("bias", "b") else 1  # the axis of the inputs
    stacked = len(shape) - 2 - inputs
    if stacked < 0:
        return HeadAxis(-1, side_by_side=True)
    return HeadAxis((*range(stacked), stacked + inputs) if stacked else -2)


def _chosen(choice: Any, flat: gtree.Flat, where: str) -> list[Any]:
    if choice is None:
        pairs = zip(flat.paths, flat.values, strict=True)
        return [None if x is None else heads_by_name(path, jnp.shape(x)) for path, x in pairs]
    if isinstance(choice, ByPath):
        pairs = zip(flat.paths, flat.values, strict=True)
        return [None if x is None else choice.pick(path) for path, x in pairs]
    is_function = callable(choice) and not isinstance(choice, HeadAxis)
    tree = choice(flat.tree) if is_function else choice
    return gtree.broadcast(
        tree, flat.tree, f"{where}: heads", lambda x: x is None or isinstance(x, HeadAxis)
    )


def _checked(heads: Any, path: str, x: Any, where: str) -> _Heads | None:
    if heads is None:
        return None
    if not isinstance(heads, HeadAxis):
        raise ValueError(
            f"{where}: heads must be HeadAxis or None for each leaf; at {path!r} it is "
            f"{core.show(heads)}."
        )
    check(HeadAxis, heads._asdict(), f"{where}: heads at {path!r}")
    rank = jnp.ndim(x)
    try:
        axes = axis_numbers(heads.axis)
    except TypeError as error:
        raise ValueError(
            f"{where}: at {path!r} axis must be a whole number or a tuple of them; got "
            f"{core.show(heads)}."
        ) from error
    bound = [n % rank for n in axes if -rank <= n < rank]
    if len(set(bound)) < len(axes):
        raise ValueError(
            f"{where}: at {path!r} of shape {jnp.shape(x)} there are no axes {core.show(heads)}."
        )
    power = float(hyper.constant("power", heads.power, "[0, inf)"))
    return _Heads(tuple(bound), heads.side_by_side, power)


# ---------------------------------------------------------------- their logits


def _by_block(max_logits: Any, where: str) -> dict[str, Any]:
    if max_logits is None:
        raise ValueError(
            f"{where}: needs the largest logits: call update(updates, state, params, "
            f"max_logits={{'layer_0/attention': …}})."
        )
    flat = gtree.flatten(max_logits)
    return {path: x for path, x in zip(flat.paths, flat.values, strict=True) if x is not None}


def _logits_of(logits: Mapping[str, Any], path: str, where: str) -> Any:
    """The entry of the innermost block around a leaf."""
    steps = path.split("/")
    for n in range(len(steps), -1, -1):
        block = "/".join(steps[:n])
        if block in logits:
            return logits[block]
    raise ValueError(
        f"{where}: max_logits has nothing for {path!r}; it has {gtree.listed(list(logits), 20)}."
    )


def _checked_logits(
    logits: Any, heads: _Heads, shape: tuple[int, ...], path: str, where: str
) -> Array:
    values = jnp.asarray(logits)
    values = values.astype(gtree.wide(values.dtype))
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"{where}: the max_logits for {path!r} must be real numbers, got {core.show(logits)}."
        )
    lengths = tuple(shape[n] for n in heads.axes)
    fits = values.shape == lengths
    if heads.side_by_side and values.size and 0 < values.ndim == len(lengths):
        fits = values.shape[:-1] == lengths[:-1] and lengths[-1] % values.shape[-1] == 0
    if values.shape and not fits:
        wanted = f"{core.show(lengths)}{' (or a divisor)' if heads.side_by_side else ''}"
        raise ValueError(
            f"{where}: the max_logits for {path!r} have the shape {values.shape}, and its heads "
            f"{wanted}. If several heads share a key, leave keys out and give queries "
            f"HeadAxis(…, power=1.0)."
        )
    return values
