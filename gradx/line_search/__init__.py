"""Line searches: how far to go in the direction that the updates say.

May import: `pieces`, `combinators`, `lift` and what is below.
"""
