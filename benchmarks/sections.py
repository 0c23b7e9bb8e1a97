"""The parts of a report. A section is a module that measures in one process and renders tables."""

from __future__ import annotations

from typing import Any, Protocol

from benchmarks import compile_cost, family, precisions, products, steps, yardstick
from benchmarks.settings import Settings


class Section(Protocol):
    def measure(self, settings: Settings) -> dict[str, Any]:
        """Plain data, for JSON. Rows are in a list `rows`, and have `name` and `group`."""
        ...

    def render(self, results: dict[str, dict[str, Any]]) -> str:
        """Markdown, from the data of each process, by the process's title."""
        ...


SECTIONS: dict[str, Section] = {
    "yardstick": yardstick,
    "products": products,
    "precisions": precisions,
    "steps": steps,
    "family": family,
    "compile": compile_cost,
}

TITLES = {
    "yardstick": "Yardstick: memory bandwidth",
    "products": "Yardstick: products of matrices",
    "precisions": "Muon in each precision",
    "steps": "Step time",
    "family": "The matrix family",
    "compile": "Compile cost",
}
