"""Matrices: which axes of a leaf make one, orthogonalization, Kronecker factors."""
