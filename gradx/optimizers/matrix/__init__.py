"""Optimizers that treat a matrix as a whole: Muon, SOAP, Shampoo and their families."""
