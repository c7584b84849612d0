"""Wrappers around an optimizer: micro-steps, averages, guards, injected hyperparameters."""
