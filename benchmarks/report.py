"""Renders a run as Markdown: where and when, the targets, and the tables of each section."""

from __future__ import annotations

from typing import Any

from benchmarks import targets
from benchmarks.processes import PROCESSES
from benchmarks.sections import SECTIONS, TITLES


def render(run: dict[str, Any]) -> str:
    results = run["results"]
    titles = {p.name: p.title for p in PROCESSES}
    default = results[PROCESSES[0].name]
    parts = ["# gradx against Optax and torch.optim", _header(run)]
    if run["settings"]["quick"]:
        parts.append("**Quick run: small trees, few repeats. These numbers say nothing.**")
    parts += ["## Targets", targets.render(targets.judge(default))]
    for name, section in SECTIONS.items():
        measured = {titles[p]: data[name] for p, data in results.items() if name in data}
        if measured:
            parts += [f"## {TITLES[name]}", section.render(measured)]
    return "\n\n".join(parts) + "\n"


def _header(run: dict[str, Any]) -> str:
    machine, settings = run["machine"], run["settings"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    where = f"{machine['cpu']}, {machine['cores']} cores"
    if machine["platform"] != "cpu":
        where = f"{machine['device']} ({where})"
    lines = [
        f"* Date: {run['date']}; the run took {run['minutes']:.1f} minutes",
        f"* Machine: {where}",
        f"* Versions: {versions}",
        f"* Command: `{run['command']}`",
        f"* Samples: {settings['repeats']} of each step time, "
        f"{settings['compile_repeats']} of each compile cost",
    ]
    return "\n".join(lines)
