"""A transformation from one function: what the function is given, and the dtypes of what it returns."""

import jax
import jax.numpy as jnp
import pytest

from functional_opt import chain, scale, stateless, stateless_with_tree_map, with_extra_args_support


def test_params_are_given():
    tx = stateless(lambda g, w: jax.tree.map(lambda g, w: g * w, g, w))
    assert tx.update({"w": 2.0}, tx.init(None), {"w": 3.0})[0] == {"w": 6.0}
    tx = stateless_with_tree_map(lambda g, w: g * (w if w is not None else 10.0))
    assert tx.update({"w": 2.0}, tx.init(None))[0]["w"] == 20.0


def test_dtypes():
    seen = []
    tx = stateless_with_tree_map(lambda g, w: seen.append((g.dtype, w.dtype)) or g)
    u, _ = tx.update(jnp.ones(2), tx.init(None), jnp.ones(2, "bfloat16"))
    assert seen == [("float32", "float32")] and u.dtype == jnp.bfloat16


def test_no_call_for_a_leaf_without_gradient():
    tx = stateless_with_tree_map(lambda g, w: 2 * g)
    assert tx.update({"a": None, "b": 1.0}, tx.init(None), {"a": 1.0, "b": 1.0})[0] == {"a": None, "b": 2.0}


def test_with_extra_args_support():
    tx = chain(scale(1.0))
    assert with_extra_args_support(tx) is tx
    with pytest.raises(TypeError, match="tx must be a gradient transformation"):
        with_extra_args_support(3)
