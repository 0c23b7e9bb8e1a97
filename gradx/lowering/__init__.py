"""What compilers need, and nothing else.

A rule says mathematics. Here stands what XLA has to be told beside it, so that it moves no more
bytes than the mathematics needs: functions named by what they do, each with its reason. `policy.py`
says on which targets each of them acts. Nothing here knows a rule, a state or a transformation; it
imports JAX alone. Rules, combinators and wrappers call these functions and know no compiler.
"""
