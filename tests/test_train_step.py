"""make_train_step: the numbers of a step by hand, one compile, buffers that are reused, micro-batches, meshes."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import functional_opt as fo
from functional_opt import native

from .helpers import assert_close, compiled

rng = np.random.default_rng(0)
X, Y = jnp.asarray(rng.normal(size=(16, 6)), "float32"), jnp.asarray(rng.normal(size=(16, 3)), "float32")
CLIPPED = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.01))
COLLECTIVE = re.compile(r"(all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\(")


def make_params(dtype="float32"):
    r = np.random.default_rng(1)
    return {"a": jnp.asarray(r.normal(size=(6, 8)), dtype), "b": jnp.asarray(r.normal(size=(8, 3)), dtype)}


def loss_fn(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def by_hand(tx, params, state, x, y, loss_fn=loss_fn):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(grads, state, params)
    return fo.apply_updates(params, updates), state, loss


def run(step, tx, steps=3, **kwargs):
    params = make_params(**kwargs)
    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, loss = step(tx, params, state, X, Y)
        losses.append(loss)
    return params, state, losses


STEP = fo.make_train_step(loss_fn)


@pytest.mark.parametrize("k", [1, 4])
def test_the_numbers_of_a_step_by_hand(k):
    step = STEP if k == 1 else fo.make_train_step(loss_fn, accumulate=k)
    assert_close(run(step, CLIPPED), run(jax.jit(by_hand), CLIPPED), rtol=2e-5, atol=1e-6)
    assert_close(
        run(step, optax.adamw(0.01))[0], run(STEP, fo.adamw(0.01, weight_decay=1e-4))[0], rtol=1e-4, atol=1e-5
    )


def test_one_compile_for_all_numbers():
    traced = []
    step = fo.make_train_step(lambda w, x: (traced.append(0), jnp.sum(w * x))[1])
    for rate in (0.1, 0.2, 0.3):
        w = jnp.ones(2)
        tx = fo.sgd(rate)
        w, _, _ = step(tx, w, tx.init(w), jnp.ones(2))
        np.testing.assert_allclose(w, 1 - rate, rtol=1e-6)
    tx = optax.sgd(0.1)
    for _ in range(2):
        step(tx, jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    assert len(traced) == 2  # ours and Optax's


def nbytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("tx", [fo.adam(0.1), CLIPPED, fo.sgd(0.1, momentum=0.9), fo.lion(0.1)], ids=lambda tx: "")
def test_buffers_are_reused(tx, kernels):
    """All results are written over the arguments; what else is needed are gradients, and no copies of params."""
    params = {f"w{i}": jnp.ones((64, 64)) for i in range(4)}
    state = tx.init(params)
    step = fo.make_train_step(lambda p, x: sum(jnp.mean((x @ w) ** 2) for w in p.values()))
    with contextlib.nullcontext() if kernels else native.disabled():
        compiled = step.lower(tx, params, state, jnp.ones((2, 64))).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory.alias_size_in_bytes == nbytes((params, state))
    assert len(re.findall(r"(?:may|must)-alias", text.split("\n")[0])) == len(jax.tree.leaves((params, state)))
    if native.available() and kernels:
        assert memory.temp_size_in_bytes < 1.2 * nbytes(params)  # the gradients
        assert not re.search(r"= f32\[64,64\]\S* copy\(", text)
    else:
        assert memory.temp_size_in_bytes < 2.1 * nbytes(params)  # XLA alone copies for lion and for clipping


def test_arrays_that_were_given_away_are_named():
    step = fo.make_train_step(lambda p, x: jnp.mean((x @ p["a"]) ** 2) + jnp.mean(p["b"]))
    tx, x, params = fo.adam(0.1), jnp.ones((4, 3)), {"a": jnp.ones(3), "b": jnp.ones(2)}
    state = tx.init(params)
    new, new_state, _ = step(tx, params, state, x)
    with pytest.raises(RuntimeError, match=r"^params\['a'\] is gone: .* Go on with the params and the state"):
        step(tx, params, new_state, x)
    with pytest.raises(RuntimeError, match=r"^state\[0\].count is gone"):
        step(tx, new, state, x)
    twice = jnp.ones(3)
    tied = {"a": twice, "b": twice}
    with pytest.raises(RuntimeError, match=r"^params\['a'\] and params\['b'\] are one array"):
        step(tx, tied, tx.init(tied), x)
    fo.make_train_step(lambda p: jnp.mean(p["a"] + p["b"]), donate=False)(tx, tied, tx.init(tied))


@pytest.mark.parametrize("batch, got", [((), "nothing"), ((1.0,), "one argument"), ((1.0, 2.0, 3.0), "3 arguments")])
def test_a_batch_that_the_loss_does_not_take(batch, got):
    step, w = fo.make_train_step(lambda w, x, y: (w * x - y) ** 2, donate=False), jnp.ones(())
    with pytest.raises(TypeError, match=rf"^loss_fn\(params, \*batch\): .*step\(.*\) got {got} as batch"):
        step(fo.sgd(0.1), w, fo.sgd(0.1).init(w), *batch)


def test_donation():
    tx, batch = fo.adam(0.1), jnp.ones((4, 6))
    for donate in (True, False):
        step = fo.make_train_step(lambda p, x: jnp.mean((x @ p["a"]) ** 2 + jnp.mean(p["b"])), donate=donate)
        params = make_params()
        state = tx.init(params)
        step(tx, params, state, batch)
        assert {x.is_deleted() for x in jax.tree.leaves((params, state))} == {donate}
        assert not batch.is_deleted()


def test_an_error_leaves_the_arguments():
    params, tx = make_params(), fo.adam(0.1)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(16, 3\)"):
        fo.make_train_step(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])(tx, params, state, X)
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, state)))


def test_aux_is_stacked_by_micro_batch():
    def with_aux(params, x, y):
        return loss_fn(params, x, y), {"rows": x[:, 0], "largest": jnp.max(x)}

    tx = fo.adam(0.1)
    for k in (1, 4):
        params = make_params()
        _, _, (loss, aux) = fo.make_train_step(with_aux, True, k)(tx, params, tx.init(params), X, Y)
        np.testing.assert_allclose(loss, loss_fn(make_params(), X, Y), rtol=1e-5)
        cut = X if k == 1 else jnp.stack([X[i::4] for i in range(4)])
        np.testing.assert_array_equal(aux["rows"], cut[..., 0])
        np.testing.assert_array_equal(aux["largest"], cut.max((-1, -2)))


SEARCH = fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(15))
SAM = fo.sam(fo.sgd(0.1), fo.chain(fo.normalize(), fo.sgd(0.05)), opaque_mode=True)
RULES = {"search": SEARCH, "polyak": fo.polyak_sgd(), "sophia": fo.sophia(0.01), "sam": SAM}


@pytest.mark.parametrize("tx", RULES.values(), ids=RULES.keys())
def test_what_rules_need_of_the_loss(tx):
    """The loss of this batch, its gradient, and both as functions of the params, also over micro-batches."""
    f = functools.partial(loss_fn, x=X, y=Y)
    params = make_params()
    value, grad = jax.value_and_grad(f)(params)
    extra = dict(value=value, grad=grad, value_fn=f, obj_fn=f, grad_fn=lambda p, i: jax.grad(f)(p))
    updates, _ = tx.update(grad, tx.init(params), params, **extra)
    found, _, _ = run(fo.make_train_step(loss_fn, accumulate=2), tx, 1)
    assert_close(found, fo.apply_updates(params, updates), rtol=1e-4, atol=1e-6)


def test_gradients_of_16_bits_are_averaged_in_float32():
    step = fo.make_train_step(lambda w, x: jnp.sum(w) * jnp.mean(x), accumulate=512)
    w = jnp.zeros(2, "bfloat16")
    w, _, _ = step(fo.sgd(1.0), w, fo.sgd(1.0).init(w), jnp.ones((512, 1), "bfloat16"))
    assert w.dtype == jnp.bfloat16 and w.tolist() == [-1, -1]


def test_leaves_that_are_not_trained():
    params = {"w": jnp.ones(6), "none": None, "mask": jnp.arange(2), "steps": 3, "act": jnp.tanh, "z": jnp.array(2j)}
    arrays = {**params, "steps": None, "act": None}
    tx = fo.adam(0.1)

    def loss(p, x):
        assert p["steps"] == 3 and p["none"] is None
        return jnp.mean(p["act"](x @ p["w"]) ** 2) + jnp.abs(p["z"]) ** 2 + 0 * p["mask"].sum()

    state = tx.init(arrays)
    step = fo.make_train_step(loss, accumulate=2)
    for _ in range(2):
        params, state, _ = step(tx, params, state, X)
    assert params["act"] is jnp.tanh and params["steps"] == 3 and params["mask"].tolist() == [0, 1]
    assert not np.allclose(params["w"], 1) and abs(params["z"] - 1.8j) < 1e-3


def test_keys_and_scalars_of_a_batch():
    def loss(w, x, scale, key):
        return jnp.mean(w * x) * scale, jax.random.uniform(key)

    step = fo.make_train_step(loss, has_aux=True, accumulate=2)
    w = jnp.ones(())
    w, _, (_, noise) = step(fo.sgd(1.0), w, fo.sgd(1.0).init(w), jnp.ones(4), 0.5, jax.random.key(0))
    assert w == 0.5 and noise.shape == (2,) and noise[0] != noise[1]


def test_in_a_scan():
    tx = fo.adam(0.1)

    @jax.jit
    def train(params):
        step = lambda carry, batch: ((out := STEP(tx, *carry, *batch))[:2], out[2])  # noqa: E731
        return jax.lax.scan(step, (params, tx.init(params)), (jnp.stack([X] * 3), jnp.stack([Y] * 3)))

    (params, state), losses = train(make_params())
    assert_close((params, state, list(losses)), run(STEP, tx), rtol=1e-5, atol=1e-7)


LAYOUTS = {  # of a and b, and of their slots
    "params replicated": ((P(), P()), (P(), P())),
    "params sharded": ((P(None, "d"), P("d")), (P(None, "d"), P("d"))),
    "slots sharded": ((P(), P()), (P(None, "d"), P("d"))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_on_a_mesh_stay_where_they_are(layout):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    of_params, of_slots = ({"a": a, "b": b} for a, b in LAYOUTS[layout])
    put = lambda tree, specs: jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)  # noqa: E731
    tx, step = fo.adamw(0.01), fo.make_train_step(loss_fn, accumulate=2)
    state = tx.init(make_params())
    expected = by_hand(tx, make_params(), state, X, Y)
    params = put(make_params(), of_params)
    slots = state[0]._replace(
        count=put(state[0].count, P()), mu=put(state[0].mu, of_slots), nu=put(state[0].nu, of_slots)
    )
    state = (slots, *state[1:])
    before = jax.tree.map(lambda x: x.sharding, (params, state))
    batch = put((X, Y), (P("d"), P("d")))
    text = step.lower(tx, params, state, *batch).compile().as_text()
    *trained, loss = step(tx, params, state, *batch)
    assert jax.tree.map(lambda x: x.sharding, tuple(trained)) == before
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))
    assert_close((*trained, loss), expected, rtol=1e-4, atol=1e-6)
    if layout == "params replicated":
        assert set(COLLECTIVE.findall(text)) == {"all-reduce"}


def test_a_batch_with_explicit_sharding():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    tx = fo.adamw(0.01)
    expected = by_hand(tx, make_params(), tx.init(make_params()), X, Y)
    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(), NamedSharding(mesh, P()))
        batch = jax.device_put((X, Y), NamedSharding(mesh, P("d")))
        out = fo.make_train_step(loss_fn, accumulate=2)(tx, params, tx.init(params), *batch)
    assert_close(out, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fo.make_train_step(3), "loss_fn must be a function of the params and the batch, got 3"),
        (lambda: fo.make_train_step(loss_fn, accumulate=0), "accumulate must be .* at least 1, got 0"),
        (lambda: fo.make_train_step(loss_fn, accumulate=2.0), "accumulate must be .* got 2.0"),
        (lambda: fo.make_train_step(loss_fn, 2), "has_aux must be True or False, got 2"),
        (lambda: call(STEP, X[:0], Y[:0]), r"batch\[0\] has no rows: its shape is \(0, 6\)"),
        (lambda: call(STEP, X, Y, tx=fo.adam), r"tx must be a gradient transformation .* call it: adam\(...\)"),
        (lambda: call(K3, {"x": X}), r"batch\[0\]\['x'\] has shape \(16, 6\): accumulate=3 must divide"),
        (lambda: call(K3, X[:3], Y[:6]), "same number of rows, got .*3, 6.* and .*6, 3"),
        (lambda: call(K3, 1.0), "same number of rows, got none with rows"),
        (lambda: call(fo.make_train_step(lambda p: (p["a"].sum(), 1))), "got a tuple of 2; .* has_aux=True"),
        (
            lambda: call(fo.make_train_step(lambda p: p["a"].sum(), True)),
            r"must return \(loss, aux\), as has_aux=True",
        ),
        (lambda: call(fo.make_train_step(lambda p: None)), r"must return a scalar, got None"),
        (lambda: call(fo.make_train_step(lambda p: p["a"].sum() * 1j)), "real floating scalar, got dtype complex64"),
        (lambda: STEP(fo.adam(0.1), {"n": jnp.arange(2)}, (), X, Y), "params must have a floating or complex array"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


K3 = fo.make_train_step(loss_fn, accumulate=3)


def call(step, *batch, tx=None):
    params = make_params()
    return step(tx or fo.adam(0.1), params, fo.adam(0.1).init(params), *batch)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_state_in_pieces(accumulate):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(64, 32)).astype("float32"), "b": np.zeros(32, "float32")}
    batches = rng.normal(size=(3, 16, 64)).astype("float32"), rng.normal(size=(3, 16, 32)).astype("float32")

    def loss(params, x, y):
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    tx, runs = fo.adam(1e-2), []
    for more in ({}, {"mesh": mesh, "shard": "data"}):
        step = fo.make_train_step(loss, accumulate=accumulate, **more)
        w, state = jax.tree.map(jnp.asarray, params), tx.init(params)
        before = len(compiled)
        for batch in zip(*batches, strict=True):
            w, state, value = step(tx, w, state, *batch)
        runs.append((w, value))
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *(w for w, _ in runs))
    assert state[0].mu["w"].sharding.spec == P("data") and w["w"].sharding.is_fully_replicated
    assert sum("_run" in name for name in compiled[before:]) == 1
    with pytest.raises(ValueError, match=r"batch\[0\] has shape \(6, 64\): 4 devices must divide its rows"):
        step(tx, w, state, np.zeros((6, 64), "float32"), np.zeros((6, 32), "float32"))
    for wrong in ({"mesh": mesh}, {"shard": "data"}):
        with pytest.raises(ValueError, match="mesh and shard go together"):
            fo.make_train_step(loss, **wrong)
    with pytest.raises(ValueError, match="shard must be one of the mesh's axes, data, got 'rows'"):
        fo.make_train_step(loss, mesh=mesh, shard="rows")
