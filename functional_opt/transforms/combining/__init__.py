"""Transformations of transformations: one after another, by leaf, by group, on a condition."""
