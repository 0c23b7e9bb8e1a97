"""Runs jobs in worker processes, since a compiler may end its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Any

from benchmarks.compiled.chips import Chip
from benchmarks.compiled.jobs import ROOT, Job

Result = dict[str, Any]
Keep = Callable[[Job, Result], None]

# Seconds; a compiler that takes longer counts as one that never ends.
LONGEST = 1800.0


def run(chip: Chip, jobs: Sequence[Job], keep: Keep, workers: int = 1) -> None:
    """Hands each result to `keep` as soon as it is there; a crash is a result, too."""
    left, lock = deque(jobs), threading.Lock()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_work, chip, left, keep, lock) for _ in range(workers)]
        try:
            for future in futures:
                future.result()
        finally:
            left.clear()


def _work(chip: Chip, left: deque[Job], keep: Keep, lock: threading.Lock) -> None:
    worker = None
    with tempfile.TemporaryFile("w+") as said:
        try:
            while True:
                with lock:
                    if not left:
                        return
                    job = left.popleft()
                worker = worker or _start(chip, said)
                result = _ask(worker, job)
                if result is None:
                    result = {"error": _last_words(worker, said)}
                if worker.poll() is not None:
                    worker = None
                with lock:
                    keep(job, result)
        finally:
            if worker is not None:
                worker.communicate()


def _start(chip: Chip, errors: IO[str]) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {chip.environment.get('XLA_FLAGS', '')}".strip()
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compiled.worker", chip.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, **chip.environment, "XLA_FLAGS": flags},
        cwd=ROOT,
        text=True,
    )
    ready = _answer(worker)
    if ready is None or "refused" in ready:
        ended = _last_words(worker, errors)
        raise SystemExit(chip.refusal(ready["refused"] if ready else ended))
    return worker


def _ask(worker: subprocess.Popen[str], job: Job) -> Result | None:
    """The answer; None if the process ends by itself instead."""
    assert worker.stdin is not None
    late = threading.Event()
    timer = threading.Timer(LONGEST, lambda: (late.set(), worker.kill()))
    timer.start()
    try:
        worker.stdin.write(json.dumps(asdict(job)) + "\n")
        worker.stdin.flush()
        answer = _answer(worker)
    except BrokenPipeError:
        answer = None
    finally:
        timer.cancel()
    if not late.is_set():
        return answer
    worker.wait()
    return {"error": f"not compiled within {LONGEST:.0f} s"}


def _answer(worker: subprocess.Popen[str]) -> Result | None:
    """The next line that is the worker's own: compilers write to the standard output, too."""
    assert worker.stdout is not None
    return next((json.loads(line) for line in worker.stdout if line.startswith("{")), None)


def _last_words(worker: subprocess.Popen[str], errors: IO[str]) -> str:
    """The reason why a process ended, from its standard error, which is then emptied."""
    worker.communicate()
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    checks = [line[line.index("Check failed") :] for line in lines if "Check failed" in line]
    errors.seek(0)
    errors.truncate()
    why = (checks or lines or [""])[-1][:160]
    return f"the compiler ended the process ({worker.returncode}): {why}"
