"""save and restore: training goes on with the same bits, in other objects and in another order of variables."""

import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras, params_ema
from functional_opt.keras import optimizers

from .helpers import make_gradients, make_variables, snapshot, train

CLASSES = (
    "SGD RMSprop Adam AdamW Adamax Nadam Adagrad Adadelta Ftrl Lion Lamb Adafactor Muon ScheduleFreeAdamW".split()
)
BEFORE, AFTER = 4, 3


def same_bits(actual, expected):
    assert [np.asarray(x).tobytes() for x in actual] == [np.asarray(x).tobytes() for x in expected]


def goes_on(make, path, step=None, before=BEFORE, **of_variables):
    """N + M steps, against N, save, restore into new objects, M; returns the optimizer of the second half."""
    take = step or (lambda opt, variables, gradients: train(opt, variables, gradients))
    gradients, variables = make_gradients(before + AFTER), make_variables(**of_variables)
    take(opt := make(), variables, gradients)
    others = make_variables(**of_variables)
    take(saved := make(), others, gradients[:before])
    saved.save(path, others)
    for v in (kernel_and_bias := make_variables(**of_variables)):
        v.assign(jnp.zeros_like(v.value))
    (restored := make()).restore(path, kernel_and_bias[::-1])
    same_bits(restored.averaged_params(kernel_and_bias), saved.averaged_params(others))
    take(restored, kernel_and_bias, gradients[before:])
    same_bits([v.value for v in kernel_and_bias], [v.value for v in variables])
    assert int(restored.iterations.value) == int(opt.iterations.value)
    return restored


@pytest.mark.parametrize("dialect", ["keras2", "keras3"])
@pytest.mark.parametrize("name", [*CLASSES, "ScheduleFreeAdamW"])
def test_every_class(tmp_path, name, dialect):
    rate = optimizers.schedules.ExponentialDecay(0.1, 3, 0.9)
    rate = 0.1 if (name, dialect) == ("Nadam", "keras2") else rate  # which takes no schedule
    goes_on(lambda: getattr(optimizers, name)(rate, dialect=dialect), tmp_path / "a")


OTHERS = {
    "amsgrad": lambda: optimizers.Adam(0.1, amsgrad=True, weight_decay=0.1, clipnorm=1.0),
    "average": lambda: optimizers.Adam(0.1, use_ema=True, ema_overwrite_frequency=3, dialect="keras3"),
    "accumulation": lambda: optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3, use_ema=True),
    "loss scale": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.1), dynamic_growth_steps=3),
    "several": lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(0.1, momentum=0.9), {".*/bias": optimizers.Adam(0.1)})
    ),
    "chain": lambda: keras.Optimizer.from_transformation(params_ema(0.9)),
}


@pytest.mark.parametrize("before", [3, 4, 5])
@pytest.mark.parametrize("name", OTHERS)
def test_wrappers_averages_and_windows(tmp_path, name, before):
    goes_on(OTHERS[name], tmp_path / "a", before=before)


class Custom(keras.Optimizer):
    """Momentum by hand, with a weight of its own."""

    def __init__(self, rate=0.1, **kwargs):
        super().__init__("custom", learning_rate=rate, **kwargs)

    def build(self, var_list):
        super().build(var_list)
        if not hasattr(self, "largest"):
            self.largest = self.add_weight("largest", shape=())

    def update_step(self, gradient, variable, learning_rate):
        self.largest.assign(jnp.maximum(self.largest, jnp.max(jnp.abs(gradient))))
        variable.assign_sub(learning_rate * gradient / self.largest)


def test_code_of_the_user(tmp_path):
    restored = goes_on(Custom, tmp_path / "a")
    assert float(restored.largest.value) > 0


def loss_of(kernel, bias):
    return lambda x: jnp.sum((kernel.value * x + bias.value) ** 2)


def compiled(opt, variables, gradients):
    step = opt.make_train_step(loss_of(*variables))
    for kernel, _ in gradients:
        step(jnp.asarray(kernel))


def test_make_train_step(tmp_path):
    goes_on(lambda: optimizers.AdamW(0.1, gradient_accumulation_steps=3), tmp_path / "a", compiled)


