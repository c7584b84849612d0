"""Leaves as matrices: their axes, orthogonalization, Kronecker factors."""
