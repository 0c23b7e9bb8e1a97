"""Optimizers that move every element by the same length, along a sign: signSGD, Signum, Lion."""
