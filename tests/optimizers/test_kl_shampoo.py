"""KL-Shampoo and KL-SOAP beyond the table of cases: all axes turned, diagonal factors, what a state holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..conformance import references_matrix as ref
from ..helpers import structs, train_compiled

RNG = np.random.default_rng(0)
BOTH = pytest.mark.parametrize("make, reference", [(fo.kl_soap, ref.kl_soap), (fo.kl_shampoo, ref.kl_shampoo)])


@BOTH
@pytest.mark.parametrize("shape, longest", [((3, 3), 9), ((2, 3, 2), 9), ((4, 2), 3), ((4, 5), 3), ((3,), 9)])
def test_every_axis_has_a_factor(make, reference, shape, longest):
    """Also those that are too long to turn, whose factors are diagonal."""
    w, grads = RNG.standard_normal(shape), RNG.standard_normal((12, *shape))
    args = {"b2": 0.9, "precondition_frequency": 3, "max_precond_dim": longest, "max_scale": 100.0}
    with jax.enable_x64(True):
        params, _, _ = train_compiled(make(0.1, **args), jnp.asarray(w), jnp.asarray(grads))
        expected = np.stack(list(reference(w, grads, 0.1, **args)))
        np.testing.assert_allclose(params, expected, rtol=1e-8)


def test_axes_of_one_element_have_no_factor():
    w, grads = RNG.standard_normal((3, 2)), RNG.standard_normal((9, 3, 2))
    for make in (fo.kl_soap, fo.kl_shampoo):
        tx = make(0.1, precondition_frequency=3)
        flat, _, _ = train_compiled(tx, jnp.asarray(w), jnp.asarray(grads))
        long, _, _ = train_compiled(tx, jnp.asarray(w)[:, None], jnp.asarray(grads)[:, :, None])
        np.testing.assert_allclose(long[:, :, 0], flat, rtol=1e-5)


def test_what_a_state_holds():
    params = {"w": jax.ShapeDtypeStruct((50, 4), "bfloat16"), "b": jax.ShapeDtypeStruct((4,), "bfloat16")}
    state = structs(fo.scale_by_kl_shampoo(max_precond_dim=10, state_dtype="bfloat16").init(params))
    assert [(q["w"].shape, q["b"].shape) for q in state.q] == [((1,), (1,)), ((4, 4), (1,))]
    assert [x["w"].shape for x in state.eigenvalues] == [(50,), (4,)]
    assert (state.nu["w"].shape, state.nu["b"].shape) == ((1,), (4,))
    assert state.gg[1]["w"].dtype == state.eigenvalues[1]["w"].dtype == jnp.float32
    assert state.mu["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("make", [fo.scale_by_kl_soap, fo.scale_by_kl_shampoo])
def test_decompositions_run_only_at_a_refresh(make):
    tx, g = make(), jnp.ones((3, 2))
    jaxpr = jax.make_jaxpr(tx.update)(g, tx.init(g)).jaxpr
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert names.count("cond") == 1 and not {"eigh", "qr", "geqrf", "householder_product"} & set(names)


def test_its_steps_do_not_depend_on_the_scale_along_an_axis():
    """Gradients that are 100 times as large in one row move as far: what whitening is for."""
    grads = RNG.standard_normal((300, 4, 4)) * np.array([100.0, 1, 1, 1])[:, None]
    tx = fo.scale_by_kl_shampoo(b1=0.0, b2=0.95)
    _, updates, _ = train_compiled(fo.chain(tx, fo.scale(1e-3)), jnp.ones((4, 4)), jnp.asarray(grads, "float32"))
    size = np.sqrt(np.mean(np.asarray(updates)[100:] ** 2, axis=(0, 2))) * 1e3
    assert np.all(np.abs(size - 1) < 0.35), size
