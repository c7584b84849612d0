"""Randomness: gradient noise, Hutchinson's estimator of the Hessian's diagonal."""
