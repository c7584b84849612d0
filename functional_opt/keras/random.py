"""Random numbers whose state is a variable, so that they change from call to call in compiled functions too.

The functions have the signatures of `keras.random`. `seed` says where the randomness comes from:

- None: from one generator for the process, which `set_random_seed` sets;
- an int: the same numbers at each call;
- a `SeedGenerator`: other numbers at each call, from a state that belongs to the script;
- a key of `jax.random`: the numbers of that key.

They are `jax.random`'s numbers, not those of TensorFlow for the same seed.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from ..core.ranges import Integer, Range, described, number
from .variables import recording
from .variables.recording import BUSY
from .variables.variable import Variable

Seed = Any
"""None, an int, a `SeedGenerator` or a key of `jax.random`."""
SEEDS = Integer("[0, 4294967295]")


class SeedGenerator:
    """Makes a new key for each draw, from a seed and a count of draws, which are kept in the variable `state`.

    `keras.function`, `make_train_step` and optimizers carry the state as they carry any variable. To go on where a
    run stopped, save `state` and assign it.

    Args:
        seed: a whole number in [0, 2³²); None takes one from the operating system.
        name: the first part of the name of `state`.

    Raises TypeError or ValueError for another seed.

    >>> generator = SeedGenerator(0)
    >>> normal((2,), seed=generator).tolist() == normal((2,), seed=generator).tolist()
    False
    >>> generator.state
    Variable('seed_generator/seed_generator_state', shape=(2,), dtype=uint32, value=[0, 2])
    """

    def __init__(self, seed: int | None = None, name: str = "seed_generator"):
        self.name = name
        self._initial = secrets.randbits(32) if seed is None else _as_int("seed", seed)
        with recording.paused():
            start = np.array([self._initial, 0], np.uint32)
            self.state = Variable(start, trainable=False, name=f"{name}/seed_generator_state")

    def next(self) -> jax.Array:
        """Returns a key for one draw, and counts it.

        Raises RuntimeError inside `jax.jit` and the like, where the count could not go on.
        """
        with BUSY.lock:
            state = self.state.value
            after = state + np.array([0, 1], np.uint32)
            if isinstance(after, core.Tracer) and not recording.may_assign():
                raise RuntimeError(
                    f"{self.state.name} cannot count a draw inside of jax.jit, jax.lax.scan or the like: each call "
                    "would draw the same numbers. Compile with keras.function or make_train_step, draw before, or "
                    "pass a key of jax.random as `seed`"
                )
            self.state.assign(after)
        return jax.random.fold_in(jax.random.key(state[0]), state[1])

    def get_config(self) -> dict[str, Any]:
        """Returns the seed and the name, as plain JSON."""
        return {"seed": self._initial, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SeedGenerator":
        """Returns the generator that a config describes, before its first draw."""
        return cls(**config)


_of_process: list[SeedGenerator] = []  # the generator that a seed of None stands for, once it is needed


def _global_generator(seed: int | None = None) -> SeedGenerator:
    with BUSY.lock:
        if not _of_process:
            _of_process.append(SeedGenerator(seed, "global_seed_generator"))
        return _of_process[0]


def set_random_seed(seed: int) -> None:
    """Sets the generator that draws without a seed use. Functions that are compiled already follow.

    Raises TypeError or ValueError unless `seed` is a whole number in [0, 2³²).

    >>> set_random_seed(1)
    >>> x = uniform((3,))
    >>> set_random_seed(1)
    >>> x.tolist() == uniform((3,)).tolist()
    True

    Differs from `keras.utils.set_random_seed` in that the generators of Python and NumPy stay as they are.
    """
    seed = _as_int("seed", seed)
    _global_generator(seed).state.assign(np.array([seed, 0], np.uint32))


def normal(
    shape: Sequence[int], mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: Seed = None
) -> jax.Array:
    """Draws from a normal distribution. `dtype` is float32 if None.

    >>> normal((2, 3), seed=0).shape
    (2, 3)
    """
    dtype = _floating("normal", dtype)
    x = jax.random.normal(_key(seed), tuple(shape), dtype)
    return x * jnp.asarray(stddev, dtype) + jnp.asarray(mean, dtype)


def truncated_normal(
    shape: Sequence[int], mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: Seed = None
) -> jax.Array:
    """Draws from a normal distribution without what is more than two standard deviations from its mean.

    >>> bool(abs(truncated_normal((1000,), seed=0)).max() <= 2)
    True
    """
    dtype = _floating("truncated_normal", dtype)
    x = jax.random.truncated_normal(_key(seed), -2.0, 2.0, tuple(shape), dtype)
    return x * jnp.asarray(stddev, dtype) + jnp.asarray(mean, dtype)


def uniform(
    shape: Sequence[int], minval: Any = 0.0, maxval: Any = 1.0, dtype: Any = None, seed: Seed = None
) -> jax.Array:
    """Draws floats uniformly from [minval, maxval). See `randint` for integers.

    >>> x = uniform((1000,), 2.0, 3.0, seed=0)
    >>> bool(x.min() >= 2), bool(x.max() < 3)
    (True, True)
    """
    dtype = _floating("uniform", dtype)
    return jax.random.uniform(_key(seed), tuple(shape), dtype, minval, maxval)


def randint(shape: Sequence[int], minval: Any, maxval: Any, dtype: Any = "int32", seed: Seed = None) -> jax.Array:
    """Draws integers uniformly from minval, ..., maxval − 1. Raises ValueError for a dtype that is not integer.

    >>> sorted(set(randint((100,), 0, 3, seed=0).tolist()))
    [0, 1, 2]
    """
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"randint takes an integer dtype, got {np.dtype(dtype).name}; uniform draws floats")
    return jax.random.randint(_key(seed), tuple(shape), minval, maxval, jax.dtypes.canonicalize_dtype(dtype))


def categorical(logits: Any, num_samples: int, dtype: Any = "int32", seed: Seed = None) -> jax.Array:
    """Draws classes by their logits, of shape (batch, classes); returns indices of shape (batch, num_samples).

    Raises ValueError for logits of another rank.

    >>> categorical(jnp.array([[0.0, 100.0], [100.0, 0.0]]), 3, seed=0).tolist()
    [[1, 1, 1], [0, 0, 0]]
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(f"logits must have the shape (batch, classes), got {logits.shape}")
    drawn = jax.random.categorical(_key(seed), logits[:, None, :], shape=(len(logits), num_samples))
    return drawn.astype(dtype)


