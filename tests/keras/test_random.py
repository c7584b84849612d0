"""keras.random: what is drawn, from which state, eagerly and in compiled functions."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras import Variable, random
from functional_opt.keras.optimizers import SGD, Adam

LOGITS = np.log([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
X = np.arange(12.0, dtype=np.float32).reshape(4, 3) + 1
DRAWS = {
    "normal": lambda seed: random.normal((4, 3), 1.0, 2.0, seed=seed),
    "truncated_normal": lambda seed: random.truncated_normal((4, 3), seed=seed),
    "uniform": lambda seed: random.uniform((4, 3), seed=seed),
    "randint": lambda seed: random.randint((4, 3), 0, 1000, seed=seed),
    "categorical": lambda seed: random.categorical(LOGITS, 20, seed=seed),
    "shuffle": lambda seed: random.shuffle(np.arange(20), seed=seed),
    "dropout": lambda seed: random.dropout(np.ones(30, np.float32), 0.5, seed=seed),
}


def same(x, y):
    return np.array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", DRAWS)
def test_where_the_numbers_come_from(name):
    draw = DRAWS[name]
    assert same(draw(1), draw(1)) and same(draw(1), draw(np.int64(1))) and not same(draw(1), draw(2))
    a, b = random.SeedGenerator(5), random.SeedGenerator(5)
    first, second = draw(a), draw(a)
    assert not same(first, second)
    assert same(draw(b), first) and same(draw(b), second)
    assert a.state.numpy().tolist() == [5, 2]
    random.set_random_seed(7)
    first, second = draw(None), draw(None)
    assert not same(first, second)
    random.set_random_seed(7)
    assert same(draw(None), first) and same(draw(None), second)
    assert same(draw(jax.random.key(3)), draw(3))


@pytest.mark.parametrize("seed", [None, 0, random.SeedGenerator(3)], ids=["None", "int", "generator"])
@pytest.mark.parametrize("name", DRAWS)
def test_a_compiled_function_draws_what_an_eager_one_does(name, seed):
    draw = DRAWS[name]
    step = keras.function(lambda: draw(seed))
    random.set_random_seed(7)
    if isinstance(seed, random.SeedGenerator):
        seed.state.assign([3, 0])
    compiled = [np.asarray(step()) for _ in range(3)]
    random.set_random_seed(7)
    if isinstance(seed, random.SeedGenerator):
        seed.state.assign([3, 0])
    eager = [draw(seed) for _ in range(3)]
    for x, y in zip(compiled, eager, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    assert same(compiled[0], compiled[1]) == (seed == 0)


def test_moments_and_ranges():
    x = np.asarray(random.normal((40_000,), 3.0, 0.5, seed=0))
    assert abs(x.mean() - 3) < 0.02 and abs(x.std() - 0.5) < 0.02
    x = np.asarray(random.truncated_normal((40_000,), 3.0, 0.5, seed=0))
    assert abs(x.mean() - 3) < 0.02 and abs(x.std() - 0.44) < 0.02 and abs(x - 3).max() <= 1.0
    x = np.asarray(random.uniform((40_000,), -1.0, 3.0, seed=0))
    assert abs(x.mean() - 1) < 0.03 and x.min() >= -1 and x.max() < 3
    x = np.asarray(random.randint((40_000,), -1, 3, seed=0))
    np.testing.assert_allclose(np.unique(x, return_counts=True)[1] / 40_000, [0.25] * 4, atol=0.02)
    x = np.asarray(random.categorical(LOGITS, 40_000, seed=0))
    assert x.shape == (2, 40_000) and x.dtype == np.int32
    for row, logits in zip(x, LOGITS, strict=True):
        np.testing.assert_allclose(np.bincount(row) / 40_000, np.exp(logits), atol=0.02)
    x = np.asarray(random.dropout(np.ones((200, 200), np.float32), 0.75, seed=0))
    assert sorted(set(x.ravel().tolist())) == [0.0, 4.0] and abs(x.mean() - 1) < 0.05


def test_shapes_and_dtypes():
    for draw in (random.normal, random.truncated_normal, random.uniform):
        assert draw((), seed=0).shape == () and draw([2, 1], seed=0).dtype == np.float32
        assert draw((2,), dtype="bfloat16", seed=0).dtype == jnp.bfloat16
        with pytest.raises(ValueError, match=f"{draw.__name__} takes a floating-point dtype, got int32"):
            draw((2,), dtype="int32")
    assert random.randint((2,), 0, 9, "int16", seed=0).dtype == np.int16
    with pytest.raises(ValueError, match="randint takes an integer dtype, got float32"):
        random.randint((2,), 0, 9, "float32")
    with pytest.raises(ValueError, match=r"logits must have the shape \(batch, classes\), got \(3,\)"):
        random.categorical(LOGITS[0], 2)
    columns = np.asarray(random.shuffle(X, axis=1, seed=1))
    assert all(sorted(row) == list(x) for row, x in zip(columns, X, strict=True)) and not same(columns, X)
    assert sorted(map(tuple, np.asarray(random.shuffle(X, seed=1)))) == sorted(map(tuple, X))
    dropped = np.asarray(random.dropout(X, 0.5, noise_shape=(None, 1), seed=1))
    assert all((row == 0).all() or (row == 2 * x).all() for row, x in zip(dropped, X, strict=True))
    assert {tuple(row != 0) for row in dropped} == {(True,) * 3, (False,) * 3}
    with pytest.raises(ValueError, match="noise_shape must have as many entries"):
        random.dropout(X, 0.5, noise_shape=(4,))
    for wrong in (1.0, -0.5, 2):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got"):
            random.dropout(X, wrong)
    assert same(random.dropout(X, 0.0), X)


@pytest.mark.parametrize("wrong", [True, "1", 1.5, -1, 2**32, [1], np.ones(2)])
def test_seeds_that_are_refused(wrong):
    for act in (random.SeedGenerator, random.set_random_seed, lambda seed: random.normal((2,), seed=seed)):
        with pytest.raises((TypeError, ValueError), match="seed must be"):
            act(wrong)


@pytest.mark.parametrize("way", ["eager", "function", "make_train_step"])
def test_a_noisy_step_is_that_of_a_script(way):
    def trained(way, steps, generator, v, opt):
        loss = lambda: jnp.sum((v + random.normal((2,), seed=generator)) ** 2)  # noqa: E731
        minimize = lambda: opt.minimize(loss, [v])  # noqa: E731
        step = {"eager": minimize, "function": keras.function(minimize)}.get(way) or opt.make_train_step(loss, [v])
        for _ in range(steps):
            step()

    v, w, opt = Variable([1.0, 2.0], name="v"), Variable([1.0, 2.0], name="v"), SGD(0.125)
    generator = random.SeedGenerator(4)
    trained(way, 2, generator, v, opt)
    saved = generator.state.numpy()
    assert saved.tolist() == [4, 2]
    resumed = random.SeedGenerator()
    resumed.state.assign(saved)
    trained(way, 2, resumed, v, opt)
    expected, keys = w.numpy(), random.SeedGenerator(4)
    for _ in range(4):
        expected = expected - 0.125 * 2 * (expected + np.asarray(jax.random.normal(keys.next(), (2,))))
    np.testing.assert_allclose(v.numpy(), expected, rtol=1e-5)


def test_a_function_that_fails_draws_nothing():
    generator, fails = random.SeedGenerator(4), [True]

    @keras.function
    def step():
        x = random.normal((), seed=generator)
        if fails:
            raise RuntimeError("no")
        return x

    with pytest.raises(RuntimeError, match="no"):
        step()
    assert generator.state.numpy().tolist() == [4, 0]
    fails.clear()
    step()
    assert generator.state.numpy().tolist() == [4, 1]


def test_a_seed_set_in_a_function_is_part_of_it():
    @keras.function
    def step():
        random.set_random_seed(3)
        return random.normal(()), random.normal(())

    (a, b), (c, d) = step(), step()
    assert a == c and b == d and a != b


def test_where_a_draw_could_not_be_counted_it_is_refused():
    generator = random.SeedGenerator(4)

    def scanned():
        return jax.lax.scan(lambda carry, _: (carry, random.normal((), seed=generator)), 0.0, length=3)[1]

    for act in (jax.jit(lambda: random.normal((), seed=generator)), scanned, keras.function(scanned)):
        with pytest.raises(RuntimeError, match="cannot count a draw inside of jax.jit, jax.lax.scan"):
            act()
        assert generator.state.numpy().tolist() == [4, 0]
    assert jax.jit(lambda key: random.normal((), seed=key))(jax.random.key(0)).shape == ()
    assert same(jax.jit(lambda: random.uniform((2,), seed=5))(), random.uniform((2,), seed=5))


def test_copies_and_configs():
    generator = random.SeedGenerator(4, name="mine")
    generator.next()
    twin = copy.deepcopy(generator)
    assert same(random.normal((2,), seed=twin), random.normal((2,), seed=generator))
    twin.next()
    assert generator.state.numpy().tolist() == [4, 2] and twin.state.numpy().tolist() == [4, 3]
    assert generator.get_config() == {"seed": 4, "name": "mine"}
    fresh = random.SeedGenerator.from_config(generator.get_config())
    assert fresh.state.name == "mine/seed_generator_state:0" and fresh.state.numpy().tolist() == [4, 0]
    assert not fresh.state.trainable


def test_a_generator_of_an_optimizer():
    class Noisy(Adam):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.generator = random.SeedGenerator(4)

        def update_step(self, gradient, variable, learning_rate):
            noise = random.normal(gradient.shape, seed=self.generator)
            super().update_step(gradient + noise, variable, learning_rate)

    v, opt = Variable([1.0, 2.0], name="v"), Noisy(0.1)
    step = opt.make_train_step(lambda: jnp.sum(v), [v])
    for one in (lambda: opt.minimize(lambda: jnp.sum(v), [v]), step):
        one()
    w, plain, keys = Variable([1.0, 2.0], name="v"), Adam(0.1), random.SeedGenerator(4)
    for _ in range(2):
        plain.apply_gradients([(1 + jax.random.normal(keys.next(), (2,)), w)])
    np.testing.assert_allclose(v.numpy(), w.numpy(), rtol=1e-6)
    assert opt.generator.state.numpy().tolist() == [4, 2]


def test_on_several_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    v, opt, generator = Variable([1.0, 2.0], name="v"), SGD(0.125, axis_name="batch"), random.SeedGenerator(2**32 - 1)
    loss = lambda x: jnp.sum(v * x * random.uniform((2,), seed=generator))  # noqa: E731
    step = opt.make_train_step(loss, [v], mesh=mesh)
    for _ in range(2):
        step(np.ones((4, 2), np.float32))
    assert generator.state.numpy().tolist() == [2**32 - 1, 2]
