"""Other libraries' interfaces over our transformations.

A library is imported where it is used. Importing this package registers `to_keras`'s optimizer with Keras, for
`.keras` files that have it, if Keras is imported already or KERAS_BACKEND=jax says that it will run on JAX.
"""

from .keras import to_keras as to_keras
