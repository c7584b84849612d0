"""Native kernels against the pure path: the same numbers, and the pure path wherever a kernel would not do."""

import os
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt import keras, native
from functional_opt.native.plan import ENOUGH, Plan

KERNEL = "functional_opt_step"
FORMATS = "octaves", "companded"  # of 8-bit codes
SIZES = {"big": (ENOUGH // 256, 257), "odd": (17,), "scalar": ()}
built = pytest.mark.skipif(not native.available(), reason="the extension was not built")


def tree(seed, dtype="float32", sizes=SIZES):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s) * rng.choice([1e-4, 1.0]), dtype) for k, s in sizes.items()}


def stepper(tx):
    """A new function each time: what is traced is kept by function, natively or not."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    return step


def purely(fn, *args):
    with native.disabled():
        return jax.jit(fn)(*args)


def uses_kernel(fn, *args):
    return KERNEL in jax.jit(fn).lower(*args).as_text()


def fused():
    """Whether the kernels add a product before it is rounded, as XLA does. Only x86's oldest instructions cannot."""
    return platform.machine() != "x86_64" or "AVX" in native.status()


def assert_close(ours, pure, ulps):
    """No further apart than some units in the last place of the largest element."""
    ulps = ulps if fused() else max(ulps, 3)  # one for each of three steps
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(pure), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        x, y = np.asarray(x, "float32"), np.asarray(y, "float32")
        largest = np.abs(y, where=np.isfinite(y), out=np.zeros_like(y)).max(initial=0)
        np.testing.assert_allclose(x, y, rtol=ulps * 2**-23, atol=ulps * 2**-23 * max(largest, 0.01))


def test_a_compiler_is_enough():
    if sys.platform == "linux" and (shutil.which("g++") or shutil.which("clang++")):
        assert native.available(), "build it: pip install --editable ."


CHAINS = {  # and how many units in the last place it may differ
    "sgd": (fo.sgd(0.1), 0),
    "momentum": (fo.sgd(0.1, 0.9), 0),
    "nesterov, clip": (fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(0.1, 0.9, nesterov=True)), 2),
    "sgd, decay inside": (fo.chain(fo.add_decayed_weights(0.1), fo.sgd(fo.cosine_decay_schedule(0.1, 9), 0.9)), 0),
    "adam": (fo.adam(1e-2), 1),
    "nadam, eps_hat": (fo.adam(1e-2, nesterov=True, eps_hat=True, eps_root=1e-12), 1),
    "adamw, clip, schedule": (
        fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(fo.cosine_decay_schedule(0.1, 9), weight_decay=0.1)),
        4,
    ),
    "adamw, mask, named": (
        fo.named_chain(("all", fo.adamw(0.1, weight_decay=0.1, mask={"odd": False, "**": True}))),
        1,
    ),
    "lion": (fo.chain(fo.clip(0.5), fo.lion(1e-2)), 0),
    "rmsprop": (fo.rmsprop(1e-2), 2),  # XLA's 1/√x is not exact
    "rmsprop, momentum": (fo.rmsprop(1e-2, eps_in_sqrt=False, momentum=0.9, bias_correction=True), 3),
    "adagrad": (fo.adagrad(1e-2), 1),
    "adagrad, eps outside": (
        fo.chain(fo.scale_by_rss(0.0, eps_in_sqrt=False), fo.scale_by_schedule(lambda count: -1 / (1 + count))),
        1,
    ),
    "nadam, Dozat's": (fo.chain(fo.scale_by_nadam(), fo.scale(-0.1)), 1),
    "amsgrad": (fo.chain(fo.clip_by_global_norm(1.0), fo.amsgrad(1e-2)), 4),
    "amsgrad, maximum first": (
        fo.chain(fo.scale_by_amsgrad(max_before_correction=True, eps_hat=True, eps_root=1e-12), fo.scale(-0.1)),
        1,
    ),
    "amsgrad, uncorrected": (fo.amsgrad(1e-2, bias_correction_mu=False, bias_correction_nu=False), 1),
    "adamax": (fo.adamax(1e-2), 1),
    "adamax, eps outside": (fo.adamaxw(1e-2, eps=1e-3, weight_decay=0.1, eps_in_max=False), 1),
    "adabelief": (fo.adabelief(1e-2), 1),
    "adabelief, nesterov": (fo.chain(fo.add_decayed_weights(0.1), fo.adabelief(1e-2, nesterov=True)), 1),
    "yogi": (fo.yogi(1e-2), 1),
    "radam": (fo.radam(1e-2), 1),
    "radam, adaptive": (fo.chain(fo.scale_by_radam(b2=0.5, threshold=4.0, nesterov=True), fo.scale(-0.1)), 1),
    "laprop": (fo.laprop(1e-2), 1),
    "adopt": (fo.adopt(1e-2), 1),
    "adopt, nesterov, not clipped": (fo.adopt(1e-2, nesterov=True, use_clipping=False), 1),
    "ademamix": (fo.ademamix(1e-2, b3=fo.linear_schedule(0.9, 0.999, 3), weight_decay=0.1), 1),
    "ademamix, simplified": (fo.simplified_ademamix(1e-3, alpha=0.5), 1),
    "adan": (fo.adan(1e-2, weight_decay=0.1), 1),
    "adan, clip": (fo.chain(fo.clip_by_global_norm(1.0), fo.adan(1e-2), fo.clip(0.1)), 4),
    "adadelta": (fo.adadelta(1.0), 2),
    "schedule-free": (fo.schedule_free_adamw(1e-2, warmup_steps=2, weight_decay=0.1), 2),
    "schedule-free sgd, clip": (fo.chain(fo.clip_by_global_norm(1.0), fo.schedule_free_sgd(0.1)), 4),
    "params ema": (fo.chain(fo.adamw(1e-2), fo.params_ema(lambda t: (1 + t) / (10 + t))), 1),
    "params ema, from the params": (fo.chain(fo.sgd(0.1, 0.9), fo.params_ema(0.9, debias=False)), 1),
    "mean of two": (fo.MultiSteps(fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-2)), 2), 4),
    "mean of two, with an ema": (fo.MultiSteps(fo.chain(fo.adan(1e-2), fo.params_ema(0.9)), 2), 1),
    "sum of one and two": (
        fo.MultiSteps(fo.sgd(0.1, 0.9), lambda count: jnp.where(count == 0, 1, 2), use_grad_mean=False),
        1,
    ),
    "finite": (fo.apply_if_finite(fo.chain(fo.clip_by_global_norm(1.0), fo.adam(1e-2)), 0), 4),
    "at every second step": (fo.conditionally_mask(fo.lion(1e-2), lambda count: count % 2 == 0), 1),
    "mean of two in 16 bits": (fo.MultiSteps(fo.adam(1e-2), 2, accumulator_dtype="bfloat16"), 1),
}


