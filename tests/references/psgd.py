"""PSGD-Kron: triangular factors that whiten the momentum of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from references.driver import Array, Number, Rule, State, at, average, each
from references.matrices import with_others


def precond_update_prob_schedule(
    max_prob: float = 1.0, min_prob: float = 0.03, decay: float = 0.001, flat_start: int = 500
) -> Callable[[int], float]:
    """That of psgd_jax: full at first, then falling to a floor."""
    return lambda t: min(max(max_prob * np.exp(-decay * (t - flat_start)), min_prob), max_prob)


def _lower_bound(a: Array) -> float:
    """Li's estimate of the spectral norm of a Hermitian matrix."""
    j = np.argmax(np.sum(np.abs(a) ** 2, axis=0))
    x = a @ a[:, j]
    return float(np.linalg.norm(a @ x) / np.linalg.norm(x))


def _moved(q: Array, t1: Array, t2: Array, rate: float, diagonal: bool) -> Array:
    if diagonal:
        t1, t2 = np.diag(np.diag(t1)), np.diag(np.diag(t2))
        return q - rate * (t1 - t2) @ q / np.max(np.abs(t1 + t2))
    return q - rate * np.triu(t1 - t2) @ q / _lower_bound(t1 + t2)


def scale_by_psgd_kron(
    b1: float = 0.9,
    preconditioner_update_probability: Number | None = None,
    *,
    max_size_triangular: int = 8192,
    memory_save_mode: str | None = None,
    preconditioner_lr: float = 0.1,
    preconditioner_init_scale: float = 1.0,
    probe: str | Callable[[int, tuple[int, ...]], Array] = "expected",
) -> Rule:
    """Li, arXiv:1512.04202, in the form of psgd_jax's `kron`.

    `probe` gives the noise at a count for a shape, or is "expected": the mean over all noise,
    written out with A, B, and the factors as full matrices, the diagonal ones too.
    """
    often = preconditioner_update_probability
    often = precond_update_prob_schedule() if often is None else often
    rate = preconditioner_lr
    delta = np.sqrt(np.finfo(np.float32).eps)

    def is_diagonal(shape: tuple[int, ...], axis: int) -> bool:
        length = shape[axis]
        longest = 0 if shape[0] > shape[1] else 1
        by_mode = {None: False, "one_diag": axis == longest, "all_diag": True}[memory_save_mode]
        return by_mode or length == 1 or length > max_size_triangular

    def step(g: Array, p: Array, t: int, state: State) -> Array:
        m = average(g, state, "m", b1) / (1 - b1 ** (t + 1))
        first = [preconditioner_init_scale**0.5 * np.eye(n, dtype=g.dtype) for n in g.shape]
        left, right = state.get("q", first)
        state["waited"] = state.get("waited", 0) + 1
        if state["waited"] * at(often, t) >= 1 - 1e-9:
            state["waited"] = 0
            size = delta * np.mean(np.abs(m))
            li, ri = np.linalg.inv(left), np.linalg.inv(right)
            if probe == "expected":
                a = left @ m @ right.T
                found = [
                    a @ a.conj().T + size**2 * np.linalg.norm(right) ** 2 * left @ left.conj().T,
                    a.T @ a.conj() + size**2 * np.linalg.norm(left) ** 2 * right @ right.conj().T,
                ]
                wanted = [
                    np.linalg.norm(ri) ** 2 * li.conj().T @ li,
                    np.linalg.norm(li) ** 2 * ri.conj().T @ ri,
                ]
            else:
                assert callable(probe)
                v = probe(t, g.shape)
                a = left @ (m + size * v) @ right.T
                b = li.conj().T @ v @ ri.conj()
                found = [a @ a.conj().T, a.T @ a.conj()]
                wanted = [b @ b.conj().T, b.T @ b.conj()]
            left, right = [
                _moved(q, t1, t2, rate, is_diagonal(g.shape, axis))
                for axis, (q, t1, t2) in enumerate(zip((left, right), found, wanted, strict=True))
            ]
        state["q"] = left, right
        u = left.conj().T @ left @ m @ (right.conj().T @ right).T
        return u / max(1.0, np.sqrt(np.mean(np.abs(u) ** 2)) / 1.1)

    return each(step)


def psgd_kron(
    learning_rate: Number,
    b1: float = 0.9,
    weight_decay: Number = 0.0,
    preconditioner_update_probability: Number | None = None,
    *,
    fallback: Rule | None = None,
    **kwargs: Any,
) -> Rule:
    """Li, arXiv:1512.04202, in the form of psgd_jax's `kron`; vectors have Adam."""
    rule = scale_by_psgd_kron(b1, preconditioner_update_probability, **kwargs)
    return with_others(rule, learning_rate, weight_decay, fallback=fallback)
