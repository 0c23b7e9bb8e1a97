"""What a training run needs besides its optimizer: to see what happens, to guard against bad steps,
to average parameters, and to change in the middle.

Each piece is a transformation, or a wrapper around any other one, and keeps what it needs in the
state. So it costs nothing where it is not used, and works wherever the optimizer does.
"""
