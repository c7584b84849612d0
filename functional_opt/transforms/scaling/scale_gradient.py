"""scale_gradient: multiplies the gradients of values that do not change."""

from typing import Any

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, cast_like


@jax.custom_jvp
def _scaled(x: Any, scale: Any) -> Any:
    return x


@_scaled.defjvp
def _scaled_jvp(primals: tuple, tangents: tuple) -> tuple:
    (x, scale), (tangent, _) = primals, tangents
    return _scaled(x, scale), cast_like(scale * tangent, x)


def scale_gradient(inputs: Tree, scale: Any) -> Tree:
    """Returns the inputs unchanged; gradients that pass through them are multiplied by `scale`.

    Args:
        inputs: a tree of arrays; integers have no gradient.
        scale: a number of any sign: 0 stops the gradient, −1 reverses it (Ganin & Lempitsky 2014,
            arXiv:1409.7495).

    >>> y, slope = jax.value_and_grad(lambda x: scale_gradient(x, -0.5) ** 2)(3.0)
    >>> float(y), float(slope)
    (9.0, -3.0)
    """
    return jax.tree.map(lambda x: _scaled(x, scale) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x, inputs)
