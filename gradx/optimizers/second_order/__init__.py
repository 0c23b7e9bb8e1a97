"""Optimizers that use the curvature of the loss, or an estimate of it."""