def shuffle(x: Any, axis: int = 0, seed: Seed = None) -> jax.Array:
    """Returns the array in random order along an axis.

    >>> sorted(shuffle(jnp.arange(5), seed=0).tolist())
    [0, 1, 2, 3, 4]
    """
    return jax.random.permutation(_key(seed), jnp.asarray(x), axis)


def dropout(inputs: Any, rate: Any, noise_shape: Sequence[int | None] | None = None, seed: Seed = None) -> jax.Array:
    """Sets elements to 0 with probability `rate`, and divides the others by 1 − rate.

    Args:
        inputs: an array of floats.
        rate: a number in [0, 1).
        noise_shape: the shape of what is dropped together, which is broadcast to `inputs`: (batch, 1, features) drops
            the same features at all times. None, also as an entry, means the shape of `inputs`.

    >>> sorted(set(dropout(jnp.ones(100), 0.5, seed=0).tolist()))
    [0.0, 2.0]
    """
    x = jnp.asarray(inputs)
    Range("[0, 1)").check("rate", rate)
    noise = x.shape if noise_shape is None else tuple(noise_shape)
    if len(noise) != x.ndim:
        raise ValueError(f"noise_shape must have as many entries as inputs has axes, {x.ndim}, got {noise_shape}")
    noise = tuple(size if n is None else n for n, size in zip(noise, x.shape, strict=True))
    kept = jax.random.bernoulli(_key(seed), 1.0 - rate, noise)
    return jnp.where(kept, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


def _key(seed: Seed) -> jax.Array:
    """Returns the key of one draw."""
    if seed is None:
        seed = _global_generator()
    if isinstance(seed, SeedGenerator):
        return seed.next()
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) and seed.shape == ():
        return seed
    return jax.random.key(_as_int("seed", seed))


def _as_int(name: str, seed: Any) -> int:
    known = number(seed)
    if known is None or known is NotImplemented:
        raise TypeError(
            f"{name} must be a whole number in {SEEDS.interval}, a SeedGenerator, a key of jax.random or None, got "
            f"{described(seed)}"
        )
    return int(SEEDS.check(name, seed))


def _floating(name: str, dtype: Any) -> Any:
    dtype = jnp.dtype("float32" if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} takes a floating-point dtype, got {dtype.name}; randint draws integers")
    return dtype
