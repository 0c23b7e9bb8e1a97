"""gradx against Optax and torch.optim: the same work, in one process, interleaved (README.md)."""
