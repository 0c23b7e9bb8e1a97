"""Runs the measuring processes one after the other, and joins their results.

XLA reads its flags when its backend starts, so each set of flags needs a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.settings import Settings


@dataclass(frozen=True)
class Process:
    """A measuring process.

    Attributes:
      name: its key in the JSON.
      title: what the tables call it.
      sections: the sections that it measures, if they were asked for.
      xla_flags: added to the environment's.
      platforms: where it makes sense, as `jax.default_backend()` calls them; None: everywhere.
      torch: whether torch takes part; once is enough.
      rows: a regular expression for the rows that it measures, if they were asked for.
    """

    name: str
    title: str
    sections: tuple[str, ...]
    xla_flags: str = ""
    platforms: tuple[str, ...] | None = None
    torch: bool = True
    rows: str = ""


# Rows for which fusion matters, or has turned a ratio round.
FUSION = r"^(adamw?|lion|adadelta|adabelief|adan|lamb|schedule_free|MultiSteps.*|clip_by.*)$"

# The first one finds the platform, and the targets are about its results.
PROCESSES = [
    Process(
        "default",
        "default flags",
        ("yardstick", "products", "precisions", "steps", "family", "compile"),
    ),
    Process(
        "multi_output_fusion",
        "multi-output fusion",
        ("yardstick", "steps"),
        xla_flags="--xla_backend_extra_options=xla_cpu_use_multi_output_fusion",
        platforms=("cpu",),  # XLA's other backends have it on
        torch=False,
        rows=FUSION,
    ),
]


def run_all(settings: Settings, processes: Sequence[Process] = PROCESSES) -> dict[str, Any]:
    """`{"machine": facts, "results": {process: {section: data}}}`."""
    machine: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for process in processes:
        if machine and process.platforms and machine["platform"] not in process.platforms:
            continue
        sections = tuple(s for s in settings.sections if s in process.sections)
        if machine and not (sections and cases.chosen(settings.rows, process.rows)):
            continue
        asked = replace(
            settings,
            sections=sections,
            torch=settings.torch and process.torch,
            within=process.rows,
        )
        print(f"[{process.title}]", file=sys.stderr, flush=True)
        answer = _run(process, asked)
        machine = machine or answer["machine"]
        results[process.name] = answer["sections"]
    return {"machine": machine, "results": results}


def _run(process: Process, settings: Settings) -> dict[str, Any]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {process.xla_flags}".strip()
    # On a GPU, JAX must leave room for torch.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ | {"XLA_FLAGS": flags}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.measure", settings.to_json(), str(answer)]
        root = Path(__file__).parent.parent
        code = subprocess.run(command, env=environment, cwd=root, check=False).returncode
        if code:
            raise SystemExit(f"measuring failed in the process {process.title!r} (exit {code})")
        return json.loads(answer.read_text())
