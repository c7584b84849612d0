"""keras.function and keras.value_and_grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam
from functional_opt.keras.optimizers.schedules import LearningRateSchedule

from .helpers import no_compilation


def adversaries():
    """Two players, each with an optimizer: the step of each reads the other's variables."""
    g, d = Variable([1.0, -1.0], name="g"), Variable(2.0, name="d")
    g_opt, d_opt = Adam(0.1), SGD(0.1, momentum=0.9)

    def step(x, training=True):
        g_loss, g_grads = keras.value_and_grad(lambda: jnp.sum((g * x - d) ** 2), [g])
        d_loss, d_grads = keras.value_and_grad(lambda: jnp.sum((d - x) ** 2), {"d": d})
        g_opt.apply_gradients(zip(g_grads, [g], strict=True))
        d_opt.apply_gradients([(d_grads["d"], d)])
        return {"g": g_loss, "d": d_loss} if training else g_loss

    return step, [g, d], [g_opt, d_opt]


def test_two_optimizers_in_one_program():
    eager, variables, opts = adversaries()
    compiled, twins, twin_opts = adversaries()
    compiled = keras.function(compiled)
    for x in (1.0, 2.0, np.float32(0.5)):
        a, b = eager(x), compiled(x)
        np.testing.assert_allclose([a["g"], a["d"]], [b["g"], b["d"]], rtol=1e-5)
    with no_compilation():
        opts[1].learning_rate = twin_opts[1].learning_rate = 0.5
        twins[0].assign(variables[0])
        np.testing.assert_allclose(eager(3.0)["g"], compiled(3.0)["g"], rtol=1e-5)
    assert float(compiled(1.0, training=False)) == pytest.approx(float(eager(1.0, training=False)), rel=1e-5)
    for opt, twin in zip(opts, twin_opts, strict=True):
        for x, y in zip(opt.get_weights(), twin.get_weights(), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5)


def test_two_hundred_assignments_compile_nothing():
    v, opt, traces = Variable(0.0, name="v"), SGD(0.5, momentum=0.5), []

    @keras.function
    def step(x):
        traces.append(x)
        opt.minimize(lambda: v * x, [v])

    step(1.0)
    n = len(traces)
    with no_compilation():
        for i in range(200):
            opt.learning_rate, opt.momentum = 0.001 * i, 0.9 - 0.001 * i
            v.assign(i)
            step(float(i))
    assert len(traces) == n == 2


def test_what_is_trainable_and_a_callable_var_list_are_looked_at_in_each_call():
    a, b = Variable(1.0, name="a"), Variable(1.0, name="b")
    opt, chosen = SGD(0.25), [a]
    by_flag = keras.function(lambda: opt.minimize(lambda: a + b))
    by_list = keras.function(lambda: opt.minimize(lambda: a + b, lambda: list(chosen)))
    by_flag(), by_list()
    assert (float(a), float(b)) == (0.5, 0.75)
    a.trainable, chosen[:] = False, [b]
    by_flag(), by_list()
    assert (float(a), float(b)) == (0.5, 0.25)
    a.trainable = True
    by_flag()
    assert (float(a), float(b)) == (0.25, 0.0)


def test_variables_and_optimizers_made_at_the_first_call_and_at_every_call():
    class Model:
        w = opt = None

        @keras.function
        def fit(self, x):
            if self.w is None:
                self.w, self.opt = Variable(jnp.full(2, 3.0), name="w"), SGD(0.5)
            helper = SGD(0.25)  # an optimizer that lives for one call
            other = Variable(1.0, name="other")
            helper.minimize(lambda: other * 2, [other])
            self.opt.minimize(lambda: jnp.sum(self.w) * x, [self.w])
            return other.value

    one, two = Model(), Model()
    assert [float(one.fit(2.0)), float(one.fit(2.0)), float(two.fit(2.0))] == [0.5, 0.5, 0.5]
    assert (one.w.numpy().tolist(), two.w.numpy().tolist()) == ([1.0, 1.0], [2.0, 2.0])
    assert int(one.opt.iterations) == 2


