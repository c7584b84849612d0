"""Storage in few bits: 8-bit states, Kahan sums, master weights, stochastic rounding."""
