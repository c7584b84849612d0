"""Degenerate input, for every transformation: wrong states, zero, huge and tiny gradients, rates of 0, empty leaves."""

import re

import jax
import jax.numpy as jnp
import pytest

import functional_opt as fo

from ..helpers import assert_same_types, at, make_grads, make_params
from .cases import each_plain_case

OTHERS = fo.chain(fo.scale_by_amsgrad(), fo.scale_by_schedule(lambda count: 0.1), fo.trace(0.9), fo.scale(0.1))
OTHER_PARAMS = {"dense": {"bias": jnp.ones(5), "kernel": jnp.ones((4, 3))}, "scale": jnp.ones(())}


@each_plain_case
def test_a_wrong_state_is_refused_in_words(case):
    """That of other rules, none at all, containers that lost their class."""
    tx, params, grads = case.tx(), make_params(), at(make_grads(1), 0)
    own, strange = (jax.eval_shape(t.init, params) for t in (tx, OTHERS))
    bare = [tuple(own), list(own)] if isinstance(own, tuple) else []
    for state in (strange, *strange, None, {}, 3.0, *bare):
        keeps_nothing = not jax.tree.leaves(own) and not jax.tree.leaves(state)  # any nothing will do for it
        if keeps_nothing or type(state) is type(own) and len(state) == len(own):
            continue
        with pytest.raises(ValueError, match=r"the state must be .*, as .*init makes it; got .*tx\.init\(params\)"):
            jax.eval_shape(tx.update, grads, state, params)


@each_plain_case
def test_the_state_of_other_params_is_refused_by_path(case):
    tx, params, grads = case.tx(), make_params(), at(make_grads(1), 0)
    own, other = (jax.eval_shape(tx.init, p) for p in (params, OTHER_PARAMS))
    path = r"has shape \(13,\)" if case.name == "flatten" else r"\['dense'\]\['(bias|kernel)'\]"
    try:
        _, after = jax.eval_shape(tx.update, grads, other, params)
    except ValueError as e:
        assert re.search(path, str(e))
    else:
        assert_same_types(after, own)  # what was of another shape is not read
