"""Which of the ways to help a compiler acts on which target.

Each target's compiler has its own weak spots, so what saves an array on one costs an array on
another. The choice is made when a program is lowered, not when it is traced: a program that is
compiled on a machine for another one is right, too. Both ways are traced, and one is compiled.

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
        "snapshot of a norm + adamw: temporaries 4 to 0, moved 52 to 44. On the H200 it would move "
        "32 instead of 28, since one kernel can write the norm and the update.",
    ),
    "unshared": Way(
        ("cpu",),
        "dadapt_adamw: temporaries 1.5 to 0; mechanize 4 to 0; mars 1.5 to 0. On the H200 "
        "mechanize would move 52 instead of 48.",
    ),
    "write_after": Way(
        ("cpu", "gpu"),
        "adan: on CPUs temporaries 4 to 0, on the H200 moved 48 to 44. On the v5e it would move 54 "
        "instead of 48.",
    ),
    "once_known": Way(
        ("cpu",),
        "L-BFGS: temporaries 12 to 5.8; mechanize 4 to 0. On the v5e L-BFGS would have 5.2 "
        "instead of none.",
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
}


def by_target(way: str, acting: Callable[..., T], default: Callable[..., T], *operands: Any) -> T:
    """`acting(*operands)` on the targets of a way in `POLICY`, and elsewhere `default(*operands)`.

    The two must agree in structure, shapes and dtypes, and in the mapped axes they vary over.
    """
    chosen = {name: acting for target in POLICY[way].targets for name in PLATFORMS[target]}
    made: T = jax.lax.platform_dependent(*operands, **chosen, default=default)
    return made
