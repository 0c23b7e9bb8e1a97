"""Which way to help a compiler acts on which target.

Each target's compiler has its own weak spots, so what saves an array on one costs an array on
another. The choice is made when a program is lowered, not when it is traced: a program that one
machine compiles for another is right, too. Both ways are traced, and one is compiled.

The figures are bytes that a step moves, and bytes of temporaries, per parameter (jax 0.10 and 0.12;
`python -m benchmarks --target …`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

T = TypeVar("T")

# The platforms of a target, as `jax.lax.platform_dependent` calls them.
PLATFORMS = {"cpu": ("cpu",), "gpu": ("cuda", "rocm"), "tpu": ("tpu",)}


class Way(NamedTuple):
    """A way to help a compiler.

    Attributes:
      targets: where it acts.
      buys: what it saves there, and what it would cost elsewhere.
    """

    targets: tuple[str, ...]
    buys: str


POLICY = {
    "reread": Way(
        ("cpu",),
        "snapshot of a norm + adamw: temporaries 4 to 0, moved 52 to 44; clip + adamw of gradients "
        "in bfloat16: 4 to 0, 42 to 34. On the H200 the first would move 32 instead of 28, since "
        "one kernel can write the norm and the update.",
    ),
    "unshared": Way(
        ("cpu",),
        "dadapt_adamw: temporaries 1.5 to 0; mechanize 4 to 0; mars 1.5 to 0. On the H200 "
        "mechanize would move 52 instead of 48.",
    ),
    "write_after": Way(
        ("cpu",),
        "adan: temporaries 4 to 0. On the v5e it would move 54 instead of 44.",
    ),
    "in_place": Way(
        ("gpu", "tpu"),
        "adan: moved 48 to 44 on the H200 and the v5e; optimistic_gradient_descent 24 to 20; "
        "optimistic_adam on the H200 44 to 36. On CPUs adan would move 84 instead of 80.",
    ),
    "sums": Way(
        ("gpu",),
        "dadapt_adamw: moved 49 to 36, temporaries 1.3 to 0; momo_adam 51 to 40, and 3.0 to 0. On "
        "the v5e dadapt_adamw would move 52 instead of 36.",
    ),
    "paired": Way(
        ("gpu", "tpu"),
        "watch(adamw): its conditional moves 16 instead of 26.7 on the H200, since the update has "
        "one reader; and nothing is gathered of arrays that are sharded along their rows. On one "
        "v5e it moves 22.3 instead of 16, on CPUs it would move 57 instead of 16.",
    ),
    "finite_by_sum": Way(
        ("cpu",),
        "a third of the time of a look at each element. On the H200 apply_if_finite would move 36 "
        "instead of 32, on the v5e 35 instead of 32.",
    ),
    "once_known": Way(
        ("cpu",),
        "L-BFGS: temporaries 12 to 5.8; mechanize 4 to 0. On the v5e L-BFGS would have 5.2 "
        "instead of none.",
    ),
    "under_condition": Way(
        ("cpu",),
        "L-BFGS: temporaries 18.5 to 5.8. On the H200 the memory would be read where nothing needs "
        "it, and 3 of temporaries be 2.5.",
    ),
    "in_some_steps": Way(
        ("gpu",),
        "adamw with an average of the parameters in every tenth step: moved 52 to 44 on the H200, "
        "temporaries 4 to 0; 16 of the 44 are the loop's, in one step of ten. On the v5e a "
        "conditional changes arrays in place.",
    ),
    "once_stored": Way(
        ("cpu", "gpu"),
        "the same: moved 52 to 44 on the H200 and 64 to 56 on CPUs, temporaries 4 to 0. On the v5e "
        "it would move 48 instead of 44.",
    ),
    "siblings": Way(
        ("gpu",),
        "1,000 leaves of 32×32 on the H200: adamw 1,002 kernels to 81, clip + adamw 2,013 to 225. "
        "Elsewhere a kernel costs no launch.",
    ),
    "one_by_one": Way(
        ("cpu",),
        "no deadlock: jaxlib's threads for a stack of decompositions wait for each other there.",
    ),
    "narrow_products": Way(
        ("gpu", "tpu"),
        "muon: moved 190 to 114 on the H200, and units for factors of two bytes are many times as "
        "fast as those for four. CPUs have none.",
    ),
    "alone": Way(
        ("cpu",),
        "matrices of middle size: a third of the time of their products. On the H200 they would be "
        "many kernels that are shorter than their launch.",
    ),
    "in_turn": Way(
        ("cpu", "gpu"),
        "muon: temporaries 4.8 to 1.3 on the H200, and those of one matrix on CPUs. On the v5e "
        "they are 0.4 without it.",
    ),
    "some_at_a_time": Way(("cpu",), "what a rule makes of small matrices stays in the cache."),
    "unknown_places": Way(("cpu",), "compilation of a thousand leaves: a tenth of the time."),
}


def by_target(way: str, acting: Callable[..., T], default: Callable[..., T], *operands: Any) -> T:
    """`acting(*operands)` on the targets of a way in `POLICY`, `default(*operands)` elsewhere.

    The two must agree in structure, shapes and dtypes, and in the mapped axes they vary over.
    """
    chosen = {name: acting for target in POLICY[way].targets for name in PLATFORMS[target]}
    made: T = jax.lax.platform_dependent(*operands, **chosen, default=default)
    return made
