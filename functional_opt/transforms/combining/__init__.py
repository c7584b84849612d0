"""Combinations of transformations: in sequence, by leaf, by group, on a condition."""
