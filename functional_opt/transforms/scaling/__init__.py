"""Rescaling: learning rates, weight decay, momentum, norms, trust ratios."""
