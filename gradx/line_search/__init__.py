"""Line searches: how far to go in the direction of the updates.

May import: `pieces`, `combinators`, `lift` and what is below.
"""
