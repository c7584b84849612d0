"""Shampoo beyond the table of cases: the kinds of grafting, odd blocks, when roots are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..conformance import references_matrix as ref
from ..helpers import assert_close, structs, train_compiled

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "grafting, beta2", [("none", None), ("none", 0.9), ("sgd", 0.9), ("adagrad", None), ("rmsprop", 0.9)]
)
def test_grafting_and_blocks(grafting, beta2):
    shapes = [(3, 4), (2, 3, 2), (3,)]
    w, grads = [RNG.standard_normal(s) for s in shapes], [RNG.standard_normal((8, *s)) for s in shapes]
    args = {"grafting": grafting, "beta2": beta2, "block_size": 2, "preconditioner_every": 3, "eps": 0.01}
    with jax.enable_x64(True):
        params, _, _ = train_compiled(fo.shampoo(0.1, **args), w, grads)
        expected = [np.stack(list(ref.shampoo(*leaf, 0.1, **args))) for leaf in zip(w, grads, strict=True)]
        assert_close(params, expected, rtol=1e-9)


def test_an_axis_is_cut_into_equal_blocks():
    state = structs(fo.scale_by_shampoo(4, grafting="sgd").init(jax.ShapeDtypeStruct((9, 4), "bfloat16")))
    assert [x.shape for x in state.statistics] == [(3, 3, 3), (3, 4, 4)]
    assert state.nu.shape == (1,) and state.preconditioners[0].dtype == jnp.float32


def test_roots_are_computed_only_when_due():
    tx, g = fo.scale_by_shampoo(preconditioner_every=2, start_preconditioning_step=2), jnp.eye(2)
    state, roots = tx.init(g), []
    for _ in range(5):
        _, state = tx.update((1.0 + state.count) * g, state)
        roots.append(float(state.preconditioners[0][0, 0, 0]))
    assert roots[0] == 1 and roots[1] == roots[2] != 1 and roots[3] == roots[4] != roots[2]
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(tx.update)(g, state).jaxpr.eqns]
    assert names.count("cond") == 1 and "eigh" not in names


def test_grafting_that_needs_a_mean():
    with pytest.raises(ValueError, match="grafting='adam' needs beta2, got None"):
        fo.shampoo(0.1, beta2=None)
