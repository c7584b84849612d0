"""Muon beyond the table of cases: what is orthogonal, who goes where, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ..helpers import assert_close, assert_finite, make_grads, make_params, train_eagerly

PARAMS = {
    "embed": {"embedding": jnp.ones((8, 2))},
    "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "conv": jnp.ones((2, 2, 3)),
}


def matrix(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), "float32")


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4), (2, 4, 3)])
def test_singular_values_come_near_one(shape, preconditioning):
    g = matrix(*shape)
    x, _ = fo.orthogonalize(preconditioning=preconditioning, ns_steps=8).update(g, fo.EmptyState())
    np.testing.assert_allclose(np.linalg.svd(x, compute_uv=False), 1.0, atol=0.35)
    if preconditioning != "aol":  # which divides each row by a number of its own
        u, s, vt = np.linalg.svd(g, full_matrices=False)
        in_its_bases = np.einsum("...ij,...ik,...lk->...jl", u, x, vt)
        np.testing.assert_allclose(in_its_bases, np.eye(s.shape[-1]) * in_its_bases, atol=1e-3)


@pytest.mark.parametrize("coefficients", ["standard", "polar_express"])
@pytest.mark.parametrize("dtype, bound", [(None, 1e-4), ("float16", 0.1), ("bfloat16", 0.7)])
def test_steps_in_pairs_give_what_single_steps_give(coefficients, dtype, bound):
    """Also for matrices of low rank, whose small eigenvalues are rounding errors."""
    u, _, vt = np.linalg.svd(matrix(2, 16, 64), full_matrices=False)
    g = (u[..., :4] @ vt[..., :4, :]).astype("float32")
    expected = np.stack([single_steps(x.astype("float64"), coefficients) for x in g])
    actual, _ = fo.orthogonalize(coefficients, ns_dtype=dtype).update(jnp.asarray(g), fo.EmptyState())
    assert actual.dtype == "float32"
    assert np.linalg.norm(actual - expected) < bound * np.linalg.norm(expected)
    tall, _ = fo.orthogonalize(coefficients, ns_dtype=dtype).update(jnp.asarray(g).mT, fo.EmptyState())
    np.testing.assert_allclose(tall.mT, actual, atol=1e-6)


def single_steps(x, coefficients):
    rows = np.broadcast_to(fo.orthogonalize(coefficients).ns_coeffs, (5, 3))
    x = x / np.linalg.norm(x)
    for a, b, c in rows:
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


HALVES = fo.MuonDimensionNumbers(output_blocks=2)


@pytest.mark.parametrize(
    "make",
    [
        *(fo.muon, fo.muonh, fo.normuon, fo.scion, fo.dion2, fo.nordion2, fo.muown, fo.soap_muon),
        functools.partial(fo.muonbp, blocks=HALVES),
    ],
    ids=lambda x: getattr(x, "__name__", "muonbp"),
)
def test_all_round_their_products_to_ns_dtype(make):
    params, grads = {"kernel": matrix(8, 16)}, {"kernel": jnp.stack([jnp.flip(matrix(8, 16))] * 2)}
    exact, rounded = (
        train_eagerly(make(0.1, ns_dtype=dtype), params, grads, steps=2)[0]["kernel"] for dtype in (None, "float16")
    )  # SOAP's first step only fills its factors
    assert rounded.dtype == "float32"
    assert 1e-5 < jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact) < 0.02


def test_complex_matrices_keep_their_dtype():
    g = jnp.asarray(matrix(2, 8) + 1j * matrix(2, 8))
    expected, _ = fo.orthogonalize().update(g, fo.EmptyState())
    actual, _ = fo.orthogonalize(ns_dtype="float16").update(g, fo.EmptyState())
    np.testing.assert_array_equal(actual, expected)


def test_a_preset_has_its_own_number_of_steps():
    g = matrix(4, 4)
    x, _ = fo.orthogonalize("dion", ns_steps=1).update(g, fo.EmptyState())
    np.testing.assert_allclose(np.linalg.svd(x, compute_uv=False), 1.0, atol=0.25)
    assert fo.scale_by_muon("dion").init(g).ns_coeffs.shape == (5, 3)


def test_polar_express_is_the_best_quintic_of_each_step():
    """Amsel et al. 2025, algorithm 1: odd, best on [l, u] by alternation, centred on 1; then the safety factor."""
    g, low, high = matrix(4, 4), 1e-3, 1.0
    expected = g / (1.01 * jnp.linalg.norm(g))
    for _ in range(5):
        bottom = max(low, 0.02407327424182761 * high)  # the paper's cushion
        inner, error, last = bottom + (high - bottom) * np.array([0.25, 0.75]), 1.0, 0.0
        while abs(error - last) > 1e-14:
            points, last = np.array([bottom, *inner, high]), error
            *abc, error = np.linalg.solve(np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1), np.ones(4))
            inner = np.sqrt(np.sort(np.roots([5 * abc[2], 3 * abc[1], abc[0]]).real))
        ends = [abc[0] * x + abc[1] * x**3 + abc[2] * x**5 for x in (low, high)]
        a, b, c = np.array(abc) * 2 / sum(ends)
        low, high = (x * 2 / sum(ends) for x in ends)
        high, x = 2 - low, expected / 1.01
        expected = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    actual, _ = fo.orthogonalize("polar_express").update(g, fo.EmptyState())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(actual, compute_uv=False), 1.0, atol=0.2)


def test_labels_are_by_axes_path_and_mask():
    by_default = {"embed": {"embedding": "adam"}, "dense": {"kernel": "muon", "bias": "adam"}, "conv": "adam"}
    assert fo.muon_labels()(PARAMS) == fo.muon(0.1).param_labels(PARAMS) == by_default
    optax_rule = {**by_default, "embed": {"embedding": "muon"}}
    assert fo.muon_labels(True)(PARAMS) == fo.muon(0.1, muon_mask=True).param_labels(PARAMS) == optax_rule
    assert fo.muon_labels({"*/embedding": False})(PARAMS) == by_default
    assert fo.muon_labels({"*/bias": True, "**": False})(PARAMS)["dense"] == {"kernel": "adam", "bias": "adam"}


@pytest.mark.parametrize(
    "path, goes_to",
    [
        ("wte", "adam"),
        ("Embed_0/embedding", "adam"),
        ("model/pos_emb", "adam"),
        ("lm_head/kernel", "adam"),
        ("head/kernel", "adam"),
        ("unembed", "adam"),
        ("decoder/logits_dense/kernel", "adam"),
        ("multi_head_attention/query/kernel", "muon"),
        ("MultiHeadDotProductAttention_0/out/kernel", "muon"),
        ("ahead/kernel", "muon"),
    ],
)
def test_embeddings_and_heads_are_known_by_path(path, goes_to):
    tree = matrix(2, 2)
    for name in reversed(path.split("/")):
        tree = {name: tree}
    assert jax.tree.leaves(fo.muon_labels()(tree)) == [goes_to]


def test_the_rest_is_adamw():
    params, grads = make_params(), make_grads(3)
    rates = {"adam_learning_rate": 0.2, "adam_weight_decay": 0.1}
    updates, _ = train_eagerly(fo.muon(0.1, muon_mask=False, **rates), params, grads, steps=3)
    expected, _ = train_eagerly(fo.adamw(0.2, weight_decay=0.1, nesterov=True), params, grads, steps=3)
    assert_close(updates, expected)


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral"])
def test_eps_as_the_least_norm(preconditioning):
    for size, eps, result in ((3.0, 1.0, 1.0), (3.0, 6.0, 0.5), (0.0, 6.0, 0.0)):
        tx = fo.orthogonalize((1.0, 0.0, 0.0), 1, eps, preconditioning, eps_is_floor=True)
        u, _ = tx.update(jnp.array([[size, 0.0], [0.0, 0.0]]), fo.EmptyState())
        assert u[0, 0] == result


@pytest.mark.parametrize("tx", [fo.scale_by_muon(), fo.orthogonalize(), fo.scale_by_shape()], ids=repr)
def test_a_leaf_that_is_no_matrix_is_named(tx):
    with pytest.raises(ValueError, match=r"\['dense'\]\['bias'\] has shape \(3,\).*`masked`.*`partition`"):
        tx.update(PARAMS, tx.init(PARAMS))


OURS, THEIRS = fo.MuonDimensionNumbers, optax.contrib.MuonDimensionNumbers


def numbers(spec):
    """For PARAMS: a matrix, a prefix, and a stack with its axes in another order."""
    return {"embed": spec(-1, 0), "dense": {"kernel": spec(), "bias": None}, "conv": spec((2,), (0,))}


@pytest.mark.parametrize(
    "make, options",
    [
        (numbers, {}),
        (lambda spec: lambda params: numbers(spec), {"consistent_rms": 0.2, "preconditioning": "aol"}),
        (lambda spec: {"embed": None, "dense": None, "conv": spec((0, 2), 1)}, {"adaptive": True}),
    ],
)
def test_dimension_numbers_are_optax(make, options):
    grads = jax.tree.map(lambda x: matrix(2, *x.shape), PARAMS)
    updates, state = train_eagerly(
        fo.muon(0.1, muon_weight_dimension_numbers=make(OURS), **options), PARAMS, grads, 2
    )
    peer = optax.contrib.muon(0.1, muon_weight_dimension_numbers=make(THEIRS), **options)
    expected, their_state = train_eagerly(peer, PARAMS, grads, 2)
    assert_close(updates, expected, rtol=1e-4, atol=1e-6)
    assert [x.shape for x in jax.tree.leaves(state)] == [x.shape for x in jax.tree.leaves(their_state)]


@pytest.mark.parametrize("spec", [OURS(0, 3), OURS(0, 0), OURS((0, 1), (1, 2)), OURS((), 1)])
def test_axes_that_do_not_fit(spec):
    with pytest.raises(ValueError, match=r"weight_dimension_numbers\['conv'\] must name rows and columns"):
        fo.muon(0.1, muon_weight_dimension_numbers={**numbers(OURS), "conv": spec}).init(PARAMS)
    with pytest.raises(TypeError, match="must hold MuonDimensionNumbers or None, got 3"):
        fo.muon(0.1, muon_weight_dimension_numbers={"conv": 3})


def test_one_spec_is_for_all_leaves_with_axes_enough():
    labels = fo.muon(0.1, muon_weight_dimension_numbers=OURS(0, -1)).param_labels(PARAMS)
    assert labels["dense"] == {"kernel": "muon", "bias": "adam"} and labels["conv"] == "muon"


@pytest.mark.parametrize("coefficients", [(1.0, 2.0), ((1.0, 2.0, 3.0), (1.0, 2.0)), "best", (), np.ones((2, 2))])
def test_coefficients_are_rows_of_three(coefficients):
    with pytest.raises(ValueError, match="ns_coeffs must be"):
        fo.muon(0.1, ns_coeffs=coefficients)


def test_coefficients_may_be_an_array():
    g = matrix(3, 3)
    for given in ((3.0, -3.2, 1.2), [[3.0, -3.2, 1.2]] * 5, np.array([3.0, -3.2, 1.2]), jnp.full((5, 1), 1.0)):
        given = given if np.shape(given)[-1] == 3 else given * jnp.array([3.0, -3.2, 1.2])
        x, _ = fo.orthogonalize(given).update(g, fo.EmptyState())
        np.testing.assert_allclose(x, fo.orthogonalize((3.0, -3.2, 1.2)).update(g, fo.EmptyState())[0], rtol=1e-4)


TOGETHER = [
    fo.orthogonalize(),
    fo.scale_by_muon(adaptive=True, preconditioning="aol"),
    fo.scale_by_normuon(),
    fo.scale_by_scion(norms="spectral"),
]


@pytest.mark.parametrize("tx", TOGETHER)
def test_matrices_of_one_shape_go_together_as_they_go_alone(tx):
    shapes = [(4, 6), (6, 4), (4, 6), (5, 5), (2, 4, 6), (2, 6, 4)]
    grads = {str(i): matrix(*shape) + i / 9 for i, shape in enumerate(shapes)} | {"none": None}
    together, _ = tx.update(grads, tx.init(grads))
    for name, g in grads.items():
        assert_close(together[name], tx.update(g, tx.init(g))[0])


@pytest.mark.parametrize("make", [fo.muon, fo.normuon, fo.dion, fo.scion])
def test_matrices_without_rows_are_nothing_to_do(make):
    tx, w = make(0.1), jnp.zeros((0, 3))
    updates, state = tx.update(w, tx.init(w), w)
    assert updates.shape == (0, 3)
    assert_finite(state)
