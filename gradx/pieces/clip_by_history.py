"""Bounds on the updates that follow from the norms of the last steps: of the tree, or of a leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number, Option
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift import mapped
from gradx.lift.averages import average
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, LeafState, Numbers, Sums
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.clip import clips, shrinking
from gradx.pieces.norms import by_factor, squares

__all__ = ["AdaGCState", "ZClipState", "adagc", "zclip"]


# ---------------------------------------------------------------- by the norm of the whole tree


class ZClipState(NamedTuple):
    """The state of `zclip`.

    Attributes:
      mean: the average of the clipped norms, float32 or wider ().
      var: the average of their squared distances from it, float32 or wider ().
      seen: how many norms these are of, float32 or wider (); it stays at `warmup`.
    """

    mean: Array
    var: Array
    seen: Array


@clips
@core.recorded
def zclip(
    threshold: Annotated[
        Hyper,
        Number(
            "(0, inf)",
            r"z_\mathrm{max}",
            "how many standard deviations above the mean a norm is clipped",
        ),
    ] = 2.5,
    decay: Hyper = 0.97,
    warmup: Annotated[int, Option("how many norms are seen before any is clipped")] = 25,
    eps: Hyper = 1e-6,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""ZClip: shrinks all updates by one factor if their global norm is far above its average.

    Place it before the optimizer, in place of a clip by a fixed norm, which has to be tuned and
    does not follow norms that fall during training.

    .. math::
        z &= \frac{\lVert u \rVert - \mu}{\sigma + \epsilon}, \qquad
        c = \mu + \sigma\, z_\mathrm{max}^2 / z \text{ where } z > z_\mathrm{max}, \qquad
        c = \lVert u \rVert \text{ elsewhere} \\
        u &\leftarrow u\, c / \lVert u \rVert, \qquad
        \mu \leftarrow \beta \mu + (1 - \beta)\, c, \qquad
        \sigma^2 \leftarrow \beta \sigma^2 + (1 - \beta) (c - \mu)^2

    The farther a norm is off, the nearer to the mean it is clipped. The first \(n\) norms pass, and
    \(\mu\) and \(\sigma^2\) begin as their mean and variance.

    Args:
      warmup: \(n\), a whole number of at least 1.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.zclip(threshold=2.0, warmup=2)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 2.0, 2.0, 9.5):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates.round(2)
      Array([1.64], dtype=float32)

    Reference: Kumar et al., *ZClip: adaptive spike mitigation for LLM pre-training*,
    https://arxiv.org/abs/2504.02507, with the defaults of the authors' code,
    https://github.com/bluorion-com/ZClip. That code also clips all norms to 1: put
    `clip_by_global_norm` behind this for it. Deviations: a norm that is not finite does not enter
    the averages, and while the mean is 0 nothing is clipped; there one NaN is kept for ever, and
    zero gradients during the warm-up make all later updates zero. Updates with an infinite norm
    become zero or NaN after the warm-up, and pass before: see `skip_nonfinite`.
    """
    return leafwise(
        by_factor,
        state=ZClipState,
        hypers={"threshold": threshold, "decay": decay, "eps": eps},
        flags={"warmup": steps("warmup", warmup, 1)},
        measure=squares,
        per_tree=_by_score,
        scalars={"mean": 0.0, "var": 0.0, "seen": 0.0},
        axis_name=axis_name,
    )


def _by_score(h: Numbers, sums: Sums) -> Decided:
    norm = sqrt(sums["squares"]).astype(h.mean.dtype)
    deviation = sqrt(h.var)
    warming = h.seen < h.warmup
    score = (norm - h.mean) / (deviation + h.eps)
    clips = ~warming & (score > h.threshold) & (h.mean > 0)
    score = jnp.where(clips, score, h.threshold)
    bound = h.mean + deviation * h.threshold * (h.threshold / score)
    clipped = jnp.where(clips, bound, norm)
    factor = jnp.where(clips, bound / jnp.where(clips, norm, 1.0), 1.0)

    # In the warm-up the mean and the variance of what was seen (Welford), then moving averages.
    learns = jnp.isfinite(clipped)
    new = jnp.where(learns, clipped, h.mean)
    n = h.seen + 1
    mean_so_far = h.mean + (new - h.mean) / n
    var_so_far = h.var + ((new - h.mean) * (new - mean_so_far) - h.var) / n
    mean = average(h.mean, new, h.decay)
    var = average(h.var, (new - mean) ** 2, h.decay)
    return {"factor": factor}, {
        "mean": jnp.where(learns, jnp.where(warming, mean_so_far, mean), h.mean),
        "var": jnp.where(learns, jnp.where(warming, var_so_far, var), h.var),
        "seen": jnp.where(learns & warming, h.seen + 1, h.seen),
    }


