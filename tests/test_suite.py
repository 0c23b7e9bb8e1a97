"""What the tests themselves rest on: the cache of compiled programs, and who runs a row."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from conftest import ByRow
from problems import step

import gradx

HIT = "/jax/compilation_cache/cache_hits"


def test_a_program_out_of_the_cache_needs_the_same_memory() -> None:
    """So the laws about buffers and temporaries mean the same, whoever compiled the program."""
    events: Counter[str] = Counter()
    listen = lambda event, **kwargs: events.update([event])
    jax.monitoring.register_event_listener(listen)
    tx = gradx.lamb(random.SystemRandom().random(), weight_decay=0.1)  # which no cache has yet
    p = {"w": jax.ShapeDtypeStruct((32, 8), jnp.float32)}
    s = jax.eval_shape(tx.init, p)

    def analysis() -> Any:
        # Another function each time, so that only the cache on the disk knows its program.
        jitted = jax.jit(lambda p, s, g: step(tx, p, s, g), donate_argnums=(0, 1))
        used = jitted.lower(p, s, p).compile().memory_analysis()
        return used.alias_size_in_bytes, used.temp_size_in_bytes, used.argument_size_in_bytes

    before = events[HIT]
    once = analysis()
    assert events[HIT] == before
    assert analysis() == once
    assert events[HIT] > before
    assert once[0] > 0


def test_all_laws_of_a_row_run_in_one_process() -> None:
    scope = lambda nodeid: ByRow._split_scope(None, nodeid)  # type: ignore[arg-type]
    of_a_law = "tests/laws/test_algorithms.py::test_odd_trees[adam-nesterov]"
    of_another = "tests/laws/test_mechanisms.py::test_inside_an_optax_chain[adam-nesterov]"
    assert scope(of_a_law) == scope(of_another) == "adam-nesterov"
    assert scope("tests/test_chain.py::test_one[a]") == scope("tests/test_chain.py::test_two")