@built
@pytest.mark.parametrize("name", CHAINS)
def test_same_numbers_donated(name):
    tx, ulps = CHAINS[name]
    params = tree(0)
    steps = [tree(seed) for seed in range(1, 4)]
    steps[1]["odd"] = jnp.zeros(17)
    step = jax.jit(stepper(tx), donate_argnums=(0, 1))
    ours = jax.tree.map(jnp.copy, params), tx.init(params)
    assert KERNEL in step.lower(*ours, steps[0]).as_text()
    pure, pure_step = (params, tx.init(params)), stepper(tx)
    with native.disabled():
        pure_step = jax.jit(pure_step)
        for grads in steps:
            pure = pure_step(*pure, grads)
    for grads in steps:
        ours = step(*ours, grads)
    assert_close(ours, pure, ulps)


@built
@pytest.mark.parametrize("param, grad", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("wrap", [fo.chain, lambda tx: fo.MultiSteps(tx, 1)], ids=["alone", "accumulated"])
def test_bfloat16(param, grad, wrap):
    tx, params, grads = wrap(fo.adamw(1e-2, weight_decay=0.1)), tree(0, param), tree(1, grad)
    grads["odd"] = grads["odd"].at[:2].set(jnp.array([jnp.nan, jnp.inf], grad))
    args = params, tx.init(params), grads
    assert uses_kernel(stepper(tx), *args)
    assert_close(jax.jit(stepper(tx))(*args), purely(stepper(tx), *args), 1)


@built
@pytest.mark.parametrize("mean", [True, False])
def test_weights_of_gradients(mean):
    tx, params = fo.MultiSteps(fo.adam(1e-2), 3, use_grad_mean=mean), tree(0)

    def step(params, state, grads, weight):
        updates, state = tx.update(grads, state, params, weight=weight)
        return fo.apply_updates(params, updates), state

    ours = pure = params, tx.init(params)
    assert uses_kernel(step, *ours, tree(1), 2.0)
    for seed, weight in enumerate((2.0, 0.0, 5.0)):
        ours = jax.jit(step)(*ours, tree(seed), weight)
        pure = purely(lambda *args: step(*args), *pure, tree(seed), weight)
        assert_close(ours, pure, 2)


@built
@pytest.mark.parametrize("bits", [32, 8])
def test_a_step_that_is_left_out_changes_nothing(bits):
    """Neither params nor slots, nor the window if its gradient is not finite; also where updates are used."""
    inner = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-2))
    inner = inner if bits == 32 else fo.quantize_state(inner, bits)
    guarded = fo.apply_if_finite(inner, 5)
    skipping = fo.MultiSteps(inner, 2, should_skip_update_fn=fo.skip_not_finite)
    params, grads = tree(0), tree(1)
    bad = grads | {"odd": grads["odd"].at[3].set(jnp.nan)}

    def logged(tx):
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return fo.apply_updates(params, updates), state, updates

        return step

    for tx in guarded, skipping:
        params, state = jax.jit(stepper(tx))(params, tx.init(params), grads)
        assert uses_kernel(stepper(tx), params, state, bad) and uses_kernel(logged(tx), params, state, bad) == (
            bits == 8
        )
        for step in stepper(tx), logged(tx):
            new, after, *updates = jax.jit(step)(params, state, bad)
            assert_close(new, params, 0)
            before, after = (s.inner_state if tx is guarded else s[2:4] for s in (state, after))
            for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
                np.testing.assert_array_equal(x, y)
            assert not any(jnp.any(u != 0) for u in jax.tree.leaves(updates))


