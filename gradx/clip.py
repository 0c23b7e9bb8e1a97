from __future__ import annotations
import jax.numpy as jnp
from gradx import core
from gradx import tree as gtree
from gradx.leafwise import leafwise
from gradx.sources import Hyper

def _clip(g, slots, p, h):
    return g * h.factor, slots

def _factor(updates, h):
    n = gtree.global_norm(updates, axis_name=h.axis_name)
    return {"factor": jnp.where(n < h.max_norm, 1.0, h.max_norm / n)}

@core.recorded
def clip_by_global_norm(max_norm: Hyper, *, axis_name=None):
    return leafwise(_clip, per_tree=_factor, hypers=dict(max_norm=max_norm), flags=dict(axis_name=axis_name))
