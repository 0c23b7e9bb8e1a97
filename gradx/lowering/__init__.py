"""What compilers need, and nothing else.

A rule says mathematics. These functions tell XLA what it needs beside it, so that it moves no more
bytes than necessary. Each is named by what it does, and gives its reason. `policy.py` says on which
targets each of them acts. Nothing here knows a rule, a state or a transformation; it imports JAX
alone. Rules, combinators and wrappers call these functions and know no compiler.
"""
