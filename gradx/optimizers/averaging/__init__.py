"""Schedule-free optimizers: they average the iterates instead of lowering the learning rate."""
