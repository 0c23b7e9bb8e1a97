"""The gallery of the documentation: every optimizer has a row, and the table can be made."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cases import CASES

FILE = Path(__file__).parent.parent / "docs/gallery.py"

spec = importlib.util.spec_from_file_location("gallery", FILE)
assert spec is not None
assert spec.loader is not None
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)


def test_every_optimizer_of_the_tests_is_in_the_gallery() -> None:
    assert {case.factory for case in CASES if case.descends} <= set(gallery.optimizers())


def test_the_gallery_has_a_row_for_every_optimizer() -> None:
    page = gallery.page()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert sorted(row[0].split("`")[1] for row in rows) == sorted(gallery.optimizers())
    assert all(len(row) == 5 and row[0].split("<br>")[1] and row[1] and row[2] for row in rows)


def test_what_is_found_by_calling() -> None:
    found = {name: list(gallery.needs(gallery.made(name))) for name in ("adam", "adamw", "momo")}
    assert found == {"adam": [], "adamw": ["parameters"], "momo": ["parameters", "`value`"]}
    assert gallery.state_bytes(gallery.made("adam")) == "8"
