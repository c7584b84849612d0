"""Gradient clipping: by value, by norm, by quantile, by past norms."""
