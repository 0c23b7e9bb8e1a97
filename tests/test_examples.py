"""The three programs run, shortened, in a process of their own as a user would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# Program, a shortened call, and what its last line has to say.
CALLS = [
    ("digits_nnx", ["--steps", "60"], r"60 steps, test accuracy (\d+\.\d+)%"),
    (
        "digits_linen_pmap",
        ["--steps", "10"],
        r"(\d+\.\d+)% on 8 devices \(replicas equal to the bit\)",
    ),
    ("charlm_sweep", ["--steps", "4", "--chunk", "2"], r"compilations of the step: (1), best"),
]
LEAST = {"digits_nnx": 90.0, "digits_linen_pmap": 15.0, "charlm_sweep": 1.0}


def test_every_example_is_called_here() -> None:
    assert sorted(name for name, _, _ in CALLS) == sorted(p.stem for p in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize(("name", "arguments", "pattern"), CALLS, ids=[c[0] for c in CALLS])
def test_example(name: str, arguments: list[str], pattern: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments, "--out", str(tmp_path)]
    # Without the test's own eight devices: a program arranges what it needs itself.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.search(pattern, done.stdout.splitlines()[-1])
    assert found, done.stdout
    assert float(found.group(1)) >= LEAST[name]
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 160
