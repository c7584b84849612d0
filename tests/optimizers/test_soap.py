"""SOAP beyond the table of cases: all axes turned, the state, what a refresh costs between refreshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..conformance import references_matrix as ref
from ..helpers import structs, train_compiled

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape, precondition_1d", [((3, 3), False), ((2, 3, 2), False), ((2,), True)])
def test_every_axis_is_turned(shape, precondition_1d):
    w, grads = RNG.standard_normal(shape), RNG.standard_normal((12, *shape))
    args = {"shampoo_beta": 0.9, "precondition_frequency": 3, "precondition_1d": precondition_1d}
    with jax.enable_x64(True):
        params, _, _ = train_compiled(fo.soap(0.1, **args), jnp.asarray(w), jnp.asarray(grads))
        expected = np.stack(list(ref.soap(w, grads, 0.1, **args)))
        np.testing.assert_allclose(params, expected, rtol=1e-9)


def test_the_state_has_matrices_for_axes_that_are_turned():
    params = {"w": jax.ShapeDtypeStruct((50, 4), "bfloat16"), "b": jax.ShapeDtypeStruct((4,), "bfloat16")}
    state = structs(fo.scale_by_soap(max_precond_dim=10, state_dtype="bfloat16").init(params))
    assert [(q["w"].shape, q["b"].shape) for q in state.q] == [((1,), (1,)), ((4, 4), (1,))]
    assert state.q[1]["w"].dtype == state.gg[1]["w"].dtype == jnp.float32 and state.mu["w"].dtype == jnp.bfloat16


def test_decompositions_run_only_at_a_refresh():
    tx, g = fo.scale_by_soap(), jnp.ones((3, 2))
    jaxpr = jax.make_jaxpr(tx.update)(g, tx.init(g)).jaxpr
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert names.count("cond") == 1 and not {"eigh", "qr", "geqrf", "householder_product"} & set(names)
