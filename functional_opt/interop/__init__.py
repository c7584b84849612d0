"""Adapters that give transformations the interfaces of other libraries.

A library is imported only where it is used. Importing this package registers the optimizer of `to_keras` with Keras,
so that `.keras` files with it can be loaded, if Keras is already imported or KERAS_BACKEND is jax.
"""

from .keras import to_keras as to_keras
