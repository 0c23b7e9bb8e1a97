"""Transformations made of others: in sequence, by group, in some steps, around another one.

A wrapper that is an algorithm of its own (Mechanic, schedule-free) is in `optimizers`. May import:
`lift` and what is below it.
"""
