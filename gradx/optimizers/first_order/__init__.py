"""Optimizers that work element by element: SGD, AdaGrad, RMSProp, Adam and their relatives."""
