"""Adam."""
from __future__ import annotations
from typing import Any, NamedTuple
import jax.numpy as jnp
from gradx import core
from gradx.combine import chain
from gradx.core import Transform, Updates
from gradx.leafwise import leafwise, Numbers, Slots
from gradx.scale import scale_by_learning_rate
from gradx.decay import scale_and_decay
from gradx.sources import Hyper, Array
from gradx.tree import abs_sq

class ScaleByAdamState(NamedTuple):
    count: Array
    mu: Updates
    nu: Updates

def _init(p): return (jnp.zeros_like(p), jnp.zeros_like(p.real))

def _corrections(h, t):
    return {"c1": 1 / (1 - h.b1**t), "c2": 1 / (1 - h.b2**t)}

def _adam(g, slots, p, h):
    mu, nu = slots
    mu = h.b1 * mu + (1 - h.b1) * g
    nu = h.b2 * nu + (1 - h.b2) * abs_sq(g)
    return mu * h.c1 / (jnp.sqrt(nu * h.c2 + h.eps_root) + h.eps), (mu, nu)

@core.recorded
def scale_by_adam(b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0) -> Transform:
    return leafwise(_adam, init=_init, state=ScaleByAdamState, per_step=_corrections, hypers=dict(b1=b1, b2=b2, eps=eps, eps_root=eps_root))

@core.recorded
def adamw(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0, weight_decay: Hyper = 1e-4, mask: Any = None, decay="learning_rate") -> Transform:
    return chain(scale_by_adam(b1, b2, eps, eps_root), *scale_and_decay(learning_rate, weight_decay, mask, decay))
