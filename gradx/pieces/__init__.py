"""Pieces of chains: clips, scales, norms, weight decay, averages, noise, measurements.

A piece does one thing to the updates and is not an optimizer by itself. May import: `combinators`,
`lift` and what is below.
"""
