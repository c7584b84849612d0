"""Wrappers around a whole optimizer: micro-steps, averages, guards, injected hyperparameters."""
