"""hutchinson_estimator_diag_hessian: the diagonal of the Hessian, from one random vector per step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import is_nothing, map_leaves, widen_params, zip_leaves
from ...core.model_trees import differentiable
from ...core.slots import RandomKey
from ...core.transformation import GradientTransformation, needs_params, transformation
from .noise import Key, key_data, key_in, stored_like


class HutchinsonState(NamedTuple):
    """`key`: the data (uint32) of the next step's key."""

    key: RandomKey


@transformation
class hutchinson_estimator_diag_hessian(GradientTransformation):
    """Estimates the diagonal of the Hessian H of `obj_fn` with random signs z: u = z ⊙ Hz.

    The estimate is unbiased; its variance comes from the off-diagonal elements. `update` takes `obj_fn`: the loss on
    this step's batch, as a function of the params alone. It gets 16-bit params as float32.

    Args:
        random_seed: the key of the first step, a key of `jax.random` or an integer; the seed 0 if None.

    Raises ValueError without params or obj_fn.

    Hutchinson 1990, Communications in Statistics 19; Liu et al. 2023, arXiv:2305.14342.

    >>> tx, w = hutchinson_estimator_diag_hessian(), jnp.array([3.0, 4.0])
    >>> tx.update(w, tx.init(w), w, obj_fn=lambda w: w[0] ** 2 + 2 * w[1] ** 2)[0].tolist()
    [2.0, 4.0]

    Draws the same numbers as Optax. Differs from it: the state holds the key as plain numbers, in its own buffer.
    """

    random_seed: Key = None

    def init(self, params):
        return HutchinsonState(key_data(self.random_seed))

    def update(self, updates, state, params=None, *, obj_fn: Callable[[Any], Any] | None = None, **extra):
        needs_params(params, self)
        if obj_fn is None:
            raise ValueError(
                "hutchinson_estimator_diag_hessian needs the loss: call update(updates, state, params, obj_fn=f) "
                "with f(params) a scalar"
            )
        key, now = jax.random.split(key_in(state.key, self.random_seed))
        at, among_params, alone = differentiable(widen_params(params), updates)
        keys = jax.random.split(now, max(len(at), 1))
        _, rows = zip_leaves((updates, alone(at)), ("updates", "params"))
        trained = [not is_nothing(u) for u, p in rows if p is not None]  # other leaves are constants of the loss
        z = [_signs(k, p) if yes else jnp.zeros_like(p) for k, p, yes in zip(keys, at, trained, strict=False)]
        _, hz = jax.jvp(jax.grad(lambda some: obj_fn(among_params(some))), (at,), (z,))
        read = alone(z), alone(hz)
        estimate = map_leaves(lambda g, z, hz: (z * hz).real, updates, read=read, params=params)
        return estimate, HutchinsonState(stored_like(key, state.key))


def _signs(key: jax.Array, p: jax.Array) -> jax.Array:
    """Returns random signs, sharded like p; for a complex p, random numbers of modulus 1."""
    one = jnp.ones_like(p)
    if not jnp.iscomplexobj(p):
        return one * jax.random.rademacher(key, p.shape, p.dtype)
    x, y = jax.random.rademacher(key, (2, *p.shape), p.real.dtype)
    return one * (x + 1j * y) / 2**0.5