@built
def test_accumulated_gradients_of_some_leaves():
    tx, params = fo.MultiSteps(fo.chain(fo.clip_by_global_norm(1.0), fo.adam(1e-2)), 2), tree(0)
    ours = pure = params, tx.init(params)
    for grads in tree(1), tree(2) | {"odd": None}, tree(3) | {"odd": None}, tree(4):
        assert uses_kernel(stepper(tx), *ours, grads)
        ours, pure = jax.jit(stepper(tx))(*ours, grads), purely(stepper(tx), *pure, grads)
        assert_close(ours, pure, 4)


@built
def test_accumulation_in_the_facade(monkeypatch):
    """In the kernel's pass, with clips, weight decay and a variable that has a gradient only now and then."""
    run = []
    monkeypatch.setattr(Plan, "run", lambda *args, original=Plan.run: run.append(args) or original(*args))

    def trained():
        opt = keras.optimizers.AdamW(1e-2, global_clipnorm=1.0, gradient_accumulation_steps=3)
        variables = {k: keras.Variable(x, name=k) for k, x in tree(0).items()}
        for seed in range(1, 8):
            grads = tree(seed) | ({"odd": None} if seed in (2, 3, 4) else {})
            opt.apply_gradients([(grads[k], v) for k, v in variables.items()])
        return [v.value for v in variables.values()], opt.get_weights()

    ours = trained()
    assert run
    with native.disabled():
        jax.clear_caches()
        assert_close(ours, trained(), 8)
    jax.clear_caches()


@built
@pytest.mark.parametrize(
    "bits, block_size, code",
    [*((8, size, code) for size in (None, 100) for code in FORMATS), (4, None, "octaves"), (4, 60, "octaves")],
)
@pytest.mark.parametrize("make", [fo.adamw, fo.rmsprop, fo.lion, fo.amsgrad, fo.ademamix, fo.adan])
def test_codes(make, bits, block_size, code):
    """The codes of a step are those of the pure path, but where a number is between two of them."""
    tx = fo.quantize_state(make(1e-2), bits, block_size, min_size=100, code=code)
    params, *steps = (tree(seed, sizes=SIZES | {"even": (32, 64)}) for seed in range(4))
    steps[1]["big"] = steps[1]["big"].at[:3].set(0.0).at[5].set(0.0)
    step = jax.jit(stepper(tx), donate_argnums=(0, 1))
    ours = jax.tree.map(jnp.copy, params), tx.init(params)
    assert uses_kernel(stepper(tx), *ours, steps[0])
    for grads in steps:
        copy = jax.tree.map(jnp.copy, ours)
        ours, pure = step(*ours, grads), purely(stepper(tx), *copy, grads)
        assert_close(ours[0], pure[0], 8)
        for x, y in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(pure[1]), strict=True):
            assert x.dtype == y.dtype
            integers, (x, y) = jnp.issubdtype(x.dtype, jnp.integer), (np.asarray(z, "float32") for z in (x, y))
            assert bits == 4 or not integers or np.abs(x - y).max() <= 1
            differ = np.abs(x - y) > 2**-15 * np.abs(y)  # of a scale the last bit that is kept may be another
            assert differ.sum() <= 0.001 * x.size


