"""PSGD Kron beyond the table of cases: leaves of more axes, what is fitted when, and that it whitens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..conformance import references_matrix as ref
from ..helpers import structs, train_compiled

RNG = np.random.default_rng(0)
RAW = {"momentum_into_precond_update": False, "max_update_rms": None, "precond_init_scale": 0.5}


@pytest.mark.parametrize(
    "shape, args",
    [
        ((2, 3, 2), {}),
        ((3, 4), RAW),
        ((3, 4), {"max_size_triangular": 3, "key": 7}),
        ((3,), {"min_ndim_triangular": 1}),
    ],
)
def test_factors_of_every_kind(shape, args):
    w, grads = RNG.standard_normal(shape), RNG.standard_normal((8, *shape))
    with jax.enable_x64(True):
        params, _, _ = train_compiled(fo.psgd_kron(0.1, **args), jnp.asarray(w), jnp.asarray(grads))
        expected = np.stack(list(ref.psgd_kron(w, grads, 0.1, **args)))
        np.testing.assert_allclose(params, expected, rtol=1e-9)


def test_the_updates_become_white():
    """Gradients of which one direction is ten times as long as the others."""
    tx = fo.scale_by_psgd_kron(b1=0.0, max_update_rms=None)
    mix = jnp.asarray([[10.0, 0.0, 0.0], [9.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    grads = mix @ jnp.asarray(RNG.standard_normal((1500, 3, 4)), "float32")
    _, updates, _ = train_compiled(tx, grads[0], grads)
    rows = updates[500:].transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(np.corrcoef(rows), np.eye(3), atol=0.3)
    np.testing.assert_allclose(np.std(rows, axis=1), np.ones(3), atol=0.4)


def test_a_long_axis_has_a_diagonal_factor():
    params = {"w": jax.ShapeDtypeStruct((50, 4), "bfloat16"), "b": jax.ShapeDtypeStruct((), "bfloat16")}
    state = structs(fo.scale_by_psgd_kron(max_size_triangular=10).init(params))
    assert [(q["w"].shape, q["b"].shape) for q in state.q] == [((50,), (1,)), ((4, 4), (1,))]


def test_a_fit_is_work_only_when_drawn():
    g = jnp.full((3, 2), 2.0)
    tx = fo.scale_by_psgd_kron(preconditioner_update_probability=lambda count: count % 2)
    state, factors = tx.init(g), []
    for _ in range(4):
        _, state = tx.update(g, state)
        factors.append(float(state.q[0][0, 0]))
    assert factors[0] == 1 and factors[1] == factors[2] != factors[0] and factors[3] != factors[2]
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(tx.update)(g, state).jaxpr.eqns]
    assert names.count("cond") == 1 and "triangular_solve" not in names


def test_zero_gradients_leave_the_factors_alone():
    """A step of zeros says nothing of the slope; without that the factors grow by a tenth a step, for ever."""
    tx, w = fo.scale_by_psgd_kron(), {"used": jnp.ones((2, 3)), "not": jnp.ones((2, 3))}
    grads = {"used": jnp.asarray(RNG.standard_normal((1500, 2, 3)), "float32"), "not": jnp.zeros((1500, 2, 3))}
    _, updates, state = train_compiled(tx, w, grads)
    assert not updates["not"].any() and np.isfinite(updates["used"]).all()
    for fitted, start in zip(state.q, tx.init(w).q, strict=True):
        assert (fitted["not"] == start["not"]).all() and (fitted["used"] != start["used"]).any()


@pytest.mark.parametrize("size", [1e-25, 1e30])
def test_gradients_of_any_size_become_white(size):
    """Also where their squares are not float32 numbers, and after the others."""
    tx = fo.scale_by_psgd_kron(b1=0.0, preconditioner_update_probability=1.0)
    grads = np.concatenate([RNG.standard_normal((n, 3, 4)) * s for n, s in ((900, size), (1500, 1 / size**0.5))])
    _, updates, _ = train_compiled(tx, jnp.zeros((3, 4)), jnp.asarray(grads, "float32"))
    for last in (slice(800, 900), slice(2300, 2400)):
        np.testing.assert_allclose(np.sqrt(np.mean(updates[last] ** 2)), 1.0, rtol=0.2)
