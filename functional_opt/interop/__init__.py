"""Other libraries' interfaces over our transformations. They are imported where they are used, never before."""

from .keras import to_keras as to_keras
