"""LoRA-RITE: both factors of a pair, how pairs are found, and that only their product counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..conformance.references_matrix import half_of_lora_rite
from ..helpers import assert_close

RNG = np.random.default_rng(0)
A, B = 0.3 * RNG.standard_normal((6, 2)), 0.3 * RNG.standard_normal((2, 5))
TARGET, NOISE = RNG.standard_normal((6, 5)), 0.3 * RNG.standard_normal((50, 6, 5))
PAIR = {"lora_a": jnp.float32(A), "lora_b": jnp.float32(B)}


def gradients(a, b, noise=0.0):
    """Of a quadratic loss of A·B."""
    g = (a @ b - TARGET + noise) / 5
    return {"lora_a": g @ b.T, "lora_b": a.T @ g}


def trained(tx, params, steps=50, of=lambda p: (p["lora_a"], p["lora_b"]), to=lambda g, p: g):
    """The params after every step of training on the noisy gradients."""
    state, step, found = tx.init(params), jax.jit(tx.update), []
    for noise in NOISE[:steps]:
        updates, state = step(to(gradients(*of(params), noise), params), state, params)
        params = fo.apply_updates(params, updates)
        found.append(params)
    return found


@pytest.mark.parametrize("escape", [False, True])
@pytest.mark.parametrize("clip_norm, skip_rms", [(1e9, 1e9), (0.8, 1e9), (1e9, 0.2)])
def test_both_factors_follow_the_paper(escape, clip_norm, skip_rms):
    rule = {"b1": 0.9, "b2": 0.95, "escape": escape}
    halves, a, b = [half_of_lora_rite(**rule) for _ in range(2)], A, B
    with jax.enable_x64(True):
        tx = fo.lora_rite(0.05, weight_decay=0.1, clip_norm=clip_norm, skip_rms=skip_rms, **rule)
        found = trained(tx, {"lora_a": jnp.asarray(A), "lora_b": jnp.asarray(B)})
    bounded = 0
    for noise, params in zip(NOISE, found, strict=True):
        g = gradients(a, b, noise)
        turned = [(g["lora_a"], *np.linalg.qr(b.T)), (g["lora_b"].T, *np.linalg.qr(a))]
        plain = [g @ np.linalg.inv(r) for g, _, r in turned]
        skipped = [g * (np.sqrt(np.mean(g**2)) <= skip_rms) for g in plain]
        shrink = min(1, clip_norm / np.sqrt(sum(np.sum(g**2) for g in skipped)).clip(1e-9))
        bounded += shrink < 1 or any(np.any(x != y) for x, y in zip(plain, skipped, strict=True))
        steps = zip(halves, turned, skipped, strict=True)
        u_a, u_b = (half(shrink * g, q, np.linalg.inv(r)) for half, (_, q, r), g in steps)
        a, b = a - 0.05 * (u_a + 0.1 * a), b - 0.05 * (u_b.T + 0.1 * b)
        assert_close(params, {"lora_a": a, "lora_b": b}, rtol=1e-9, atol=1e-11)
    assert 0 < bounded < 50 or (clip_norm, skip_rms) == (1e9, 1e9)


def test_only_the_product_counts():
    """Other factors of the same matrix take the same way, which Adam's do not."""
    turn = np.float32([[3.0, 1.0], [0.0, 0.2]])
    other = {"lora_a": PAIR["lora_a"] @ turn, "lora_b": np.linalg.inv(turn) @ PAIR["lora_b"]}

    def ways(tx):
        return [[p["lora_a"] @ p["lora_b"] for p in trained(tx, start, 20)] for start in (PAIR, other)]

    assert_close(*ways(fo.lora_rite(0.02)), rtol=1e-3, atol=1e-3)
    assert max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(*ways(fo.adam(0.02)), strict=True)) > 0.1


def test_a_start_of_zeros_trains():
    start = {"lora_a": PAIR["lora_a"], "lora_b": jnp.zeros((2, 5))}
    first, *_, last = trained(fo.lora_rite(0.1), start)
    assert_close(first["lora_a"], start["lora_a"])
    assert jnp.max(jnp.abs(first["lora_b"])) > 0.1
    u, s, v = np.linalg.svd(TARGET)
    best = np.sum((u[:, :2] * s[:2] @ v[:2] - TARGET) ** 2)
    loss = [np.sum((np.asarray(p["lora_a"] @ p["lora_b"]) - TARGET) ** 2) - best for p in (start, last)]
    assert loss[1] < 0.3 * loss[0]


