"""Threads that train models of their own, share an optimizer, or only read: no step is lost, no tracer is seen."""

import os
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, LossScaleOptimizer, MultiOptimizer

from .helpers import assert_same
from .test_interrupts import Custom, make_variables, several

SCALE = int(os.environ.get("THREADS", "1"))
"""Multiplies the numbers of runs and steps. Run by hand with THREADS=40."""


@pytest.fixture(autouse=True)
def often_switched():
    """Lets threads alternate some hundred times more often than Python does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(*fns, timeout=120 * SCALE):
    """Runs functions in a thread each, and raises the first error. Fails if one does not come to an end."""
    errors, start = [], threading.Barrier(len(fns))

    def guarded(fn):
        try:
            start.wait()
            fn()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=[fn], daemon=True) for fn in fns]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout)
    assert not any(t.is_alive() for t in threads), "a thread hangs"
    if errors:
        raise errors[0]


def loss_of(variables, target=0.0):
    return lambda: sum(jnp.sum((v - target) ** 2) for v in variables)


class Model:
    """Variables and an optimizer of their own."""

    def __init__(self, target, var_list):
        self.variables, self.opt = make_variables([(3,), (2, 2)]), Adam(0.1)
        self.target, self.given = target, self.variables if var_list else None

    def train(self):
        for _ in range(5):
            self.opt.minimize(loss_of(self.variables, self.target), self.given)

    def result(self):
        return [v.numpy() for v in self.variables], self.opt.get_weights()


@pytest.mark.parametrize("var_list", [True, False])
def test_models_of_their_own(var_list):
    expected = []
    for target in (1.0, 2.0):
        model = Model(target, var_list)
        model.train()
        expected.append(model.result())
    for _ in range(2 * SCALE):
        models = [Model(target, var_list) for target in (1.0, 2.0)]
        at_once(*(m.train for m in models))
        assert_same([m.result() for m in models], expected)


def test_minimize_while_variables_are_made():
    stop = threading.Event()

    def make():
        while not stop.is_set():
            kept.append([Variable(0.0, name=f"other{i}") for i in range(50)])
            del kept[:-2]

    def train():
        try:
            model.train()
        finally:
            stop.set()

    for _ in range(2 * SCALE):
        kept, model = [], Model(1.0, False)
        stop.clear()
        at_once(make, train)


SHARED = {
    "Adam": lambda: Adam(0.1),
    "Custom": Custom,
    "scaled": lambda: LossScaleOptimizer(Adam(0.1)),
    "several": several,
}


@pytest.mark.parametrize("opt", SHARED.values(), ids=SHARED)
def test_a_shared_optimizer_loses_no_step(opt):
    opt, variables, steps = opt(), make_variables([(3,)] * 4), 5 * SCALE
    pairs = [(jnp.sin(v.value), v) for v in variables]
    compiled = opt.make_train_step(loss_of(variables), variables)
    ways = [
        lambda: opt.apply_gradients(pairs),
        lambda: opt.apply_gradients([*pairs, pairs[0]]),
        lambda: opt.minimize(loss_of(variables), variables),
        compiled,
    ]
    at_once(*(lambda way=way: [way() for _ in range(steps)] for way in ways))
    assert int(opt.iterations) == len(ways) * steps
    assert all(np.isfinite(v.numpy()).all() for v in variables)


def test_steps_of_a_shared_optimizer_add_up():
    v, w, opt = Variable(0.0, name="v"), Variable(0.0, name="w"), SGD(1.0)
    ones = [(jnp.float32(-1.0), v)], [(jnp.float32(-1.0), w), (jnp.float32(-1.0), v)]
    steps = 50 * SCALE
    at_once(*(lambda pairs=pairs: [opt.apply_gradients(pairs) for _ in range(steps)] for pairs in ones * 2))
    assert (float(v), float(w), int(opt.iterations)) == (4 * steps, 2 * steps, 4 * steps)


def test_a_global_step_misses_none():
    v, count, opt, steps = Variable(0.0, name="v"), Variable(0, trainable=False, name="count"), SGD(1.0), 20 * SCALE
    step = lambda: [opt.apply_gradients([(1.0, v)], global_step=count) for _ in range(steps)]  # noqa: E731
    at_once(step, step, step)
    assert int(count) == int(opt.iterations) == 3 * steps


def reading(opt, variables, way):
    if way == "apply_gradients":
        pairs = [(jnp.sin(v.value), v) for v in variables]
        return lambda: opt.apply_gradients(pairs)
    if way == "minimize":
        return lambda: opt.minimize(loss_of(variables), variables)
    return opt.make_train_step(loss_of(variables), variables)


READ = {
    "packed": (lambda: Adam(0.1), 40, "apply_gradients", 100),
    "not packed": (lambda: SGD(0.1, momentum=0.9), 3, "apply_gradients", 250),
    "means": (lambda: Adam(0.1, use_ema=True), 3, "apply_gradients", 250),
    "custom": (Custom, 3, "apply_gradients", 100),
    "scaled": (lambda: LossScaleOptimizer(Adam(0.1)), 3, "apply_gradients", 100),
    "several": (several, 4, "apply_gradients", 100),
    "minimize": (lambda: Adam(0.1), 3, "minimize", 10),
    "make_train_step": (lambda: Adam(0.1), 3, "make_train_step", 250),
}


@pytest.mark.parametrize("case", READ)
def test_readers_beside_the_steps(case):
    make, n, way, steps = READ[case]
    opt, variables = make(), make_variables([(3,)] * n)
    step, stop = reading(opt, variables, way), threading.Event()
    step()
    inner = opt.optimizers[0] if isinstance(opt, MultiOptimizer) else opt
    slots = [opt.get_slot(variables[0], name) for name in inner.get_slot_names()]
    counts = []

    def train():
        try:
            for _ in range(steps * SCALE):
                step()
        finally:
            stop.set()

    def reader(read):
        def run():
            while not stop.is_set():
                read()

        return run

    def check_iterations():
        counts.append(int(opt.iterations))
        del counts[:-2]
        assert counts == sorted(counts)

    at_once(
        train,
        reader(lambda: [np.array(v.value) for v in variables]),
        reader(lambda: [np.array(w) for w in opt.get_weights()]),
        reader(lambda: [np.array(slot.value) for slot in slots]),
        reader(check_iterations),
    )
    assert int(opt.iterations) == 1 + steps * SCALE


def test_arrays_that_were_taken_do_not_change():
    opt, variables = Adam(0.1), make_variables([(3,)] * 3)
    step, stop = opt.make_train_step(loss_of(variables), variables), threading.Event()
    step()
    slot, taken = opt.get_slot(variables[0], "m"), []

    def train():
        try:
            for i in range(100 * SCALE):
                step() if i % 2 else opt.apply_gradients([(jnp.ones(3), v) for v in variables])
        finally:
            stop.set()

    def take():
        while not stop.is_set():
            for x in (variables[0].value, slot.value, opt.iterations.value):
                taken.append((x, np.array(x)))
            del taken[: -3 * 200]

    at_once(train, take)
    for x, copy in taken:
        np.testing.assert_array_equal(np.asarray(x), copy)


def test_training_while_another_thread_compiles():
    variables, opt, stop = make_variables([(3,)] * 3), Adam(0.1), threading.Event()
    pairs = [(jnp.ones(3), v) for v in variables]
    taken = [0]

    def compile_others():
        try:
            for n in range(2 * SCALE):
                others, another = make_variables([(4 + n,)] * 5), Adam(0.1)
                another.make_train_step(loss_of(others), others)()
                assert int(another.iterations) == 1
        finally:
            stop.set()

    def train():
        while not stop.is_set():
            opt.apply_gradients(pairs)
            taken[0] += 1

    at_once(compile_others, train)
    assert int(opt.iterations) == taken[0] > 0


def test_one_function_for_all_threads():
    total = Variable(0, trainable=False, name="total")

    @keras.function
    def add(x):
        total.assign_add(x)
        return total.value

    steps, seen = 50 * SCALE, []
    at_once(*[lambda: seen.extend(int(add(1)) for _ in range(steps))] * 4)
    assert sorted(seen) == list(range(1, 4 * steps + 1))


def test_a_callback_reads_variables():
    seen, other = [], Variable(7.0, trainable=False, name="other")

    def look(x):
        seen.append((float(other), float(v.value.sum())))
        return np.asarray(x)

    constraint = lambda x: jax.pure_callback(look, jax.ShapeDtypeStruct(x.shape, x.dtype), x)  # noqa: E731
    v, opt = Variable(np.ones(3, np.float32), name="v", constraint=constraint), SGD(1.0)
    at_once(lambda: [opt.apply_gradients([(jnp.ones(3), v)]) for _ in range(3)])
    assert [x for x, _ in seen] == [7.0] * 3
    assert [total for _, total in seen] == [3.0, 0.0, -3.0]
