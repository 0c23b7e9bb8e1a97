"""Methods of the gradient, element by element: SGD, AdaGrad, RMSProp, Adam and their kin."""
