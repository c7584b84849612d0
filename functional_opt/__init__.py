"""Gradient-based optimizers for JAX: pure `(init, update)` pairs that are data, and a Keras facade over them."""
