"""Every optimizer's state goes through the libraries that save states, and training goes on from it to the bit."""

import jax
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, make_params
from .helpers import EACH, STEPS, advance, begun, bits, each, trained, trained_further


def assert_restored(restored, state):
    """The same structure and the same bits, so that a step from either is the same."""
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(state), strict=True):
        assert bits(x) == bits(y), jax.tree_util.keystr(path)


@each
def test_bytes_of_flax(case):
    """`from_bytes` gives arrays of NumPy, and a step takes them."""
    serialization = pytest.importorskip("flax.serialization")
    params, state = trained(case)
    start = begun(case)
    restored = serialization.from_bytes(start, serialization.to_bytes(state))
    assert_restored(restored, state)
    assert_restored(serialization.from_state_dict(start, serialization.to_state_dict(state)), state)
    assert_close(advance(case.tx(), params, restored, [STEPS]), trained_further(case))


def test_orbax(tmp_path):
    """All of them in one checkpoint."""
    orbax = pytest.importorskip("orbax.checkpoint")
    states = {case.name: trained(case)[1] for case in EACH}
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "states", {case.name: begun(case) for case in EACH})
    assert_restored(restored, states)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(restored))


def test_safetensors(tmp_path):
    """All of them in one file, under their paths."""
    safetensors = pytest.importorskip("safetensors.flax")
    states = {case.name: trained(case)[1] for case in EACH}
    leaves, treedef = jax.tree_util.tree_flatten_with_path(states)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    safetensors.save_file(dict(zip(names, [x for _, x in leaves], strict=True)), tmp_path / "states")
    read = safetensors.load_file(tmp_path / "states")
    assert_restored(treedef.unflatten([read[name] for name in names]), states)


@pytest.mark.parametrize(
    "make", [fo.scale_by_psgd_kron, lambda **o: fo.add_noise(0.1, 0.5, **o)], ids=["psgd", "noise"]
)
def test_a_typed_key_in_a_state_is_taken_and_kept(make):
    """As Optax and earlier versions have it."""
    params, tx = make_params(), make(key=jax.random.key(7))
    state = tx.init(params)
    assert np.asarray(state.rng_key).dtype == np.uint32
    typed = state._replace(rng_key=jax.random.wrap_key_data(state.rng_key))
    updates, new = tx.update(params, state, params)
    updates_typed, new_typed = tx.update(params, typed, params)
    assert_close(updates_typed, updates)
    assert new_typed.rng_key.dtype == typed.rng_key.dtype
    assert_close(jax.random.key_data(new_typed.rng_key), new.rng_key)
