"""Learning-rate-free optimizers, which find their step size themselves."""
