"""power_iteration and matrix_inverse_pth_root against NumPy's eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ..helpers import assert_close


def symmetric(eigenvalues):
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(eigenvalues), len(eigenvalues))))
    return (q * eigenvalues) @ q.T, q


@pytest.mark.parametrize("eigenvalues", [[3.0, 2.0, 0.0], [-4.0, 3.0, 1.0], [0.5]])
def test_the_largest_eigenvalue(eigenvalues):
    a, q = symmetric(np.array(eigenvalues))
    value, vector = jax.jit(fo.power_iteration)(jnp.asarray(a, "float32"))
    np.testing.assert_allclose(value, eigenvalues[0], rtol=1e-5)
    np.testing.assert_allclose(abs(q[:, 0] @ vector), 1.0, rtol=1e-5)
    peer, _ = optax.power_iteration(jnp.asarray(a, "float32"))
    np.testing.assert_allclose(value, peer, rtol=1e-5)


def test_of_a_function_on_trees():
    value, vector = fo.power_iteration(
        lambda v: {"a": 2 * v["a"], "b": v["b"]}, v0={"a": jnp.ones(3), "b": jnp.ones([], "bfloat16")}
    )
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)
    assert_close(vector, {"a": np.full(3, 3**-0.5), "b": np.zeros([])}, atol=1e-5)
    with pytest.raises(ValueError, match="v0 must be given if matrix is a function"):
        fo.power_iteration(lambda v: v)


def test_of_complex_and_of_nothing():
    value, _ = fo.power_iteration(jnp.array([[2.0, 1j], [-1j, 2.0]]))
    np.testing.assert_allclose(value, 3.0, rtol=1e-5)
    value, vector = fo.power_iteration(jnp.zeros((2, 2)))
    assert value == 0 and np.isfinite(vector).all()


@pytest.mark.parametrize("p", [1, 2, 3, 4, 6])
def test_the_root(p):
    eigenvalues = 5.0 * 10.0 ** -np.linspace(0, 3, 8)
    a, q = symmetric(eigenvalues)
    a = jnp.asarray(a, "float32")
    root, error = jax.jit(fo.matrix_inverse_pth_root, static_argnums=1)(a, p)
    expected = (q * (eigenvalues + 5e-6) ** (-1 / p)) @ q.T
    np.testing.assert_allclose(root, expected, atol=2e-5 * abs(expected).max())
    assert error < 1e-5
    if p in (1, 2, 4):
        np.testing.assert_allclose(root, optax.matrix_inverse_pth_root(a, p)[0], atol=2e-5 * abs(expected).max())


def test_the_root_where_single_elements_hide_the_error():
    """The element of largest error can grow while M comes nearer to I."""
    for turn in np.linspace(0, np.pi / 2, 7):
        q = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        root, error = fo.matrix_inverse_pth_root(jnp.asarray((q * [37.0, 37e-5]) @ q.T, "float32"), 2)
        assert error < 1e-5
        np.testing.assert_allclose(np.linalg.norm(root, 2), (37e-5 + 37e-6) ** -0.5, rtol=0.05)


def test_what_is_not_square():
    for fn in (fo.power_iteration, lambda x: fo.matrix_inverse_pth_root(x, 2)):
        with pytest.raises(ValueError, match=r"matrix must have the shape \(n, n\), got \(2, 3\)"):
            fn(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"p must be in \[1, inf\)"):
        fo.matrix_inverse_pth_root(jnp.eye(2), 0)
