"""Functions on one micro-batch after the other: the numbers of the batch, of Optax, in float32, on a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from functional_opt import microbatching as ours
from functional_opt.microbatching import AccumulationType, Accumulator, micro_grad, micro_vmap, microbatch

from .helpers import assert_close

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), "float32")
W, Y = jnp.array([1.0, -2.0, 0.5]), jnp.arange(8.0)
CONCAT, MEAN, SUM = AccumulationType.CONCAT, AccumulationType.MEAN, AccumulationType.SUM
LARGEST = Accumulator(
    init=lambda s: jnp.full(s.shape, -jnp.inf, s.dtype),
    update=lambda c, x, i: jnp.maximum(c, x),
    finalize=lambda c: c,
    aggregate=lambda x: x.max(0),
)


def loss(w, x, y):
    return 0.5 * jnp.mean((x @ w - y) ** 2)


@pytest.mark.parametrize("size", [1, 2, 8, None])
def test_means_and_sums_are_those_of_the_whole_batch(size):
    f = jax.jit(microbatch(jax.value_and_grad(loss), (1, 2), size, AccumulationType.MEAN))
    assert_close(f(W, X, Y), jax.value_and_grad(loss)(W, X, Y), rtol=1e-5)
    total = microbatch(lambda x, *, y: jnp.sum(x) + jnp.sum(y), 0, size, argnames="y", in_axes=(1, 0))(X.T, y=Y)
    np.testing.assert_allclose(total, X.sum() + Y.sum(), rtol=1e-5)


def test_the_numbers_of_optax():
    def results(o):
        kind = o.AccumulationType
        rows = o.micro_vmap(lambda x: (x**2, x.sum()), microbatch_size=2, accumulator=(kind.MEAN, kind.CONCAT))(X)
        grads = o.micro_grad(
            loss, batch_argnums=(1, 2), microbatch_size=4, accumulator=kind.MEAN,
            transform_fn=lambda g: (g, g**2), metrics_fn=jnp.linalg.norm,
        )(W, X, Y)  # fmt: skip
        return rows, grads[0], tuple(grads[1])

    assert_close(results(ours), results(optax.microbatching), rtol=1e-5)


def test_some_of_the_micro_batches_only():
    f = jax.jit(
        lambda n: microbatch(
            lambda y: (y, jnp.mean(y), jnp.sum(y)),
            0,
            2,
            (AccumulationType.CONCAT, AccumulationType.RUNNING_MEAN, AccumulationType.SUM),
            num_real_microbatches=n,
        )(Y)
    )
    rows, mean, total = f(3)
    assert rows.tolist() == [0, 1, 2, 0, 4, 5, 6, 0] and mean == 3 and total == 18
    assert [x.tolist() for x in f(0)] == [[0] * 8, 0, 0]


def test_an_accumulator_of_ones_own():
    assert_close(micro_vmap(lambda x: x, microbatch_size=2, accumulator=LARGEST)(X), X.max(0))


def test_sums_of_16_bits_are_taken_in_float32():
    total = microbatch(jnp.sum, 0, 1)(jnp.ones(512, "bfloat16"))
    assert total == 512 and total.dtype == jnp.bfloat16


def test_aux_and_no_batch_dimension():
    grads, rest = micro_grad(lambda w, x: (w @ x, x[0]), has_aux=True, keep_batch_dim=False)(W, X)
    assert_close(grads, X.sum(0), rtol=1e-5, atol=1e-6)
    assert_close((rest.values, rest.aux), (X @ W, X[:, 0]), rtol=1e-5, atol=1e-6)


def test_keywords_of_a_mapped_function_are_mapped():
    f = lambda x, *, y: (x * y).sum()  # noqa: E731
    assert_close(micro_vmap(f, microbatch_size=2)(X, y=Y), jax.vmap(f)(X, y=Y), rtol=1e-6)


def test_the_function_is_traced_once():
    traced = []
    microbatch(lambda x: traced.append(x.shape), 0, 2)(X)
    assert traced == [(2, 3)]


# On a mesh of four devices


def outputs(w, x):
    y = jnp.tanh(x @ w)
    return {"rows": y, "sum": jnp.sum(y), "mean": jnp.mean(y * y), "largest": jnp.max(x)}


RULES = {"rows": CONCAT, "sum": SUM, "mean": MEAN, "largest": LARGEST}
MATRIX = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)), "float32")
ROWS = jnp.asarray(np.random.default_rng(2).normal(size=(16, 3)), "float32")
COLLECTIVE = re.compile(r"(all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\(")


def mesh_of(*axes):
    """Two axes of two devices each, Auto or Explicit."""
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=axes)


def flops(f, *args):
    return f.lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "kinds", [(AxisType.Auto,) * 2, (AxisType.Explicit,) * 2, (AxisType.Explicit, AxisType.Auto)]
)
def test_every_device_works_on_its_own_rows(kinds, axis):
    """Only sums are joined by a collective, and a device's work is that of its part of the batch."""
    rows = ("a", "b") if kinds[0] is kinds[1] else "a"
    n = 4 if kinds[0] is kinds[1] else 2
    transposed = lambda w, x: outputs(w, x.T if axis else x)  # noqa: E731
    f = jax.jit(microbatch(transposed, 1, 8, RULES, in_axes=axis))
    alone = flops(f, MATRIX, ROWS.T if axis else ROWS)
    with jax.set_mesh(mesh := mesh_of(*kinds)):
        w = jax.device_put(MATRIX, NamedSharding(mesh, P()))
        x = jax.device_put(ROWS.T if axis else ROWS, NamedSharding(mesh, P(None, rows) if axis else P(rows)))
        results = f(w, x)
        assert_close(results, outputs(MATRIX, ROWS), rtol=1e-5)
        assert set(COLLECTIVE.findall(f.lower(w, x).compile().as_text())) == {"all-reduce"}
        assert flops(f, w, x) < alone * 1.1 / n
        assert results["rows"].sharding.shard_shape(results["rows"].shape) == (16 // n, 5)


def test_gradients_and_maps_of_a_batch_with_explicit_sharding():
    per_row = lambda x: (jnp.tanh(x), x.sum())  # noqa: E731
    with jax.set_mesh(mesh := mesh_of(AxisType.Explicit, AxisType.Explicit)):
        w, x = (jax.device_put(y, NamedSharding(mesh, spec)) for y, spec in [(W, P()), (ROWS, P("a"))])
        mapped = jax.jit(micro_vmap(per_row, microbatch_size=4, accumulator=(CONCAT, MEAN)))(x)
        grads, rest = jax.jit(micro_grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)), microbatch_size=4))(w, x)
    assert_close(mapped, (jnp.tanh(ROWS), ROWS.sum(1).mean(0)), rtol=1e-5, atol=1e-6)
    assert_close(grads, jax.grad(lambda w: jnp.sum(jnp.tanh(ROWS @ w)))(W), rtol=1e-5)
    assert_close(rest.values, jnp.tanh(ROWS @ W), rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_in_shard_map(check_vma):
    def device(w, x):
        if check_vma:
            w = jax.lax.pcast(w, "a", to="varying")
        value, grad = microbatch(jax.value_and_grad(lambda w, x: jnp.sum(jnp.tanh(x @ w))), 1, 2)(w, x)
        found = microbatch(outputs, 1, 2, RULES)(w, x)
        return jax.lax.psum((value, grad), "a"), {k: v if k == "rows" else v[None] for k, v in found.items()}

    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    f = jax.shard_map(device, mesh=mesh, in_specs=(P(), P("a")), out_specs=(P(), P("a")), check_vma=check_vma)
    total, found = jax.jit(f)(MATRIX, ROWS)
    assert_close(total, jax.value_and_grad(lambda w: jnp.sum(jnp.tanh(ROWS @ w)))(MATRIX), rtol=1e-5, atol=1e-6)
    found |= {"sum": found["sum"].sum(), "mean": found["mean"].mean(), "largest": found["largest"].max()}
    assert_close(found, outputs(MATRIX, ROWS), rtol=1e-5)


def test_more_devices_than_rows_in_a_micro_batch():
    with jax.set_mesh(mesh := mesh_of(AxisType.Explicit, AxisType.Explicit)):
        x = jax.device_put({"x": ROWS}, NamedSharding(mesh, P(("a", "b"))))
        message = r"micro-batches of 2 rows .* among the 4 devices that have the rows of argument 0\['x'\]"
        with pytest.raises(ValueError, match=message):
            microbatch(lambda x: jnp.sum(x["x"]), 0, 2)(x)


@pytest.mark.parametrize("size", [3, 16])
def test_a_size_that_does_not_divide(size):
    with pytest.raises(ValueError, match=f"the batch must be divisible by microbatch_size={size}, got 8"):
        microbatch(jnp.sum, 0, size)(Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: micro_vmap(jnp.sum, out_axes=1), "out_axes must be 0, got 1"),
        (lambda: microbatch(jnp.sum, 0, 0), "microbatch_size must be a positive integer or None, got 0"),
        (lambda: microbatch(jnp.sum, 0, 2)(3.0), r"argument 0 must have a batch axis 0, got shape \(\)"),
        (lambda: microbatch(jnp.sum, 0, 2)("x"), "argument 0 must be an array, got 'x'"),
        (lambda: microbatch(jnp.sum, 0, 2)(X[:0]), "must be divisible by microbatch_size=2, got 0"),
        (lambda: microbatch(jnp.sum, 0, 2)({"x": X, "y": Y[:4]}), r"got 4 \(.*'y'.*\) and 8 \(.*'x'.*\)"),
        (lambda: microbatch(jnp.sum, 2, 2)(X), "got 2 in a call with 1 positional arguments"),
        (lambda: microbatch(jnp.sum, 0, 2, num_real_microbatches=5)(X), "must be between 0 and 4.* got 5"),
        (lambda: microbatch(jnp.sum, 0, 2, "mean")(X), "accumulator must be made of .*, got 'mean'"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
