"""Ways to help a compiler that act on other targets than `gradx/lowering/policy.py` says.

To see what a way buys, or costs where it does not act. A worker is told by its environment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.compiled.chips import Chip
from gradx.lowering.policy import PLATFORMS, POLICY

_VARIABLE = "GRADX_BENCHMARK_WAYS"


def changed(chip: Chip, given: Sequence[str]) -> Chip:
    """The chip with ways written ``name=target,target``, or ``name=`` for nowhere.

    Raises:
      SystemExit: there is no such way, or no such target.
    """
    for one in given:
        name, _, targets = one.partition("=")
        unknown = set(filter(None, targets.split(","))) - set(PLATFORMS)
        if "=" not in one or name not in POLICY or unknown:
            raise SystemExit(
                f"--way {one}: must be NAME=TARGETS, a name of {sorted(POLICY)} and targets of "
                f"{sorted(PLATFORMS)}, separated by commas"
            )
    return replace(chip, environment={**chip.environment, _VARIABLE: " ".join(given)})


def change() -> None:
    """Changes the policy of this process as its environment says."""
    for one in os.environ.get(_VARIABLE, "").split():
        name, _, targets = one.partition("=")
        POLICY[name] = POLICY[name]._replace(targets=tuple(filter(None, targets.split(","))))
