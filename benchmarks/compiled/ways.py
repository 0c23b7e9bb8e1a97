"""Lets ways to help a compiler act on other targets than `gradx/lowering/policy.py` says.

This shows what a way saves, or costs where it does not act. A worker reads the change from its
environment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.compiled.chips import Chip
from gradx.lowering.policy import PLATFORMS, POLICY

_VARIABLE = "GRADX_BENCHMARK_WAYS"


def changed(chip: Chip, changes: Sequence[str]) -> Chip:
    """The chip with ways written ``name=target,target``, or ``name=`` for nowhere.

    Raises:
      SystemExit: there is no such way, or no such target.
    """
    for text in changes:
        name, _, targets = text.partition("=")
        unknown = set(filter(None, targets.split(","))) - set(PLATFORMS)
        if "=" not in text or name not in POLICY or unknown:
            raise SystemExit(
                f"--way {text}: must be NAME=TARGETS, a name of {sorted(POLICY)} and targets of "
                f"{sorted(PLATFORMS)}, separated by commas"
            )
    return replace(chip, environment={**chip.environment, _VARIABLE: " ".join(changes)})


def change() -> None:
    """Changes the policy of this process as its environment says."""
    for text in os.environ.get(_VARIABLE, "").split():
        name, _, targets = text.partition("=")
        POLICY[name] = POLICY[name]._replace(targets=tuple(filter(None, targets.split(","))))
