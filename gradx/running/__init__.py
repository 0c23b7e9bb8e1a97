"""What a training run needs besides its optimizer: to see what happens, to guard against bad steps,
to average parameters, and to change in the middle.

Each piece is a transformation, or a wrapper around any other one. Its memory is in the state, so it
works wherever the optimizer does.
"""
