"""Clipping: the bound holds, what is within it is untouched, and zeros, NaN and 16 bits do no harm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_opt import (
    EmptyState,
    adaptive_grad_clip,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    clip_by_norm,
    global_norm,
    unitwise_norm,
)

from ...helpers import assert_close, assert_finite
from ...strategies import trees

bounds = st.sampled_from([0.0, 1e-3, 1.0, 50.0])


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.complex128).ravel()))


def rms(x):
    return float(np.sqrt(np.mean(np.abs(np.asarray(x, np.complex128)) ** 2)))


def largest(x):
    return float(np.max(np.abs(x)))


def of_all(size):
    return lambda tree: max(map(size, jax.tree.leaves(tree)), default=0.0)


RULES = {
    clip: of_all(largest),
    clip_by_norm: of_all(norm),
    clip_by_global_norm: lambda tree: norm([norm(x) for x in jax.tree.leaves(tree)]),
    clip_by_block_rms: of_all(rms),
}
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


def run(tx, updates, params=None):
    return tx.update(updates, EmptyState(), params)[0]


@each_rule
@given(trees(), bounds)
def test_bounds_what_it_says_and_nothing_less(rule, tree, bound):
    if rule is clip_by_block_rms and bound == 0:
        return
    size, tx = RULES[rule], rule(bound)
    clipped = run(tx, tree)
    assert size(clipped) <= bound * (1 + 1e-5)
    assert_close(run(tx, clipped), clipped, rtol=1e-6)
    if size(tree) < bound * (1 - 1e-5):
        assert_close(clipped, jax.tree.map(jnp.asarray, tree))


@each_rule
def test_what_is_within_the_bound_stays_as_it_is(rule):
    tree = {"a": jnp.array([0.25, -0.5]), "b": jnp.array(0.125)}
    assert_close(run(rule(1.0), tree), tree)


@pytest.mark.parametrize("rule", [clip_by_norm, clip_by_global_norm, clip_by_block_rms], ids=lambda r: r.__name__)
@given(trees(), st.sampled_from([1e-3, 1.0, 50.0]))
def test_keeps_the_direction_of_each_leaf(rule, tree, bound):
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(run(rule(bound), tree)), strict=True):
        np.testing.assert_allclose(np.asarray(y) * norm(x), x * norm(y), rtol=1e-4, atol=1e-30)


@given(trees(), bounds)
def test_global_norm_scales_all_leaves_by_one_number(tree, bound):
    clipped = run(clip_by_global_norm(bound), tree)
    factor = min(1.0, bound / RULES[clip_by_global_norm](tree)) if global_norm(tree) > 0 else 1.0
    assert_close(clipped, jax.tree.map(lambda x: factor * x, tree), rtol=1e-5, atol=1e-30)


@each_rule
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_zero_and_complex(rule, dtype):
    zero = {"w": jnp.zeros(3, dtype)}
    for bound in (1e-8, 1.0):
        assert_close(run(rule(bound), zero), zero)
    big = {"w": jnp.full(3, 300, dtype) * (1j if dtype == "complex64" else 1)}
    clipped = run(rule(1.0), big)
    assert clipped["w"].dtype == dtype and RULES[rule](clipped) <= 1.01
    assert_close(clipped["w"] / jnp.abs(clipped["w"]), big["w"] / jnp.abs(big["w"]), rtol=1e-6)


@pytest.mark.parametrize("rule", [clip_by_norm, clip_by_global_norm, clip_by_block_rms], ids=lambda r: r.__name__)
def test_nan_stays_in_its_leaf(rule):
    clipped = run(rule(1.0), {"a": jnp.array([3.0, 4.0]), "b": jnp.array([np.nan, 1.0]), "c": None})
    assert jnp.isnan(clipped["b"]).any() and clipped["c"] is None
    assert_close(clipped["a"], run(rule(1.0), {"a": jnp.array([3.0, 4.0])})["a"])


def test_a_norm_that_overflows_gives_zeros():
    clipped = run(clip_by_global_norm(1.0), {"a": jnp.full(2, 1e30), "b": jnp.ones(2)})
    assert_close(clipped, {"a": jnp.zeros(2), "b": jnp.zeros(2)})


@each_rule
def test_differentiable_at_zero(rule):
    slope = jax.grad(lambda g: jnp.sum(run(rule(1.0), g)))(jnp.zeros(3))
    assert slope.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "shape, axis, summed",
    [
        ((), None, ()),
        ((3,), None, (0,)),
        ((3, 1), None, (0, 1)),
        ((4, 3), None, (0,)),
        ((4, 2, 3), None, (0,)),
        ((3, 3, 2, 5), None, (0, 1, 2)),
        ((2, 3, 3, 2, 5), None, (0, 1, 2, 3)),
        ((4, 3), 1, (1,)),
        ((4, 3), (0, 1), (0, 1)),
    ],
)
def test_units(shape, axis, summed):
    x = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    expected = np.broadcast_to(np.sqrt(np.sum(x * x, axis=summed, keepdims=True)), shape)
    np.testing.assert_allclose(unitwise_norm(jnp.asarray(x, jnp.float32), axis), expected, rtol=1e-6)


def test_units_of_six_axes_must_be_said():
    with pytest.raises(ValueError, match=r"a leaf of shape \(2, 2, 2, 2, 2, 2\) has no standard units; pass `axis`"):
        unitwise_norm(jnp.ones((2,) * 6))


@given(trees(), st.sampled_from([0.0, 0.01, 2.0]))
def test_adaptive_clipping_bounds_each_unit_by_its_weights(tree, clipping):
    params = jax.tree.map(lambda x: np.float32(x / 7 + 1), tree)
    clipped = run(adaptive_grad_clip(clipping, eps=0.1), tree, params)
    for g, w in zip(jax.tree.leaves(clipped), jax.tree.leaves(params), strict=True):
        assert np.all(unitwise_norm(g) <= clipping * np.maximum(unitwise_norm(w), 0.1) * (1 + 1e-5))
    assert_finite(clipped)


def test_adaptive_clipping_needs_params_of_the_same_shapes():
    with pytest.raises(
        ValueError, match=r"adaptive_grad_clip needs the params: call update\(updates, state, params\)"
    ):
        run(adaptive_grad_clip(0.1), {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"updates\['w'\] has shape \(2,\), but params has \(3,\) there"):
        run(adaptive_grad_clip(0.1), {"w": jnp.ones(2)}, {"w": jnp.ones(3)})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: clip(-1.0), "max_delta must be in .*, got -1.0"),
        (lambda: clip_by_norm(-1.0), "max_norm must be in .*, got -1.0"),
        (lambda: clip_by_global_norm(-1.0), "max_norm must be in .*, got -1.0"),
        (lambda: clip_by_block_rms(0.0), r"threshold must be in \(0, inf\], got 0.0"),
        (lambda: adaptive_grad_clip(0.1, eps=-1.0), "eps must be in .*, got -1.0"),
    ],
)
def test_bounds_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()