# ---------------------------------------------------------------- by the norm of each leaf


class AdaGCState(NamedTuple):
    """The state of `adagc`.

    Attributes:
      count: the updates done so far, int32 ().
      norms: the average of each leaf's clipped norms, () for each parameter, float32 or wider; 0
        where there was no gradient but zeros yet.
    """

    count: Count
    norms: Updates


@clips
@core.recorded
def adagc(
    ratio: Annotated[
        Hyper, Number("(0, inf)", r"\lambda", "how far above its average a norm may be")
    ] = 1.04,
    decay: Hyper = 0.99,
    max_norm: Hyper = 1.0,
    warmup: Annotated[int, Option("how many steps are clipped by the global norm first")] = 100,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""AdaGC: shrinks each leaf whose norm is above the average of its own norms so far.

    Place it before the optimizer, in place of `clip_by_global_norm`, where one leaf with a spike
    would shrink the updates of all others.

    .. math::
        u_i &\leftarrow h_i u_i, \qquad
        h_i = \min(1, c / \lVert u \rVert) \text{ in the first } n \text{ steps}, \qquad
        h_i = \min(1, \lambda \gamma_i / \lVert u_i \rVert) \text{ later} \\
        \gamma_i &\leftarrow \min(\gamma_i, \lVert u_i \rVert)
        \text{ in the first } n \text{ steps}, \qquad
        \gamma_i \leftarrow \beta \gamma_i + (1 - \beta) \lVert u_i \rVert \text{ later}

    Args:
      max_norm: The largest global norm in the first steps.
      warmup: \(n\), a whole number of at least 1.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adagc(ratio=1.5, max_norm=5.0, warmup=1)
      >>> state = tx.init({"a": jnp.ones(1), "b": jnp.ones(1)})
      >>> for a in (1.0, 9.0):
      ...     grads = {"a": jnp.array([a]), "b": jnp.array([2.0])}
      ...     updates, state = tx.update(grads, state)
      >>> updates
      {'a': Array([1.5], dtype=float32), 'b': Array([2.], dtype=float32)}

    Reference: Wang et al., *AdaGC: enhancing LLM pretraining stability via adaptive gradient
    clipping*, https://arxiv.org/abs/2502.11034, with the defaults of the authors' code,
    https://github.com/lishuai-97/AdaGC. Deviations: a norm that is zero or not finite does not
    enter the average, and a leaf without one is clipped by the global norm as in the first steps;
    there a leaf with a zero gradient in one of the first steps, such as LoRA's, stands still for
    ever. Updates with an infinite norm become zero or NaN: see `skip_nonfinite`.
    """
    return leafwise(
        _by_own_norm,
        init={"norms": lambda p: jnp.zeros((), p.real.dtype)},
        state=AdaGCState,
        hypers={"ratio": ratio, "decay": decay, "max_norm": max_norm},
        flags={"warmup": steps("warmup", warmup, 1)},
        per_step=_is_warming,
        measure=squares,
        per_tree=_of_all,
        whole_tree={"max_norm"},
        per_leaf=_of_leaf,
        axis_name=axis_name,
    )


def _is_warming(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"warming": t <= h.warmup}


def _of_all(h: Numbers, sums: Sums) -> Decided:
    return {"of_all": shrinking(sqrt(sums["squares"]), h.max_norm)}, {}


def _of_leaf(g: Array, s: AdaGCState, p: None, h: Numbers) -> Mapping[str, Array]:
    norm, old = sqrt(mapped.total(jnp.sum(abs_sq(g)), h.span)), s.norms
    unseen = old == 0
    bound = h.ratio * jnp.where(unseen, 1.0, old)
    factor = jnp.where(h.warming | unseen, h.of_all, shrinking(norm, bound))
    clipped = norm * factor
    later = average(old, clipped, h.decay)
    new = jnp.where(h.warming, jnp.minimum(old, clipped), later)
    new = jnp.where(unseen, clipped, new)
    learns = (clipped > 0) & jnp.isfinite(clipped)
    return {"factor": factor, "norms": jnp.where(learns, new, old)}


def _by_own_norm(g: Array, s: AdaGCState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return g * h.factor, s._replace(norms=h.norms)