TREES = {
    "names": lambda a, b: {"up": {"lora_a": a, "lora_b": b}},
    "suffixes": lambda a, b: {"kernel_lora_a": a, "kernel_lora_b": b},
    "modules": lambda a, b: {"lora_A": {"weight": a.T}, "lora_B": {"weight": b.T}},
    "stack": lambda a, b: {"lora_a": jnp.stack([a, a]), "lora_b": jnp.stack([b, b])},
    "heads": lambda a, b: {"lora_a": a.reshape(2, 3, 2), "lora_b": b[:, :, None]},
}


@pytest.mark.parametrize("name", TREES)
def test_pairs_are_found(name):
    """By names, in both layouts, in stacks, and with several axes for the inputs or the outputs."""
    make = TREES[name]
    grads = gradients(PAIR["lora_a"], PAIR["lora_b"])
    params, grads_there = (make(*(jnp.asarray(x) for x in pair.values())) for pair in (PAIR, grads))
    alone, tree = fo.lora_rite(0.1, clip_norm=100.0), fo.lora_rite(0.1, clip_norm=100.0)
    state, state_there = alone.init(PAIR), tree.init(params)
    for _ in range(3):
        expected, state = alone.update(grads, state, PAIR)
        updates, state_there = tree.update(grads_there, state_there, params)
    assert_close(updates, make(expected["lora_a"], expected["lora_b"]), rtol=1e-4, atol=1e-6)


def test_other_names():
    params = {"layer": [{"down": PAIR["lora_a"], "up": PAIR["lora_b"]}]}
    tx = fo.lora_rite(0.1, pairs={"layer/*/down": "layer/*/up"})
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert jnp.all(updates["layer"][0]["down"] != 0)
    assert fo.from_config(fo.to_config(tx)) == tx


def test_a_layout_decides_between_two_ranks():
    tall, wide = jnp.ones((8, 3)), jnp.ones((3, 8))
    ranks = {"in_out": 3, "out_in": 8, None: 3}
    for layout, rank in ranks.items():
        state = fo.scale_by_lora_rite(matrix_layout=layout).init({"lora_a": tall, "lora_b": wide})
        assert state.nu["lora_a"].shape == (rank, rank)


def test_a_factor_with_a_side_shorter_than_the_rank():
    params = {"lora_a": jnp.float32(RNG.standard_normal((2, 3))), "lora_b": jnp.float32(RNG.standard_normal((3, 5)))}
    tx, grads = fo.lora_rite(0.1), jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)
    updates, state = tx.update(grads, tx.init(params), params)
    updates, state = tx.update(grads, state, params)
    assert all(bool(jnp.all(jnp.isfinite(u)) and jnp.any(u != 0)) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    "params, message",
    [
        ({"x": {"lora_a": A}}, r"params\['x'\]\['lora_a'\] needs its partner at 'x/lora_b'"),
        ({"x": {"lora_b": B, "lora_a": None}}, r"params\['x'\]\['lora_b'\] needs its partner at 'x/lora_a'"),
        ({"lora_a": A, "lora_b": B, "bias": A}, r"params\['bias'\] is in no pair.*freeze it.*partition"),
        (
            {"lora_a": A, "lora_b": B[:1]},
            r"params\['lora_a'\] has shape \(6, 2\) and params\['lora_b'\] has \(1, 5\)",
        ),
        ({"lora_a": A[0], "lora_b": B}, r"params\['lora_a'\] has shape \(2,\)"),
    ],
)
def test_leaves_that_are_no_pairs_are_refused_by_path(params, message):
    with pytest.raises(ValueError, match=message):
        fo.lora_rite(0.1).init(params)


@pytest.mark.parametrize("pairs", [{}, {"*a": "b"}, {"a": "a"}, {"a": 1}, ("a", "b"), "ab", 3])
def test_wrong_pairs_are_refused(pairs):
    with pytest.raises(ValueError, match="pairs must be a dict such as"):
        fo.lora_rite(0.1, pairs=pairs)


def test_the_state_of_other_params_is_refused():
    tx = fo.lora_rite(0.1)
    with pytest.raises(ValueError, match=r"params\['lora_a'\] has shape \(6, 2\), but .* \(5, 2\) there"):
        tx.update(PAIR, tx.init({**PAIR, "lora_a": jnp.ones((5, 2))}), PAIR)


def test_beside_a_frozen_model_in_16_bits():
    params = {"dense": {"kernel": jnp.ones((6, 5)), **PAIR}, "bias": jnp.ones(3)}
    params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    tx = fo.groups(fo.lora_rite(0.1), {"*lora_*": {}, "**": "frozen"})
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert_close(updates["dense"]["kernel"], np.zeros((6, 5)))
    assert updates["dense"]["lora_a"].dtype == jnp.bfloat16 and jnp.all(updates["dense"]["lora_a"] != 0)
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}
