"""Low-precision storage: 8-bit states, Kahan sums, master weights, stochastic rounding."""
