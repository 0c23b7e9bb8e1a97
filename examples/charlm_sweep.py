"""Eight learning rates in one program: a character transformer, swept with `jax.vmap`.

    python examples/charlm_sweep.py [--steps 800] [--seed 0] [--out examples/pictures]

The text is what `help()` prints about Python's own topics: it comes with CPython. The learning rate
is a live value, a number in the optimizer's state. So eight states differ in one number, and one
compiled step trains eight models side by side on the same batches. This takes a few minutes on two
CPU cores.
"""

import argparse
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

import gradx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"
WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 2, 64
LOOKBACK = 4  # characters embedded together, so that no attention is spent on the last few


class Transformer(nn.Module):
    vocabulary: int

    @nn.compact
    def __call__(self, seen: jax.Array) -> jax.Array:
        x = self.param("position", nn.initializers.zeros, (CONTEXT, WIDTH))
        for back in range(LOOKBACK):
            table = nn.Embed(self.vocabulary, WIDTH, embedding_init=nn.initializers.normal(1.0))
            x = x + jnp.pad(table(seen[:, : CONTEXT - back]), ((0, 0), (back, 0), (0, 0)))
        for _ in range(LAYERS):
            attention = nn.MultiHeadDotProductAttention(HEADS)
            x = x + attention(nn.RMSNorm()(x), mask=nn.make_causal_mask(seen))
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))
        return nn.Dense(self.vocabulary, kernel_init=nn.initializers.zeros, name="head")(
            nn.RMSNorm()(x)
        )


def corpus() -> tuple[np.ndarray, np.ndarray, int]:
    """Windows of the first nine tenths, batches of windows of the rest, number of characters."""
    text = "".join(topics[name] for name in sorted(topics))
    vocabulary, codes = np.unique(list(text), return_inverse=True)
    train, valid = np.split(codes, [len(codes) * 9 // 10])
    windows = np.lib.stride_tricks.sliding_window_view(valid, CONTEXT + 1)[::CONTEXT]
    batches = windows[: len(windows) // 64 * 64].reshape(-1, 64, CONTEXT + 1)
    return np.lib.stride_tricks.sliding_window_view(train, CONTEXT + 1), batches, len(vocabulary)


def main(steps: int = 800, chunk: int = 20, seed: int = 0, out: Path = PICTURES) -> float:
    """Trains at all rates at once, and returns the best validation loss in nats a character."""
    started, batch = time.perf_counter(), 16
    train_windows, valid_batches, vocabulary = corpus()
    model = Transformer(vocabulary)
    params = model.init(jax.random.key(seed), train_windows[:1, :-1])

    shape = gradx.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 10), steps)
    peak = gradx.tunable(1e-3, name="learning_rate")
    tx = gradx.chain(
        gradx.clip_by_global_norm(1.0),
        gradx.adamw(gradx.scaled(peak, shape), b2=0.98, weight_decay=0.01),
    )
    print(repr(tx))

    state, rates = tx.init(params), jnp.geomspace(5e-4, 6e-2, 8)
    states = jax.vmap(lambda rate: gradx.set_hyperparams(state, learning_rate=rate))(rates)
    models = jax.tree.map(lambda x: jnp.stack([x] * len(rates)), params)
    compilations = 0

    def loss_of(params: Any, windows: jax.Array) -> jax.Array:
        logits = model.apply(params, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def train(params: Any, state: Any, windows: jax.Array) -> tuple[Any, Any, jax.Array]:
        """A chunk of steps of one model, and the loss before each of them."""
        nonlocal compilations
        compilations += 1  # Python comes here only when JAX traces the function to compile it

        def step(carry: tuple[Any, Any], windows: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            params, state = carry
            loss, grads = jax.value_and_grad(loss_of)(params, windows)
            updates, state = tx.update(grads, state, params)
            return (gradx.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), windows)
        return params, state, losses

    # One model's program, mapped over models and states; the batches are the same for all.
    train_all = jax.jit(jax.vmap(train, in_axes=(0, 0, None)), donate_argnums=(0, 1))
    valid_all = jax.jit(jax.vmap(loss_of, in_axes=(0, None)))

    rng, losses = np.random.default_rng(seed), []
    with tqdm(total=steps, desc=f"{len(rates)} rates", unit="step") as progress:
        while progress.n < steps:
            windows = train_windows[rng.integers(len(train_windows), size=(chunk, batch))]
            models, states, chunk_losses = train_all(models, states, windows)
            losses.append(np.asarray(chunk_losses))
            progress.update(chunk)
            progress.set_postfix(best=f"{losses[-1].mean(1).min():.3f} nats")

    valid = np.mean([valid_all(models, windows) for windows in valid_batches], axis=0)
    rates = np.asarray(gradx.hyperparams(states)["learning_rate"])
    draw(rates, np.concatenate(losses, axis=1), valid, out / "charlm_sweep.png")
    best = int(np.nanargmin(valid))
    print(
        f"charlm_sweep: seed {seed}, {progress.n} steps at {len(rates)} rates, compilations of the "
        f"step: {compilations}, best validation loss {valid[best]:.3f} nats a character at "
        f"learning rate {rates[best]:.1e}, {time.perf_counter() - started:.1f} s"
    )
    return float(valid[best])


def draw(rates: np.ndarray, losses: np.ndarray, valid: np.ndarray, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(rates)))
    span = max(1, losses.shape[1] // 40)  # of a running mean, so that the curves can be told apart
    for curve, color in zip(losses, colors, strict=True):
        smooth = np.convolve(curve, np.ones(span) / span, mode="valid")
        left.plot(np.arange(len(smooth)) + span, smooth, lw=1.2, color=color)
    left.set(xlabel="step", title="training loss, colours as on the right", ylim=(None, 3.5))
    right.semilogx(rates, valid, lw=1, color="#888888", zorder=1)
    right.scatter(rates, valid, c=colors, s=45, zorder=2)
    right.set(xlabel="learning rate", title=f"validation loss, best {np.nanmin(valid):.3f}")
    left.set_ylabel("nats a character")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    for ax in figure.axes:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps (%(default)s)")
    parser.add_argument("--chunk", type=int, default=20, help="steps a call (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the picture")
    main(**vars(parser.parse_args()))