@built
@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("rule, field", [(fo.sgd(0.5, 0.9), "trace"), (fo.rmsprop(0.5), "nu")], ids=["signed", "not"])
def test_every_code_and_scale(rule, field, code):
    """They are read and written as XLA does, from what is too small for an inverse to the largest."""
    tx, params = fo.quantize_state(rule, block_size=256, code=code), {"w": jnp.zeros((64, 256))}
    state = tx.init(params)
    before = fo.tree.get(state, field)["w"]
    scales = jnp.logspace(-45, 38, 64, dtype="float32")[:, None]
    every = jnp.arange(256).astype(before.dtype)
    every = jnp.maximum(every, -127) if before.dtype == jnp.int8 else every
    state = fo.tree.set(state, **{field: {"w": jnp.tile(every, (64, 1))}})._replace(scale=({"w": scales},))
    args = params, state, {"w": jnp.full((64, 256), 1e-30)}
    assert uses_kernel(stepper(tx), *args)
    ours, pure = jax.jit(stepper(tx))(*args), purely(stepper(tx), *args)
    np.testing.assert_allclose(ours[0]["w"], pure[0]["w"], rtol=2**-21, atol=2**-124)  # products near the smallest
    np.testing.assert_allclose(ours[1].scale[0]["w"], pure[1].scale[0]["w"], rtol=2**-15)
    x, y = (np.asarray(fo.tree.get(state, field)["w"], "float32") for _, state in (ours, pure))
    assert np.abs(x - y).max() <= 1 and (x != y).mean() <= 0.001


@built
def test_codes_of_two_formats():
    """A slot has its own."""
    octaves = fo.quantize_state(fo.scale_by_rms(), block_size=32)
    companded = fo.quantize_state(fo.trace(0.9), code="companded")
    tx, params, grads = fo.chain(octaves, companded, fo.scale(-0.1)), tree(0), tree(1)
    args = params, tx.init(params), grads
    assert uses_kernel(stepper(tx), *args)
    ours, pure = jax.jit(stepper(tx))(*args), purely(stepper(tx), *args)
    assert_close(ours[0], pure[0], 8)
    for x, y in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(pure[1]), strict=True):
        assert (~np.isclose(np.asarray(x, "float32"), np.asarray(y, "float32"), rtol=2**-15)).mean() <= 0.001


@built
@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_codes_of_a_block_that_is_not_finite(bad, code):
    tx, params, grads = fo.quantize_state(fo.adam(1e-2), min_size=100, code=code), tree(0), tree(1)
    grads["big"] = grads["big"].at[3, 100].set(bad)
    state = tx.init(params)
    for _ in range(2):  # the second reads what is not finite
        args = params, state, grads
        ours, pure = jax.jit(stepper(tx))(*args), purely(stepper(tx), *args)
        for x, y in zip(*(jax.tree.leaves((new, tx.decode(state))) for new, state in (ours, pure)), strict=True):
            np.testing.assert_array_equal(jnp.isfinite(x), jnp.isfinite(y))
        params, state = ours
        grads["big"] = jnp.zeros_like(grads["big"])


@built
def test_codes_of_a_scalar():
    """They have one scale without axes; the pure path takes them."""
    tx, params, grads = fo.quantize_state(fo.adam(1e-2), min_size=0), tree(0), tree(1)
    args = params, tx.init(params), grads
    assert_close(jax.jit(stepper(tx))(*args)[0], purely(stepper(tx), *args)[0], 1)


@built
@pytest.mark.parametrize("dtypes", [{"state_dtype": "bfloat16"}, {"mu_dtype": "bfloat16"}])
def test_slots_of_16_bits(dtypes):
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-2, **dtypes))
    ours, grads = (tree(0), tx.init(tree(0))), tree(1)
    assert uses_kernel(stepper(tx), *ours, grads)
    for _ in range(2):
        ours, pure = jax.jit(stepper(tx))(*ours, grads), purely(stepper(tx), *ours, grads)
        assert_close(ours[0], pure[0], 4)
        for x, y in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(pure[1]), strict=True):
            np.testing.assert_allclose(np.asarray(x, "float32"), np.asarray(y, "float32"), rtol=2**-7)


