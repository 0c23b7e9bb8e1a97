"""The competitors, gradx, Optax, PyTorch and HeavyBall: each does one step, and waits for it."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradx
from benchmarks import trees
from benchmarks.cases import Case, Torch

Tree = Any
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


class Runner(Protocol):
    calls: int  # steps in a run

    def run(self, repeat: int) -> None: ...

    def facts(self) -> dict[str, float | None]: ...

    def free(self) -> None: ...


class Work:
    """The parameters of a row and two gradients, on the host and on the device.

    Two gradients take turns, so that moving averages do not settle.
    """

    def __init__(self, tree: str, quick: bool) -> None:
        shapes = trees.TREES[tree](quick)
        self.n = trees.size(shapes)
        self.host_params = trees.normal(shapes, 0.02, seed=0)
        self.host_grads = [trees.normal(shapes, 0.01, seed=s) for s in (1, 2)]
        self.grads = [_on_device(g) for g in self.host_grads]

    def params(self) -> Tree:
        return _on_device(self.host_params)

    def free(self) -> None:
        _delete(self.grads)


def _on_device(tree: Tree) -> Tree:
    # A buffer that merely wraps the NumPy array could not be donated.
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def _delete(tree: Tree) -> None:
    for x in jax.tree.leaves(tree):
        x.delete()


# ---------------------------------------------------------------- JAX


def step_of(library: Any, case: Case, tx: optax.GradientTransformation) -> Step:
    """One step as a user writes it, in the order that lets XLA work in place."""

    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        extra = {} if case.extra is None else case.extra(params, grads)
        updates, state = tx.update(grads, state, params, **extra)
        return library.apply_updates(params, updates), state

    return step


def axpy(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """The least that an optimizer can do: 12 bytes of traffic a parameter."""
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), state


class JaxRunner:
    """A compiled step with donated parameters and state, and the state that it has reached."""

    def __init__(self, step: Step, state: Tree, work: Work, calls: int = 1) -> None:
        self.grads, self.n, self.calls = work.grads, work.n, calls
        # Copies: an init may hand out one buffer twice, and no buffer can be donated twice.
        self.params, self.state = work.params(), jax.tree.map(jnp.copy, state)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.compiled = jitted.lower(self.params, self.state, self.grads[0]).compile()

    def run(self, repeat: int) -> None:
        for i in range(self.calls):
            grads = self.grads[(repeat + i) % 2]
            self.params, self.state = self.compiled(self.params, self.state, grads)
        jax.block_until_ready((self.params, self.state))

    def facts(self) -> dict[str, float | None]:
        """Bytes a parameter, and the operations of a step.

        The bytes are temporaries, those touched by a step, those held in the state, and the least
        that a step can touch (gradients read; parameters and state read and written).
        """
        memory, cost = self.compiled.memory_analysis(), self.compiled.cost_analysis()
        touched = cost.get("bytes accessed") if isinstance(cost, dict) else None
        params, state = _bytes(self.params), _bytes(self.state)
        return {
            "temporaries": None if memory is None else memory.temp_size_in_bytes / self.n,
            "touched": None if touched is None else touched / self.n,
            "state": state / self.n,
            "flops": cost.get("flops") if isinstance(cost, dict) else None,
            "least": (_bytes(self.grads[0]) + 2 * (params + state)) / self.n,
        }

    def free(self) -> None:
        _delete((self.params, self.state))


def of_gradx(case: Case, work: Work) -> JaxRunner:
    """gradx's own step of a row."""
    tx = case.make(gradx)
    return JaxRunner(step_of(gradx, case, tx), tx.init(work.params()), work)


def _bytes(tree: Tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


# ---------------------------------------------------------------- PyTorch


def torch_device() -> str | None:
    """The device on which torch can do the same work as JAX; None if there is none."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if jax.default_backend() == "cpu":
        return "cpu"
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else None


class TorchRunner:
    """A torch.optim optimizer, given the same numbers."""

    def __init__(
        self, peer: Torch, how: dict[str, bool], work: Work, device: str, calls: int = 1
    ) -> None:
        import torch

        def tensors(tree: Tree) -> list[Any]:
            return [torch.from_numpy(np.copy(x)).to(device) for x in jax.tree.leaves(tree)]

        self.torch, self.device, self.clip, self.calls = torch, device, peer.clip, calls
        self.params = tensors(work.host_params)
        self.grads = [tensors(g) for g in work.host_grads]
        matrices = [p for p in self.params if peer.others is None or p.ndim == 2]
        self.optimizers = [getattr(torch.optim, peer.name)(matrices, **peer.arguments, **how)]
        if peer.others is not None:
            others = [p for p in self.params if p.ndim != 2]
            self.optimizers.append(getattr(torch.optim, peer.others)(others))

    def run(self, repeat: int) -> None:
        for i in range(self.calls):
            for p, g in zip(self.params, self.grads[(repeat + i) % 2], strict=True):
                p.grad = g
            if self.clip is not None:
                self.torch.nn.utils.clip_grad_norm_(self.params, self.clip, foreach=True)
            for optimizer in self.optimizers:
                optimizer.step()
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def facts(self) -> dict[str, float | None]:
        return {}

    def free(self) -> None:
        del self.params, self.grads, self.optimizers


class HeavyBallRunner(TorchRunner):
    """An uncompiled optimizer of HeavyBall for the matrices, and torch's AdamW for the rest."""

    def __init__(self, peer: tuple[str, Mapping[str, Any]], work: Work) -> None:
        import heavyball

        heavyball.utils.compile_mode = None
        super().__init__(Torch("AdamW", others="AdamW"), {}, work, "cpu")
        name, arguments = peer
        matrices = [p for p in self.params if p.ndim == 2]
        self.optimizers[0] = getattr(heavyball, name)(matrices, lr=1e-3, **arguments)


def torch_modes(peer: Torch) -> dict[str, dict[str, bool]]:
    """The ways in which the class can be run: fused, foreach, or plain if it has neither."""
    import torch

    arguments = inspect.signature(getattr(torch.optim, peer.name)).parameters
    modes = {f"torch {mode}": {mode: True} for mode in ("fused", "foreach") if mode in arguments}
    return modes or {"torch plain": {}}


# ---------------------------------------------------------------- a row


def competitors(
    case: Case, work: Work, modules: dict[str, Any], torch: bool, burst: int = 1
) -> dict[str, Runner]:
    """All competitors of a row; the axpy is in every row."""
    runners: dict[str, Runner] = {"axpy": JaxRunner(axpy, (), work, burst)}
    for name in case.libraries:
        tx = case.make(modules[name])
        state = tx.init(work.params())
        runners[name] = JaxRunner(step_of(modules[name], case, tx), state, work, case.calls * burst)
    device = torch_device() if torch and case.torch else None
    if case.torch is not None and device is not None:
        for mode, how in torch_modes(case.torch).items():
            runners[mode] = TorchRunner(case.torch, how, work, device, burst)
    return runners


def check(cases: Sequence[Case], modules: dict[str, Any]) -> None:
    """Makes every row once. Raises SystemExit with all rows that cannot be made."""
    problems = []
    for case in cases:
        for name in case.libraries:
            try:
                case.make(modules[name])
            except Exception as error:
                problems.append(f"{case.name}: {name}: {type(error).__name__}: {error}")
    if problems:
        raise SystemExit("these rows cannot be made:\n  " + "\n  ".join(problems))
