"""Optimizers that scale the step of each leaf by its norms: LARS, LAMB, Fromage and NovoGrad."""
