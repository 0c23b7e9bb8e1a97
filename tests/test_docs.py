"""The documents: every block of Python runs, links lead somewhere, and the skeleton obeys the laws.

A ``python`` block runs in the namespace of the blocks before it in its file; an ``output`` block
right after it is what it prints.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import optax_names
import pytest
import references

import gradx
from gradx import core

ROOT = Path(__file__).parent.parent
TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCS = [path for path in [*TOP, *sorted(ROOT.glob("docs/*.md"))] if path.exists()]
GUIDE, SKELETON = ROOT / "docs/new_rule.md", ROOT / "docs/new_rule.py"
SHOWN = "<!-- new_rule.py -->"  # stands before a block that is a piece of the skeleton

every_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string, its text, its first line, and the line before the fence."""

    info: str
    text: str
    line: int
    above: str


def blocks(path: Path) -> Iterator[Block]:
    source = path.read_text()
    fenced = r"^([^\n]*)\n( *)(```+)([^\n`]*)\n(.*?)^\2\3 *$"
    for match in re.finditer(fenced, "\n" + source, re.MULTILINE | re.DOTALL):
        line = source.count("\n", 0, match.start(5) - 1) + 1
        yield Block(match[4].strip(), textwrap.dedent(match[5]), line, match[1])


def run(path: Path) -> dict[str, Any]:
    """Runs the blocks of a document one after the other; returns their common namespace."""
    namespace: dict[str, Any] = {"__name__": f"{path.stem}_document"}
    printed = None
    for block in blocks(path):
        where = f"{path.name}:{block.line}"
        if block.info == "output":
            assert printed is not None, f"{where}: there is no Python right before it"
            assert block.text.split() == printed.split(), f"{where}:\n{printed}"
        if block.info != "python":
            printed = None
            continue
        out = io.StringIO()
        # The empty lines make a traceback point into the document.
        code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
        with contextlib.redirect_stdout(out):
            exec(code, namespace)
        printed = out.getvalue()
    return namespace


# ---------------------------------------------------------------- all documents


@every_document
def test_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(path)


@every_document
def test_no_block_is_left_out(path: Path) -> None:
    infos = {block.info for block in blocks(path)}
    assert not {info for info in infos if info.startswith("py")} - {"python"}
    assert path.read_text().count("```python") == sum(b.info == "python" for b in blocks(path))


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^( *)(```+).*?^\1\2 *$|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", link):
            file, _, heading = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), f"{path.name} links to {link}"
            assert not heading or heading in headings(target), f"{path.name} links to {link}"


def headings(path: Path) -> set[str]:
    """The names that GitHub gives a document's headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_table_of_names_is_complete() -> None:
    section = (ROOT / "docs/from_optax.md").read_text().partition("## What there is")[2]
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|.*\n", section, re.MULTILINE)))
    wanted = [r.name for r in optax_names.rows() if r.kind in ("function", "class")]
    assert sorted(listed) == sorted(wanted)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # for pickle
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_the_schedules_of_today() -> None:
    """All of them. `python docs/schedules.py` draws it anew."""
    picture = load(ROOT / "docs/schedules.py")
    made = {n for n, f in core.REGISTRY.items() if f.__module__.startswith("gradx.schedules.")}
    assert set(picture.PANELS) == made
    description = ElementTree.parse(picture.FILE).find(".//{*}description")
    assert description is not None
    assert description.text == picture.described()


# ---------------------------------------------------------------- the skeleton of a new rule


SKELETON_MODULE = load(SKELETON)


def test_the_guide_shows_the_whole_skeleton() -> None:
    pieces = [block.text.strip("\n") for block in blocks(GUIDE) if block.above == SHOWN]
    code = SKELETON.read_text().strip("\n")
    for piece in pieces:
        assert code.startswith(piece), f"not what comes next in the file:\n{piece}"
        code = code.removeprefix(piece).lstrip("\n")
    assert not code


def test_the_examples_of_the_skeleton() -> None:
    failed, attempted = doctest.testmod(SKELETON_MODULE)
    assert failed == 0 < attempted


def laws() -> Iterator[Any]:
    """Every law, with the cases it is for."""
    for path in sorted((ROOT / "tests/laws").glob("test_*.py")):
        module = sys.modules.get(path.stem) or load(path)  # read already if pytest collects it
        for name, law in vars(module).items():
            marks = getattr(law, "pytestmark", [])
            full = [m for m in marks if m.name == "full"]
            marks = {m.args[0]: m.args[1] for m in marks if m.name == "parametrize"}
            if name.startswith("test_") and set(marks) == {"case"}:
                cases = [getattr(row, "values", [row])[0] for row in marks["case"]]
                yield pytest.param(law, cases, id=name, marks=full)


@pytest.fixture(scope="module")
def guide() -> dict[str, Any]:
    return run(GUIDE)


@pytest.mark.parametrize(("law", "cases"), list(laws()))
def test_the_skeleton_obeys_the_laws(
    law: Any, cases: Any, guide: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rows and the reference that the guide shows."""
    for case in guide["ROWS"]:
        made = getattr(SKELETON_MODULE, case.factory)
        monkeypatch.setattr(gradx, case.factory, made, raising=False)
        monkeypatch.setattr(references, case.factory, guide[case.factory], raising=False)
    for case in guide["ROWS"]:
        # A law over a part of the table is one over rows with a property that they share.
        optimizers, of_optax = (
            all(getattr(other, about) for other in cases) for about in ("descends", "in_optax")
        )
        if case.descends >= optimizers and case.in_optax >= of_optax:
            law(case)