@built
def test_many_leaves_and_none():
    sizes = {f"{i:03}": (ENOUGH // 60,) for i in range(70 + 2)}
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adam(1e-2))
    params, grads = tree(0, sizes=sizes), tree(1, sizes=sizes) | {"003": None, "060": None}
    args = params, tx.init(params), grads
    new, state = jax.jit(stepper(tx))(*args)
    assert_close((new, state), purely(stepper(tx), *args), 4)
    assert_close(new["060"], params["060"], 0)


@built
def test_nan_stays_in_its_leaf_and_an_infinite_norm_gives_zeros():
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(1.0))
    params, grads = tree(0), tree(1)
    for bad in jnp.nan, 1e30:
        args = params, tx.init(params), grads | {"odd": grads["odd"].at[3].set(bad)}
        assert_close(jax.jit(stepper(tx))(*args), purely(stepper(tx), *args), 4)


@built
@pytest.mark.parametrize("tx", [fo.chain(fo.clip(0.5), fo.sgd(0.1)), fo.lion(1e-2)], ids=["clip", "lion"])
def test_nan_stays_where_it_is(tx):
    params, grads = tree(0), tree(1)
    args = params, tx.init(params), grads | {"odd": grads["odd"].at[3].set(jnp.nan)}
    assert uses_kernel(stepper(tx), *args)
    new, _ = jax.jit(stepper(tx))(*args)
    assert np.flatnonzero(jnp.isnan(new["odd"])).tolist() == [3]
    assert not jnp.isnan(new["big"]).any()


@built
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_adagrad_with_nothing_seen_stands_still(eps_in_sqrt):
    tx, params = fo.chain(fo.scale_by_rss(0.0, 0.0, eps_in_sqrt), fo.scale(-0.1)), tree(0)
    args = params, tx.init(params), tree(1) | {"odd": jnp.zeros(17)}
    assert uses_kernel(stepper(tx), *args)
    assert_close(jax.jit(stepper(tx))(*args)[0]["odd"], params["odd"], 0)


@built
def test_an_epsilon_is_not_corrected():
    """In the first step v̂ = g², whatever eps is."""
    tx, params, grads = fo.rmsprop(1.0, eps=0.25, bias_correction=True), tree(0), tree(1)
    args = params, tx.init(params), grads
    assert uses_kernel(stepper(tx), *args)
    expected = jax.tree.map(lambda w, g: w - g / jnp.sqrt(g * g + 0.25), params, grads)
    assert_close(jax.jit(stepper(tx))(*args)[0], expected, 8)


