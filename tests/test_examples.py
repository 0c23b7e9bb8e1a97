"""The programs run, shortened, in a process of their own as a user would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# Program, a shortened call, what its last line has to say, and between which numbers.
CALLS = [
    ("digits_nnx", ["--steps", "60"], r"60 steps, test accuracy (\S+)%", 90.0, 100.0),
    ("digits_linen_pmap", ["--steps", "10"], r"(\S+)% on 8 devices \(replicas equal", 15.0, 100.0),
    ("charlm_sweep", ["--steps", "4", "--chunk", "2"], r"of the step: (1), best", 1, 1),
    ("charlm_matrix", ["--steps", "20", "--only", "Muon"], r"takes (\S+) of Adam", 0.0, 1.0),
    ("steered_run", ["--steps", "90"], r"compiled 1 time .* averaged (\S+)%", 80.0, 100.0),
]
SOON, LATER = CALLS[:1], CALLS[1:]  # README's own program; compiling a transformer takes longer
FULL = [
    ("digits_nnx", [], r"test accuracy (\S+)%", 98.0, 100.0),
    ("digits_linen_pmap", [], r"(\S+)% on 8 devices \(replicas equal", 98.0, 100.0),
    ("charlm_sweep", [], r"best validation loss (\S+) nats", 0.0, 1.7),
    ("charlm_matrix", [], r"takes (\S+) of AdamW's steps", 0.0, 0.6),
    ("steered_run", [], r"compiled 1 time .* averaged (\S+)%", 97.5, 100.0),
]
ARGUMENTS = ("name", "arguments", "pattern", "least", "most")


def test_every_example_is_called_here() -> None:
    programs = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert sorted(name for name, *_ in CALLS) == sorted(name for name, *_ in FULL) == programs


@pytest.mark.parametrize(
    ARGUMENTS,
    [*SOON, *(pytest.param(*call, marks=pytest.mark.full) for call in LATER)],
    ids=[call[0] for call in CALLS],
)
def test_example(
    name: str, arguments: list[str], pattern: str, least: float, most: float, tmp_path: Path
) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments, "--out", str(tmp_path)]
    # Without the test's own eight devices: a program arranges what it needs itself.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr
    found = re.search(pattern, done.stdout.splitlines()[-1])
    assert found, done.stdout
    assert least <= float(found.group(1)) <= most
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 160


@pytest.mark.slow  # half an hour in all, on two cores, of which charlm_matrix takes most
@pytest.mark.parametrize(ARGUMENTS, FULL, ids=[call[0] for call in FULL])
def test_whole_example(
    name: str, arguments: list[str], pattern: str, least: float, most: float, tmp_path: Path
) -> None:
    test_example(name, arguments, pattern, least, most, tmp_path)
