"""Gradient transformers: one idea a file."""
