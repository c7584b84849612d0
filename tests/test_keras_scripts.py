"""The ports of Keras scripts in examples/keras_scripts, run for a few steps."""

import importlib
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras.optimizers import SGD, Adagrad, Adam, MultiOptimizer, OptimizerMap

SCRIPTS = Path(__file__).parent.parent / "examples" / "keras_scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    yield importlib.import_module
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def values(variables):
    return [np.asarray(v) for v in variables]


def are_equal(some, others):
    return all((a == b).all() for a, b in zip(values(some), values(others), strict=True))


def test_gan(script):
    pytest.importorskip("sklearn")
    before, after, gen_loss, disc_loss = script("gan").main(steps=60)
    assert after < 0.85 * before, (before, after)
    assert 0 < gen_loss < 5 and 0 < disc_loss < 5


def test_dqn(script, monkeypatch):
    dqn = script("dqn")
    monkeypatch.setattr(dqn, "UPDATE_TARGET_EVERY", 100)
    _, model_at_100, target_at_100 = dqn.main(steps=100)
    lengths, model, target = dqn.main(steps=130)
    assert are_equal(target, target_at_100) and are_equal(target, model_at_100)
    assert not any((a == b).all() for a, b in zip(values(model), values(target), strict=True))
    assert sum(lengths) <= 130 and all(8 <= n <= dqn.LIMIT for n in lengths)


def test_the_pole_falls_where_it_is_pushed(script):
    env = script("dqn").CartPole(seed=0)
    for action, sign in ((0, 1), (1, -1)):  # pushing the cart left makes the pole fall right
        env.reset()
        fell = False
        while not fell:
            state, _, fell, is_over = env.step(action)
        assert np.sign(state[2]) == sign and not is_over and 8 <= env.steps <= 11


def test_transfer(script):
    pytest.importorskip("sklearn")
    accuracies, pretrained, frozen, tuned = script("transfer").main(steps=60)
    assert are_equal(pretrained, frozen)  # to the last bit
    assert not any((a == b).all() for a, b in zip(frozen, tuned, strict=True))
    assert accuracies[1] > accuracies[0] + 0.2 and accuracies[2] > accuracies[1] - 0.02, accuracies


def test_the_two_ways_to_give_parts_rates_of_their_own(script):
    layerwise = script("transfer").LayerwiseAdam(0.5, factors={"base": 0.125})
    both = MultiOptimizer(OptimizerMap(Adam(0.5), {"base/.*": Adam(0.0625)}))
    ends = []
    for optimizer in (layerwise, both):
        base, head = keras.Variable([3.0, -1.0], name="base/kernel"), keras.Variable(2.0, name="head/kernel")
        for _ in range(3):
            optimizer.minimize(lambda base=base, head=head: jnp.sum(base**2) * head, [base, head])
        ends.append(values([base, head]))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-6)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-6)
    twin = type(layerwise).from_config(json.loads(json.dumps(layerwise.get_config())))
    assert twin.factors == {"base": 0.125} and float(twin.learning_rate) == 0.5


def test_embeddings(script):
    losses, before, after = script("embeddings").main(steps=250)
    assert losses[-1] < 1.55 < 1.6 < losses[0] and after > 2 * before, (losses[0], losses[-1], before, after)


def test_only_rows_that_are_read_move(script):
    embeddings, rng = script("embeddings"), np.random.default_rng(0)
    word2vec, corpus = embeddings.Word2Vec(rng), embeddings.make_corpus(rng, sentences=100)
    before, read = values(word2vec.trainable_variables), [set(), set()]
    step = Adagrad(0.1).make_train_step(lambda *batch: embeddings.loss_function(word2vec(*batch)))
    for _ in range(2):
        batch = embeddings.skipgrams(corpus, rng)
        step(*batch)
        read = [rows | set(ids.ravel().tolist()) for rows, ids in zip(read, batch, strict=True)]
    after = values(word2vec.trainable_variables)
    for rows, old, new in zip(read, before, after, strict=True):
        assert set(np.flatnonzero((old != new).any(axis=1)).tolist()) == rows
        assert len(rows) < len(old)


@pytest.mark.parametrize("name", ["custom_optimizer", "lookahead"])
def test_a_resumed_run_is_the_uninterrupted_one(script, name):
    losses, end, resumed_end = script(name).main(steps=60)
    assert losses[-1] < 0.8 * losses[0], (losses[0], losses[-1])
    assert are_equal(end, resumed_end)


def test_lookahead_around_a_built_in_optimizer(script):
    lookahead, v = script("lookahead").Lookahead(SGD(0.25), sync_period=2), keras.Variable(1.0, name="v")
    seen = []
    for _ in range(4):
        lookahead.minimize(lambda: v**2, [v])
        seen.append(float(v))
    assert seen == [0.5, 0.625, 0.3125, 0.390625]  # 0.625 is half-way from 1 to 0.25


def test_every_script_is_in_the_table():
    table = (SCRIPTS / "README.md").read_text()
    assert all(f"[{path.name}]({path.name})" in table for path in SCRIPTS.glob("*.py"))
