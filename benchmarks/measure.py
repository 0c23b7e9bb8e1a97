"""One measuring process: `python -m benchmarks.measure SETTINGS ANSWER`, both of them JSON.

`processes.py` starts it, with the environment for the backend.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import gradx
from benchmarks.sections import SECTIONS
from benchmarks.settings import Settings


def machine() -> dict[str, Any]:
    """The hardware and the versions that the numbers depend on."""
    packages = ("jax", "jaxlib", "optax", "torch", "numpy")
    installed = [p for p in packages if importlib.util.find_spec(p)]
    devices = jax.devices()
    return {
        "platform": jax.default_backend(),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "versions": {
            "gradx": gradx.__version__,
            **{p: version(p) for p in installed},
            "python": platform.python_version(),
        },
    }  # fmt: skip


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def main(settings_json: str, answer: str) -> None:
    settings = Settings.from_json(settings_json)
    jax.config.update("jax_enable_compilation_cache", False)
    sections = {}
    for name in settings.sections:
        print(f" {name}", file=sys.stderr, flush=True)
        sections[name] = SECTIONS[name].measure(settings)
    Path(answer).write_text(json.dumps({"machine": machine(), "sections": sections}))


if __name__ == "__main__":
    main(*sys.argv[1:])
