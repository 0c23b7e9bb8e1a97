"""All rows for one chip, in processes that a compiler may end; what was measured is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compiled.chips import Chip

Job = tuple[str, str]  # row, library
ROOT = Path(__file__).parents[2]


def run(chip: Chip, jobs: Sequence[Job], keep: Callable[[Job, dict[str, Any]], None]) -> None:
    """Hands each result to `keep` as soon as it is there; a crash is a result, too."""
    left = list(jobs)
    while left:
        done = _some(chip, left, keep)
        left = left[done:]


def _some(chip: Chip, jobs: Sequence[Job], keep: Callable[[Job, dict[str, Any]], None]) -> int:
    """Does jobs until all are done or the process has ended; how many that were."""
    flags = {
        "XLA_FLAGS": " ".join(
            x.get("XLA_FLAGS", "") for x in (os.environ, chip.environment)
        ).strip()
    }
    arguments = [word for job in jobs for word in job]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compiled.worker", chip.name, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if not os.environ.get("SHOW") else None,
        env={**os.environ, **chip.environment, **flags},
        cwd=ROOT,
        text=True,
    )
    done = 0
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if "row" in said:
            keep((said.pop("row"), said.pop("library")), said)
            done += 1
    code = process.wait()
    if done < len(jobs):
        keep(jobs[done], {"error": f"the compiler ended the process ({code})"})
        done += 1
    return done


if __name__ == "__main__":  # a first look
    from benchmarks.cases import chosen
    from benchmarks.compiled.chips import CHIPS

    pick = chosen(sys.argv[2] if len(sys.argv) > 2 else "")
    res: dict = {}

    def keep(job, r):
        res[job] = r
        print(job, r, file=sys.stderr, flush=True)

    jobs = [(c.name, lib) for c in pick for lib in c.libraries]
    run(CHIPS[sys.argv[1]], jobs, keep)
    for c in pick:
        cells = []
        for lib in ("gradx", "optax"):
            r = res.get((c.name, lib))
            cells.append(
                "-"
                if r is None
                else r["error"][:60]
                if "error" in r
                else f"{r['moved']:.1f}/{r['temporaries']:.2f} k{r['kernels']} {r['seconds']:.0f}s"
            )
        print(f"{c.name:34} {cells[0]:32} {cells[1]}")
