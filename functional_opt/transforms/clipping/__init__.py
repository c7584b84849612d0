"""Bounds on gradients: by value, by norm, by quantile, by their history."""
