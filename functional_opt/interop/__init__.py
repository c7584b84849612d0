"""Adapters that give transformations the interfaces of other libraries.

A library is imported only where it is used. Importing this package registers the optimizers of the facade and that of
`to_keras` with Keras, if Keras is already imported or KERAS_BACKEND is jax, so that `.keras` files with them load.
"""

from . import optax as optax
from . import orbax as orbax
from . import safetensors as safetensors
from . import torch as torch
from .keras import to_keras as to_keras
