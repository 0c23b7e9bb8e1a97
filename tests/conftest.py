"""What every test runs with: eight devices, a cache of compiled programs, one worker a row.

Nearly all of the tests' time is compilation. Programs are kept outside the tree, in
``GRADX_TEST_CACHE`` or the user's cache directory, so the workers of a run and later runs share
them; what is older than a week is deleted. An empty cache is always right, only slower.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
# XLA's thread pool: with fewer threads than devices, a collective can wait for itself for ever.
os.environ.setdefault("NPROC", "16")

CACHE = Path(
    os.environ.get("GRADX_TEST_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gradx-tests"
)
WEEK = 7 * 24 * 3600
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
# JAX keeps only what took a second to compile; here a thousand programs take a tenth each.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# After the flags, since these may import JAX.
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

# The same examples in every run, and no deadline on a noisy machine.
settings.register_profile("gradx", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("gradx")

collect_ignore = [f"trajectories/make_{of}.py" for of in ("torch", "others")]  # run by hand


class ByRow(LoadScopeScheduling):
    """Gives all laws of a row to one worker, since they share its runs; and each file to one."""

    def _split_scope(self, nodeid: str) -> str:
        row = re.search(r"^tests/laws/.*\[(.+)\]$", nodeid)
        return row[1] if row else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByRow:
    return ByRow(config, log)


def pytest_configure(config: pytest.Config) -> None:
    # In the order of the table and the files: doctests, which are quick, come last, so that
    # workers end together.
    config.option.loadscopereorder = False
    if not hasattr(config, "workerinput"):  # once a run
        for path in CACHE.glob("*-cache"):
            with contextlib.suppress(OSError):  # another run may delete it, too
                if path.stat().st_mtime < time.time() - WEEK:
                    path.unlink()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The laws of a row one after the other, as they are for `pytest -n`."""
    by_row = defaultdict(list)
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
        by_row[getattr(case, "id", item.nodeid)].append(item)
    items[:] = [item for row in by_row.values() for item in row]