@built
@pytest.mark.parametrize("bits", [32, 8])
def test_updates_may_be_used_for_anything(bits):
    """Kernels give them where state is stored as codes; XLA makes them as fast otherwise. A sum needs none."""
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-2, weight_decay=0.1))
    tx = tx if bits == 32 else fo.quantize_state(tx, bits)
    params, grads, ulps = tree(0), tree(1), {32: 4, 8: 16}
    args = params, tx.init(params), grads

    def added(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def turned(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda p, u: u + p, params, updates), state

    def plain(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    def logged(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state, fo.global_norm(updates), fo.global_norm(grads)

    def doubled(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, jax.tree.map(lambda u: 2 * u, updates)), state

    def elsewhere(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(jax.tree.map(lambda p: p + 1, params), updates), state

    def one_of_them(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state, updates["odd"]

    def repeated(params, state, grads):
        return jax.lax.while_loop(lambda x: x[2] < 2, lambda x: (*plain(*x[:2], grads), x[2] + 1), (params, state, 0))

    for fn in added, turned, plain, logged, doubled, elsewhere, one_of_them, repeated:
        kernel = bits == 8 or fn in (added, turned)
        assert uses_kernel(fn, *args) == kernel, fn
        assert_close(
            jax.jit(fn)(*args)[0], purely(lambda *args, fn=fn: fn(*args), *args)[0], ulps[bits] if kernel else 0
        )

    def direction(params, state, grads):
        return tx.update(grads, state, params)[0]

    assert not uses_kernel(direction, *args)  # it would make new slots, for nobody


@built
def test_steps_of_other_libraries():
    """They add updates by `params + updates`, for which a kernel has the sum."""
    nnx, train_state = pytest.importorskip("flax.nnx"), pytest.importorskip("flax.training.train_state")
    equinox = pytest.importorskip("equinox")
    tx, params, grads = fo.adamw(1e-2), tree(0), tree(1)
    state = tx.init(params)

    def of_equinox(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return equinox.apply_updates(params, updates), state

    def of_optax(params, state, grads):
        updates, _ = optax.chain(optax.identity(), tx).update(grads, (optax.EmptyState(), state), params)
        return optax.apply_updates(params, updates)

    def of_linen(params, state, grads):
        held = train_state.TrainState(0, lambda x: x, params, tx, state)
        return held.apply_gradients(grads=grads).params

    for fn in of_equinox, of_optax, of_linen:
        assert uses_kernel(fn, params, state, grads), fn
        ours, pure = jax.jit(fn)(params, state, grads), purely(lambda *args, fn=fn: fn(*args), params, state, grads)
        assert_close(ours, pure, 1)

    model = nnx.Linear(128, 129, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @jax.jit
    def of_nnx(optimizer, model):
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones(128)) ** 2))(model))
        return nnx.state(model)

    assert KERNEL in of_nnx.lower(optimizer, model).as_text()


@built
def test_an_update_is_an_array_like_others():
    """It knows what it makes of its params, and is an ordinary tracer otherwise."""
    tx, params, grads = fo.adam(1e-2), tree(0), tree(1)

    def used(params, state, grads):
        u, p = tx.update(grads, state, params)[0]["big"], params["big"]
        assert isinstance(u, jax.Array) and isinstance(u, jax.core.Tracer) and repr(u)
        return [
            *(p + u, u + p, u + 1.0, 1 + u, u + u, u + np.ones(257, "float32"), u + 1j, u.at[0].set(0.0), u @ u.T),
            *(jnp.stack([u, p]), jax.jit(lambda u, p: u + p)(u, p), jax.vmap(lambda u, p: p + u)(u, p)),
            *(jax.grad(lambda x: jnp.sum((p + x * u) ** 2))(2.0), jax.grad(lambda p: jnp.sum((p + u) ** 2))(p)),
            jax.lax.scan(lambda sum, row: (sum + row, sum + u[0]), jnp.zeros(257), u)[1],
            *jax.lax.cond(p[0, 0] > 0, lambda p, u: (p + u, u), lambda p, u: (p, u), p, u),
        ]

    args = params, tx.init(params), grads
    with jax.checking_leaks():
        ours = jax.jit(used)(*args)
    pure = purely(lambda *args: used(*args), *args)
    assert [x.aval for x in ours] == [x.aval for x in pure]
    for x, y in zip(ours, pure, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@built
@pytest.mark.parametrize("param, grad", [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_updates_in_the_dtype_of_params(param, grad):
    tx, params, grads = fo.quantize_state(fo.lion(1e-2)), tree(0, param), tree(1, grad)
    args = params, tx.init(params), grads

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), updates, state

    assert uses_kernel(step, *args)
    ours, pure = jax.jit(step)(*args), purely(lambda *args: step(*args), *args)
    assert_close(ours[:2], pure[:2], int(param == "float32"))  # XLA adds a product before it is rounded
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(jnp.signbit(x), jnp.signbit(y)), ours[1], pure[1])


@built
def test_inside_other_transformations():
    inner = fo.adam(1e-2)
    tx = fo.partition({"a": inner, "b": fo.set_to_zero()}, {"odd": "b", "**": "a"})
    args = tree(0), tx.init(tree(0)), tree(1)
    assert uses_kernel(stepper(tx), *args)
    assert_close(jax.jit(stepper(tx))(*args), purely(stepper(tx), *args), 1)


@built
def test_jit_scan_vmap_grad():
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(0.1, 0.9))
    args = tree(0), tx.init(tree(0)), tree(1)
    step = stepper(tx)

    def scanned(params, state, grads):
        return jax.lax.scan(lambda carry, _: (step(*carry, grads), None), (params, state), None, 3)[0]

    twice = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), args)

    def loss(grads):
        return sum(jnp.sum(p**2) for p in step(*args[:2], grads)[0].values())

    assert uses_kernel(scanned, *args) and uses_kernel(jax.jit(step), *args)
    with jax.checking_leaks():
        for fn, xs in (scanned, args), (jax.vmap(step), twice), (jax.grad(loss), args[2:]):
            assert_close(jax.jit(fn)(*xs), purely(lambda *xs, fn=fn: fn(*xs), *xs), 8)
    assert not uses_kernel(jax.vmap(step), *twice)


@built
def test_hyperparameters_as_arguments():
    def step(tx, params, state, grads):
        return stepper(tx)(params, state, grads)

    jitted = jax.jit(step)
    for lr in 0.1, 0.2:
        tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(lr))
        args = tree(0), tx.init(tree(0)), tree(1)
        assert_close(jitted(tx, *args), purely(lambda *xs: step(*xs), tx, *args), 4)
    assert jitted._cache_size() == 1 and uses_kernel(step, tx, *args)