def test_numbers_that_were_assigned(tmp_path):
    variables = make_variables()
    opt = optimizers.SGD(0.1, momentum=0.5)
    train(opt, variables, make_gradients(1))
    opt.learning_rate = 0.03
    opt.momentum = 0.7
    opt.save(tmp_path / "a", variables)
    (new := optimizers.SGD(0.1, momentum=0.5)).restore(tmp_path / "a", variables)
    assert new.get_config() == opt.get_config()
    same_bits(new.get_weights(), opt.get_weights())


def test_variables_that_do_not_train(tmp_path):
    kernel, bias = make_variables()
    mean = keras.Variable(np.float32([5.0]), name="mean", trainable=False)
    train(opt := optimizers.Adam(0.1), (kernel, bias), make_gradients(1))
    opt.save(tmp_path / "a", [mean, kernel, bias])
    mean.assign([0.0])
    (new := optimizers.Adam(0.1)).restore(tmp_path / "a", [kernel, bias, mean])
    assert mean.numpy().tolist() == [5.0]
    same_bits(new.get_weights(), opt.get_weights())


def test_variables_of_other_libraries(tmp_path):
    """nnx's have no paths, so a dict gives them; neither their order nor that of their slots matters."""
    nnx = pytest.importorskip("flax.nnx")

    def make():
        return {"a": nnx.Param(jnp.ones(2)), "b": nnx.Param(jnp.zeros(2)), "c": nnx.Param(jnp.ones(3))}

    grads = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, -1.0]), "c": jnp.ones(3)}

    def step(opt, variables):
        opt.apply_gradients([(grads[name], v) for name, v in variables.items()])

    step(opt := optimizers.LossScaleOptimizer(optimizers.Adam(0.1)), variables := make())
    with pytest.raises(ValueError, match="two variables have the path 'Param'.*give a dict of variables"):
        opt.save(tmp_path / "a", variables.values())
    opt.save(tmp_path / "a", variables)
    others = dict(reversed(make().items()))
    (new := optimizers.LossScaleOptimizer(optimizers.Adam(0.1))).restore(tmp_path / "a", others)
    for _ in range(2):
        step(opt, variables)
        step(new, others)
    same_bits([others[name][...] for name in grads], [variables[name][...] for name in grads])


def test_what_does_not_fit_changes_nothing(tmp_path):
    gradients = make_gradients(2)
    train(opt := optimizers.Adam(0.1), variables := make_variables(), gradients)
    opt.save(path := tmp_path / "a", variables)
    train(other := optimizers.Adam(0.2), others := make_variables(), gradients[:1])
    before = snapshot(other, others)

    def unchanged():
        now = snapshot(other, others)
        same_bits(now[0] + now[2], before[0] + before[2])
        assert now[1] == before[1]

    data = path.read_bytes()
    (tmp_path / "b").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        other.restore(tmp_path / "b", others)
    unchanged()
    with pytest.raises(ValueError, match="the optimizer has slots for 'dense/kernel', which is not among"):
        other.restore(path, others[1:])
    unchanged()
    extra = keras.Variable(1.0, name="extra")
    with pytest.raises(ValueError, match="the given variables have 'extra', but the checkpoint has no such array"):
        other.restore(path, [*others, extra])
    unchanged()
    assert not other._engine.is_known(extra)
    for fresh, message in (
        (optimizers.Nadam(0.1), "is of a ScaleByAdamState, but the optimizer makes a ScaleByNadamState there"),
        (optimizers.RMSprop(0.1), "but the optimizer makes no such slot"),
    ):
        with pytest.raises(ValueError, match=message):
            fresh.restore(path, others)
        assert not fresh.built
    twin = keras.Variable(1.0, name="dense/bias")
    with pytest.raises(ValueError, match="two variables have the path 'dense/bias'"):
        opt.save(path, [*variables, twin])
    with pytest.raises(ValueError, match="the optimizer has slots for 'dense/bias'"):
        opt.save(path, variables[:1])
    assert path.read_bytes() == data
