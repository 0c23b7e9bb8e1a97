"""Lifts a rule for one array, or for one matrix, to a transformation of pytrees.

Here: passes over the leaves, and all that a rule does not have to know: masks, mapped axes, which
leaves are matrices, how these are batched and shared by devices, and the averages that
rules have in common. May import: `numbers`, `core`, `lowering`.
"""
