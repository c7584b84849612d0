"""Optimizers: one algorithm a file, with its state, its rule and its alias."""
