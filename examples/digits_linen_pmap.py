"""Data-parallel training with Flax Linen's TrainState and `jax.pmap`: the mean is in the chain.

    python examples/digits_linen_pmap.py [--steps 300] [--seed 0] [--out examples/pictures]

Each of eight devices (virtual ones if there is no accelerator) sees an eighth of every batch. The
program checks that their replicas stay equal to the last bit, then trains on one device with the
whole batch, and compares.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

# Set before JAX is imported. The user's own flags come later, since the last one wins.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_force_host_platform_device_count=8", os.environ.get("XLA_FLAGS", "")]
)
# The size of XLA's thread pool. It is eight where there are fewer cores than devices, and then
# seven devices that wait at the mean can leave no thread for the eighth: the program hangs.
os.environ.setdefault("NPROC", "16")

import jax
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

import gradx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"


class ConvNet(nn.Module):
    """Two convolutions, each followed by a group norm: 8x8 -> 4x4 -> ten logits."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images[..., None]
        for width, stride in ((32, 1), (64, 2)):
            # The norm has a bias of its own, so the convolution needs none.
            x = nn.Conv(width, (3, 3), stride, use_bias=False)(x)
            x = nn.gelu(nn.GroupNorm(8)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Train images, test images, train labels, test labels; the same split in every run."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    return train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)


def train_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    """One device's part of a step, written just like a step on a single device."""

    def loss_of(params: Any) -> jax.Array:
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


def train(
    tx: gradx.Transform, devices: int, steps: int, batch: int, seed: int
) -> tuple[Any, np.ndarray, float]:
    """Parameters, losses and test accuracy after training on this many devices."""
    train_x, test_x, train_y, test_y = digits()
    model = ConvNet()

    def create(seed: jax.Array) -> TrainState:
        params = model.init(jax.random.key(seed), train_x[:1])["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    on = {"axis_name": "batch", "devices": jax.devices()[:devices]}
    state = jax.pmap(create, **on)(np.full(devices, seed))  # one seed: they begin as replicas
    step = jax.pmap(train_step, donate_argnums=0, **on)

    rng, losses = np.random.default_rng(seed), []
    for _ in trange(steps, desc=f"devices: {devices}", unit="step"):
        # The rows and their order do not depend on the number of devices.
        rows = rng.choice(len(train_x), (devices, batch // devices), replace=False)
        # The outer columns are blank, so rolling the batch by one is a cheap augmentation.
        x = np.roll(train_x[rows], rng.integers(-1, 2), axis=-1)
        state, loss = step(state, x, train_y[rows])
        losses.append(np.mean(loss))

    check_replicas(state)
    params = jax.tree.map(lambda x: np.asarray(x)[0], state.params)
    right = model.apply({"params": params}, test_x).argmax(-1) == test_y
    return params, np.asarray(losses), float(right.mean())


def check_replicas(state: TrainState) -> None:
    """Raises if a parameter or a moment of any device differs in a single bit from the first."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        first, *others = (replica.tobytes() for replica in np.asarray(leaf))
        if any(other != first for other in others):
            raise RuntimeError(f"the replicas differ at {jax.tree_util.keystr(path)}")


def main(steps: int = 300, batch: int = 128, seed: int = 0, out: Path = PICTURES) -> float:
    """Trains on all devices and on one, and returns the difference of the test accuracies."""
    started = time.perf_counter()
    tx = gradx.chain(
        # First, so that the norm and the moments are those of the whole batch's gradient, and
        # every device takes the same step without ever sending a parameter.
        gradx.pmean("batch"),
        gradx.clip_by_global_norm(1.0),
        gradx.adamw(gradx.warmup_cosine_decay_schedule(0.0, 5e-3, max(1, steps // 10), steps)),
    )
    print(repr(tx))
    devices = min(8, jax.local_device_count())
    params, losses, accuracy = train(tx, devices, steps, batch, seed)
    params_1, losses_1, accuracy_1 = train(tx, 1, steps, batch, seed)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, params_1)
    labels = (f"{devices} devices: {accuracy:.2%}", f"one device: {accuracy_1:.2%}")
    draw(losses, losses_1, labels, out / "digits_linen_pmap.png")
    print(
        f"digits_linen_pmap: seed {seed}, {steps} steps, test accuracy {accuracy:.2%} on {devices} "
        f"devices (replicas equal to the bit), {accuracy_1:.2%} on one, largest difference of a "
        f"parameter {max(jax.tree.leaves(gaps)):.1e}, {time.perf_counter() - started:.1f} s"
    )
    return accuracy - accuracy_1


def draw(many: np.ndarray, one: np.ndarray, labels: tuple[str, str], path: Path) -> None:
    figure, (top, bottom) = plt.subplots(
        2, figsize=(8, 5), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    top.semilogy(one, lw=4, color="#ddcc77", label=labels[1])
    top.semilogy(many, lw=1, color="#4477aa", label=labels[0])
    top.set_title("training loss on the same batches", loc="left")
    top.legend(frameon=False, title="test accuracy", alignment="left")
    bottom.plot(many - one, lw=1, color="#cc6677")  # from summing in another order, nothing else
    bottom.set_title("difference of the two", loc="left")
    bottom.set_xlabel("step")
    for ax in (top, bottom):
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the picture")
    main(**vars(parser.parse_args()))
