"""Optimizers, one algorithm per file: its state, its rule and its alias."""
