"""Stores the results for a target in a file, which later runs continue or compare with."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.compiled.chips import Chip
from benchmarks.compiled.jobs import ROOT, Job
from benchmarks.compiled.runs import Result

RESULTS = ROOT / "benchmarks" / "results"

# How much more than the stored table is allowed: a hundredth, and scalars (B/param).
TOLERANCE, SCALARS = 1.01, 0.01


@dataclass
class Stored:
    """The results of a study for a target.

    Attributes:
      target, study: names in `chips.CHIPS` and `jobs.STUDIES`.
      versions: of the packages that the results depend on.
      results: by job.
      date: of the last run.
    """

    target: str
    study: str
    versions: dict[str, str]
    results: dict[Job, Result] = field(default_factory=dict)
    date: str = ""

    def save(self, path: Path) -> None:
        """Writes all of it, a result a line, in the order of the table."""
        lines = [json.dumps({**asdict(job), **made}) for job, made in self.results.items()]
        about = {"target": self.target, "study": self.study, "versions": self.versions}
        head = json.dumps({**about, "date": datetime.date.today().isoformat()})[:-1]
        new = path.with_suffix(".new")
        new.write_text(f'{head}, "results": [\n' + ",\n".join(lines) + "\n]}\n")
        new.replace(path)


def load(path: Path) -> Stored | None:
    """The contents of a file; None if there is no file."""
    if not path.exists():
        return None
    read: dict[str, Any] = json.loads(path.read_text())
    fields = Job.__dataclass_fields__
    results = {
        Job(**{k: v for k, v in line.items() if k in fields}): {
            k: v for k, v in line.items() if k not in fields
        }
        for line in read.pop("results")
    }
    return Stored(results=results, **read)


def file_of(target: str, study: str) -> Path:
    return RESULTS / f"compiled-{target}{'' if study == 'rows' else f'-{study}'}.json"


def versions(chip: Chip) -> dict[str, str]:
    """The installed versions of the packages that decide how gradx's program is compiled."""
    packages = ["jax", "jaxlib", "optax", *([chip.package[0]] if chip.package else [])]
    return {name: version(name) for name in packages}


def worse(now: Result, before: Result | None) -> list[str]:
    """Says in sentences how a result is worse than the stored one; a crash always is."""
    if "error" in now:
        return [now["error"]]
    if before is None or "error" in before:
        return []
    return [
        f"{what} {before[what]} -> {now[what]} bytes a parameter"
        for what in ("moved", "temporaries")
        if now[what] > before[what] * TOLERANCE + SCALARS
    ]