def test_optimizers_made_in_jit_and_in_shard_map():
    def step(x):
        v, opt = Variable(x, name="v"), Adam(0.5)
        opt.apply_gradients([(jnp.ones_like(x), v)])
        return v.value

    np.testing.assert_allclose(jax.jit(step)(jnp.zeros(2)), [-0.5, -0.5], rtol=1e-5)

    def on_each(x, aggregate):
        v, opt = Variable(0.0, name="v"), SGD(1.0, axis_name="d")
        opt.apply_gradients([(x[0], v)], experimental_aggregate_gradients=aggregate)
        return v.value[None]

    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    for aggregate, expected in ((True, [-3.0, -3.0]), (False, [-1.0, -2.0])):
        mapped = jax.shard_map(
            lambda x, aggregate=aggregate: on_each(x, aggregate),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )
        assert jax.jit(mapped)(jnp.array([1.0, 2.0])).tolist() == expected


def test_an_error_leaves_everything_as_it_was():
    v, opt, fails = Variable(1.0, name="v"), Adam(0.5), [True]

    @keras.function
    def step():
        v.assign_add(1.0)
        opt.minimize(lambda: v**2, [v])
        if fails:
            raise KeyError("now")

    with pytest.raises(KeyError, match="now"):
        step()
    assert float(v) == 1.0 and not opt.built and len(opt.get_weights()) == 1
    fails.clear()
    step()
    assert float(v) == pytest.approx(1.5) and int(opt.iterations) == 1


def test_a_schedule_in_python_is_computed_outside_of_the_program():
    class WarmUp(LearningRateSchedule):
        def __call__(self, step):
            return 0.5 if step < 2 else 0.25

    v, opt, traces = Variable(0.0, name="v"), SGD(WarmUp()), []

    @keras.function
    def twice():
        traces.append(0)
        for _ in range(2):
            opt.apply_gradients([(jnp.ones(()), v)])

    for expected in (-1.0, -1.5):
        twice()
        assert float(v) == expected
    opt.make_train_step(lambda: v.value, [v])()
    assert float(v) == -1.75 and len(traces) == 2
    with pytest.raises(RuntimeError, match=r"WarmUp.* branches in Python on the step"):
        jax.jit(lambda n: (opt.iterations.assign(n), opt.apply_gradients([(jnp.ones(()), v)])))(3)


def test_arguments():
    v = Variable(2.0, name="v")
    times = keras.function(lambda x, y=1.0, *, name="a", variable=v: variable * x * y)
    assert [float(times(1.0)), float(times(2, y=3)), float(times(np.ones(()), variable=Variable(5.0)))] == [2, 12, 5]
    assert times({"a": 1.0}["a"]) == 2 and keras.function()(lambda: v + 1)() == 3
    with pytest.raises(TypeError, match="function takes a function, got 3"):
        keras.function(3)


def test_value_and_grad():
    a, b, n = Variable(3.0, name="a"), Variable([1.0, 2.0], name="b"), Variable(0, trainable=False, name="n")

    def loss():
        n.assign_add(1)
        return a**2 * jnp.sum(b), "aux"

    (value, aux), grads = keras.value_and_grad(loss, {"x": [a], "y": b}, has_aux=True)
    assert (float(value), aux, float(grads["x"][0]), grads["y"].tolist(), int(n)) == (
        27.0,
        "aux",
        18.0,
        [9.0, 9.0],
        1,
    )
    value, grads = keras.value_and_grad(lambda: a * 2)
    assert float(value) == 6.0 and [float(g) for g in grads] == [2.0]
    value, gradient = keras.value_and_grad(lambda: a * 2, b)
    assert gradient is None
    with pytest.raises(ValueError, match="var_list must hold variables, got 3"):
        keras.value_and_grad(lambda: a * 2, [3])


