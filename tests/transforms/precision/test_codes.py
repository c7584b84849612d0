"""codes: what encoding guarantees for every element, and that codes and scales are all there is to know."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import codes

SHAPES = [(), (7,), (5, 3), (3, 3, 40), (64, 300), (64, 1, 33), (128, 16, 17)]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def stored(x, bits, block_size, signed):
    encoded = codes.encode(x, bits, block_size, signed)
    return encoded, codes.decode(*encoded, bits, signed)


def spread(decades, n=4096):
    """Numbers of sizes that differ by so many decades, the largest 1.

    With the borders between octaves, and between equal steps and octaves, among them.
    """
    rng = np.random.default_rng(0)
    sizes = np.concatenate([[1.0], 10.0 ** rng.uniform(-decades, 0, n - 65), 2.0 ** -np.arange(64)])
    return (sizes * rng.choice([-1, 1], n)).astype(np.float32)


def test_8_bits_signed():
    x = spread(8)
    (c, scale), y = stored(x, 8, x.size, True)
    error, size = np.abs(y - x), np.abs(x)
    assert c.dtype == jnp.int8 and scale.tolist() == [1.0]
    assert np.all(error <= 1 / 127)
    assert np.all(error[size >= 7e-7] <= 0.1251 * size[size >= 7e-7])
    assert np.all(np.abs(y[size < 7e-7]) <= 7.2e-7)
    assert np.all(y * x >= 0)


def test_8_bits_unsigned():
    v = np.abs(spread(14))
    (c, _), y = stored(v, 8, v.size, False)
    error = np.abs(y - v)
    assert c.dtype == jnp.uint8 and np.all(y > 0)
    assert np.all(error <= 1 / 127)
    assert np.all(error[v >= 2e-13] <= 0.1001 * v[v >= 2e-13])
    assert np.all(y[v < 2e-13] <= 2.2e-13)


@pytest.mark.parametrize("signed", [True, False])
def test_4_bits(signed):
    x = spread(4) if signed else np.abs(spread(4))
    (c, _), y = stored(x, 4, x.size, signed)
    assert c.dtype == jnp.uint8 and c.size == x.size // 2
    assert np.all(np.abs(y - x) <= (1 / 7 if signed else 1 / 16))
    assert np.all(y > 0) or signed


def test_companded():
    x = spread(8)
    c, scale = codes.encode(x, 8, x.size, code="companded")
    error = np.abs(codes.decode(c, scale, code="companded") - x)
    size = np.abs(x)
    assert c.dtype == jnp.int8 and scale.tolist() == [1.0]
    assert np.all(error <= 1.001 * (1 + size) ** 2 / 508 + 1e-4)  # half the steps of 2y / (1 + y)
    c, scale = codes.encode(size, 8, x.size, signed=False, code="companded")
    v = codes.decode(c, scale, signed=False, code="companded")
    assert c.dtype == jnp.uint8 and np.all(v > 0)
    assert np.all(np.abs(v - size) <= np.sqrt(size) / 255 + 255**-2)
    blocks = codes.encode(np.ones((2, 96), np.float32), code="companded")[1]
    assert blocks.shape == (2, 3)
    for call in (codes.encode, lambda *x, **how: codes.decode(*codes.encode(*x), **how)):
        with pytest.raises(ValueError, match="code='companded' needs bits=8, got bits=4"):
            call(x, 4, code="companded") if call is codes.encode else call(x, 4, bits=4, code="companded")


def test_a_mean_without_gradients_decays_to_zero():
    x = spread(8)

    @jax.jit
    def decayed(x):
        last = x.at[0].set(0)
        return jax.lax.fori_loop(0, 220, lambda _, m: stored((0.9 * m).at[0].set(1.0), 8, 4096, True)[1], last)

    assert np.all(np.asarray(decayed(jnp.asarray(x)))[1:] == 0)


@pytest.mark.parametrize("bits, signed", [(8, True), (4, True), (4, False)])
def test_codes_and_scales_know_the_shape(bits, signed):
    for i, shape in enumerate(SHAPES):
        x = jnp.asarray(np.abs(np.random.default_rng(i).standard_normal(shape)), jnp.float32)
        (c, scale), y = stored(x, bits, None, signed)
        assert y.shape == shape and scale.ndim == len(shape) and c.size <= x.size
        (again, same), z = stored(y, bits, None, signed)
        for first, second in ((c, again), (scale, same), (y, z)):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "c, scale, message",
    [
        (jnp.zeros(8, jnp.uint8), jnp.ones(1), "must be int8 with a scale of float32, got uint8"),
        (jnp.zeros(8, jnp.int8), jnp.ones(1, jnp.float16), "with a scale of float16"),
        (jnp.zeros((4, 8), jnp.int8), jnp.ones((2, 1)), r"shape \(4, 8\) and scales of shape \(2, 1\)"),
        (jnp.zeros((4, 8), jnp.int8), jnp.ones(4), "not of the same array"),
    ],
)
def test_refuses_what_are_no_codes(c, scale, message):
    with pytest.raises(ValueError, match=message):
        codes.decode(c, scale)


RANK_1 = [(7, 5), (64, 300), (6, 1, 33), (128, 3, 17), (1, 8)]


@functools.partial(jax.jit, static_argnums=1)
def stored_in_rank_1(x, signed=False):
    encoded = codes.encode(x, 4, signed=signed, scales="rank1")
    return encoded, codes.decode(*encoded, 4, signed)


@pytest.mark.parametrize("shape", RANK_1, ids=str)
def test_rank_1_scales(shape):
    """The smallest of the maxima along each axis scales an element, as in the authors' code."""
    v = np.float32(10.0 ** np.random.default_rng(1).uniform(-6, 3, shape))
    (c, scale), decoded = stored_in_rank_1(v)
    along = [np.max(v, tuple(j for j in range(v.ndim) if j != i), keepdims=True, initial=0) for i in range(v.ndim)]
    for mine, theirs in zip(scale, along, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5)
    smallest = functools.reduce(np.minimum, along)
    assert decoded.shape == shape and c.dtype == jnp.uint8 and c.size <= (v.size + v.size // shape[-1]) / 2
    assert np.all(np.abs(decoded - v) <= smallest / 16 * (1 + 1e-4)) and np.all(decoded > 0)
    (again, same), twice = stored_in_rank_1(decoded)
    for first, second in ((c, again), (decoded, twice), *zip(scale, same, strict=True)):
        np.testing.assert_array_equal(first, second)


def test_columns_of_large_elements_leave_those_beside_them_alone():
    rng = np.random.default_rng(2)
    v = np.float32(rng.uniform(0.5, 1, (256, 256)))
    v[:, ::16] *= 1e4
    small = v < 2

    def error(scales):
        y = codes.decode(*codes.encode(v, 4, signed=False, scales=scales), 4, signed=False)
        return np.mean(np.abs(y - v)[small] / v[small])

    assert error("rank1") < 0.04 and error("blocks") > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rank_1_scales_show_what_is_not_finite(bad):
    v = np.ones((4, 6), np.float32)
    v[1, 2] = bad
    _, decoded = stored_in_rank_1(v)
    assert not np.isfinite(decoded[1, 2])
    assert np.all(np.delete(np.delete(decoded, 1, 0), 2, 1) == 1)


def test_rank_1_scales_refuse_what_they_cannot_scale():
    with pytest.raises(ValueError, match="scales='rank1' needs bits=4, got bits=8"):
        codes.encode(jnp.ones((4, 4)), 8, signed=False, scales="rank1")
    for x, signed in ((jnp.ones((4, 4)), True), (jnp.ones(4), False)):
        with pytest.raises(ValueError, match="scales='rank1' needs signed=False and at least two axes"):
            codes.encode(x, 4, signed=signed, scales="rank1")
    c, scale = codes.encode(jnp.ones((4, 6)), 4, signed=False, scales="rank1")
    for wrong in (scale[:1], scale[::-1], (scale[0], jnp.ones((1, 8)))):
        with pytest.raises(ValueError, match="are not of the same array"):
            codes.decode(c, wrong, 4, signed=False)