@built
def test_left_to_xla():
    adam, params, grads = fo.adam(1e-2), tree(0), tree(1)
    narrow = fo.adam(1e-2, state_dtype="float16")

    class mine(fo.scale_by_adam):
        def update(self, updates, state, params=None, **extra):
            return super().update(updates, state, params)

    small = {"w": jnp.ones(8)}
    mesh = NamedSharding(Mesh(np.array(jax.devices()), "x"), PartitionSpec())
    for why, tx, p, g in (
        ("small", adam, small, small),
        ("slots of another 16 bits", narrow, params, grads),
        ("a link without a kernel", fo.chain(fo.clip_by_block_rms(1.0), fo.scale_by_adam()), params, grads),
        ("an update of one's own", fo.chain(mine(), fo.scale(-0.1)), params, grads),
        ("complex", adam, params | {"odd": params["odd"] + 0j}, grads | {"odd": grads["odd"] * 1j}),
        ("params of another 16 bits", fo.sgd(0.1), tree(0, "float16"), grads),
        ("gradients of another 16 bits", fo.sgd(0.1), params, tree(1, "float16")),
        ("gradients as updates", fo.conditionally_transform(adam, lambda count: count > 0), params, grads),
        ("a link of MultiSteps without a kernel", fo.MultiSteps(fo.novograd(0.1), 2), params, grads),
        ("several devices", adam, jax.device_put(params, mesh), jax.device_put(grads, mesh)),
    ):
        assert not uses_kernel(stepper(tx), p, tx.init(p), g), why
    state = adam.init(params)
    assert uses_kernel(stepper(adam), params, state, grads)
    with native.disabled():
        assert not uses_kernel(stepper(adam), params, state, grads)
    assert KERNEL in str(jax.make_jaxpr(stepper(adam))(params, state, grads))
    jax.export.export(jax.jit(stepper(adam)))(params, state, grads)  # which refuses a custom call


def test_switched_off_by_the_environment():
    code = "from functional_opt import native; assert not native.enabled()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"FUNCTIONAL_OPT_NATIVE": "0"}, check=True)


def orthogonal(x):
    return fo.orthogonalize().update(x, fo.EmptyState())[0]


@built
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (7, 5), (33, 65), (65, 33), (64, 32), (33, 66), (3, 130)])
def test_newton_schulz(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(os.cpu_count() + 1, *shape)), "float32")
    text = jax.jit(orthogonal).lower(x).as_text()
    assert "newton_schulz" in text and f"in_pairs = {str(max(shape) >= 2 * min(shape)).lower()}" in text
    np.testing.assert_allclose(jax.jit(orthogonal)(x), purely(orthogonal, x), atol=2e-5)


@built
def test_newton_schulz_keeps_nan_in_its_matrix():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4 * os.cpu_count(), 8, 40)), "float32")
    np.testing.assert_allclose(
        jax.jit(orthogonal)(x.at[::2, 3, 3].set(jnp.nan))[1::2], purely(orthogonal, x)[1::2], atol=2e-5
    )


@built
def test_newton_schulz_mapped_and_differentiated():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, os.cpu_count(), 4, 6)), "float32")
    for fn in jax.vmap(orthogonal), jax.grad(lambda x: jnp.sum(orthogonal(x)[..., 0])):
        np.testing.assert_allclose(jax.jit(fn)(x), purely(fn, x), atol=2e-5)
    single = x[0, :1]
    assert "newton_schulz" not in jax.jit(orthogonal).lower(single).as_text()