def test_complex_variables_go_downhill():
    target = 1 + 3j
    for make in (lambda: SGD(0.1), lambda: SGD(0.05, momentum=0.5), lambda: Adam(0.1)):
        z, opt = Variable(0j, name="z"), make()
        step = opt.make_train_step(lambda z=z: jnp.abs(z - target) ** 2, [z])
        for _ in range(100):
            opt.minimize(lambda z=z: jnp.abs(z - target) ** 2, [z])
            step()
        assert abs(complex(z.value) - target) < 1e-2


def replace_transformers(opt, v):
    opt.gradient_transformers = [lambda pairs: [(3 * g, v) for g, v in pairs]]


def extend_transformers(opt, v):
    opt.gradient_transformers.append(lambda pairs: [(3 * g, v) for g, v in pairs])


CHANGES = {
    "constraint": lambda opt, v: setattr(v, "constraint", lambda x: jnp.clip(x, -0.5, 0.5)),
    "overwrite_with_gradient": lambda opt, v: setattr(v, "overwrite_with_gradient", True),
    "exclude_from_weight_decay": lambda opt, v: opt.exclude_from_weight_decay([v]),
    "gradient_transformers": replace_transformers,
    "more gradient_transformers": extend_transformers,
    "gradient_aggregator": lambda opt, v: setattr(opt, "gradient_aggregator", lambda pairs: pairs[:1]),
    **{
        name: lambda opt, v, name=name, x=x: setattr(opt, name, x)
        for name, x in {
            "loss_scale_factor": 4.0,
            "weight_decay": 0.25,
            "clipnorm": 0.5,
            "clipvalue": 0.5,
            "global_clipnorm": 0.5,
            "ema_momentum": 0.5,
            "ema_overwrite_frequency": 1,
            "decay": 0.5,
            "momentum": 0.5,
            "nesterov": True,
        }.items()
    },
}


class ClipsItself(SGD):
    def _clip_gradients(self, grads):
        return super()._clip_gradients(grads)


@pytest.mark.parametrize("make", [SGD, ClipsItself], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_assigned_later_is_seen(name, make):
    clips = {} if "transformers" in name else {"clipvalue": 2.0}
    results = []
    for way in ("eager", "function", "make_train_step"):
        variables = [Variable([1.0, 2.0], name="v"), Variable([3.0, -1.0], name="w")]
        opt = make(
            0.125,
            0.9,
            weight_decay=0.125,
            use_ema=True,
            ema_momentum=0.75,
            loss_scale_factor=2.0,
            name="SGD",
            **clips,
        )
        loss = lambda variables=variables: sum(jnp.sum(v**2) for v in variables)  # noqa: E731
        minimize = lambda opt=opt, loss=loss, variables=variables: opt.minimize(loss, variables)  # noqa: E731
        if way == "make_train_step":
            step = opt.make_train_step(loss, variables)
        else:
            step = keras.function(minimize) if way == "function" else minimize
        step()
        CHANGES[name](opt, variables[0])
        step()
        step()
        results.append([*(v.numpy() for v in variables), *opt.get_weights()])
    for compiled in results[1:]:
        for x, y in zip(results[0], compiled, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def test_python_runs_twice_at_first_and_then_no_more(capsys):
    v, opt = Variable(1.0, name="v"), SGD(0.25)

    @keras.function
    def step(x):
        print("traced")
        jax.debug.print("run")
        opt.minimize(lambda: v * x, [v])

    for _ in range(3):
        step(1.0)
    jax.effects_barrier()
    assert capsys.readouterr().out.split() == ["traced", "traced", "run", "run", "run"]
    step(2.0)
    assert "traced" not in capsys.readouterr().out
    assert float(v) == -0.25


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"input_signature": None, "reduce_retracing": True}])
def test_options_of_tf_function(options):
    with pytest.raises(TypeError, match=f"keras.function has no {', '.join(options)}: drop it. XLA always compiles"):
        keras.function(**options)
