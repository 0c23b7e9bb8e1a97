"""Collectives and shardings: what crosses devices."""
