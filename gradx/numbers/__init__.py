"""Where a number comes from: a constant, a schedule, the state, the leaf's path, or the call.

Here: sources, how they are checked and resolved in each step, live values, and `h`, through which a
rule reads them. May import: `core`, `lowering`.
"""
