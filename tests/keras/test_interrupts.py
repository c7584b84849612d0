"""Whatever interrupts a step: everything is as it was before the step or after it, and training goes on."""

import os
import random
import signal
import sys
import threading
import time
import zlib
from _thread import interrupt_main
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.core import ranges
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, LossScaleOptimizer, MultiOptimizer, Optimizer
from functional_opt.keras.variables import recording

TRIES = int(os.environ.get("INTERRUPTS", "25"))
"""Interrupts per test. Run by hand with INTERRUPTS=1000."""
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a destructor


class Custom(Optimizer):
    """Momentum, as code of the user's."""

    def __init__(self):
        super().__init__("Custom")
        self._set_hyper("learning_rate", 0.1)

    def _create_slots(self, var_list):
        for v in var_list:
            self.add_slot(v, "m")

    def _resource_apply_dense(self, grad, var, apply_state=None):
        m = self.get_slot(var, "m")
        m.assign(0.5 * m + grad)
        var.assign_sub(self._get_hyper("learning_rate") * m.value)


def several():
    parts = Adam(0.1), SGD(0.1, momentum=0.9)
    return MultiOptimizer(lambda v: parts[v.path < "v2"])


def make_variables(shapes, **kwargs):
    fill = lambda shape: np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)  # noqa: E731
    return [Variable(fill(shape), name=f"v{i}", **kwargs) for i, shape in enumerate(shapes)]


class Case:
    """An optimizer, all variables that a step changes, and the step."""

    def __init__(self, opt, variables, step):
        self.opt, self.variables, self.step = opt, variables, step

    def state(self):
        """A digest of all that a step changes. Reading it fails on a deleted buffer."""
        arrays = [*(v.numpy() for v in self.variables), *self.opt.get_weights()]
        return int(self.opt.iterations), *(zlib.crc32(np.ascontiguousarray(x)) for x in arrays)


def eager(opt, shapes, **kwargs):
    def make():
        optimizer, variables = opt(), make_variables(shapes, **kwargs)
        grads = [jnp.sin(v.value) for v in variables]
        return Case(optimizer, variables, lambda: optimizer.apply_gradients(zip(grads, variables, strict=True)))

    return make


def listed_twice():
    opt, variables = Adam(0.1), make_variables([(3,)] * 2)
    pairs = [(jnp.sin(v.value), v) for v in variables]
    return Case(opt, variables, lambda: opt.apply_gradients(pairs * 2))


def with_global_step():
    opt, variables, count = Adam(0.1), make_variables([(3,)] * 2), Variable(0, trainable=False, name="count")
    pairs = [(jnp.sin(v.value), v) for v in variables]
    return Case(opt, [*variables, count], lambda: opt.apply_gradients(pairs, global_step=count))


def over_a_loss(opt, way, **kwargs):
    """A step of a loss that assigns to a variable, too."""

    def make():
        optimizer, variables = opt(), make_variables([(3,)] * 2, **kwargs)
        mean = Variable(0.0, trainable=False, name="mean")

        def loss():
            mean.assign_add(1.0)
            return sum(jnp.sum(v**2) for v in variables)

        def plain():
            value, grads = keras.value_and_grad(loss, variables)
            optimizer.apply_gradients(zip(grads, variables, strict=True))
            return value

        step = {
            "minimize": lambda: optimizer.minimize(loss, variables),
            "make_train_step": optimizer.make_train_step(loss, variables),
            "function": keras.function(plain),
        }[way]
        return Case(optimizer, [*variables, mean], step)

    return make


def scaled(inner):
    return lambda: LossScaleOptimizer(inner(), dynamic_growth_steps=3)


def by_callback(x):
    return jax.pure_callback(lambda y: np.asarray(y), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def adam():
    return Adam(0.1)


FEW = [(3,)] * 2
WAYS = {
    "packed": eager(adam, [(3,)] * 50),
    "large": eager(adam, [(1200, 1000)] * 4),
    "listed twice": listed_twice,
    "global_step": with_global_step,
    "custom": eager(Custom, FEW),
    "scaled": eager(scaled(adam), FEW),
    "scaled custom": eager(scaled(Custom), FEW),
    "several": eager(several, [(3,)] * 4),
    "callback": eager(adam, FEW, constraint=by_callback),
    "minimize": over_a_loss(adam, "minimize"),
    "make_train_step": over_a_loss(adam, "make_train_step"),
    "function": over_a_loss(adam, "function"),
    "custom, make_train_step": over_a_loss(Custom, "make_train_step"),
    "callback, make_train_step": over_a_loss(adam, "make_train_step", constraint=by_callback),
}


class Attack:
    """Interrupts steps of a case, and compares what it finds with a twin that nobody interrupts."""

    def __init__(self, make, steps=2):
        self.case, self.twin = make(), make()
        for _ in range(steps):  # so that they are compiled
            self.case.step()
            self.twin.step()
        self.known = [self.twin.state()]  # the state before the next step, and the one after it
        self.counts = {"before": 0, "after": 0, "not interrupted": 0}

    def run(self, interrupted):
        """Takes a step by `interrupted(step)`, checks the state while the exception is there, and steps again."""
        if sum(self.counts.values()) % 2:
            self.uninterrupted()  # its state is packed, as nobody has looked at it
        try:
            interrupted(self.case.step)
        except KeyboardInterrupt:
            state = self.case.state()
            assert state in (self.before(), self.after())
            self.counts["before" if state == self.before() else "after"] += 1
        except ValueError as e:  # JAX makes another error of what a callback raises, or a comparison
            assert "CpuCallback error" in str(e) or "equality of metadata" in str(e)
            state = self.case.state()
            assert state == self.before()
            self.counts["before"] += 1
        else:
            state = self.case.state()
            assert state == self.after()
            self.counts["not interrupted"] += 1
        assert not recording.active() and not ranges._is_unread.get()
        if state == self.after():
            self.known.pop(0)
        self.uninterrupted()
        assert self.case.state() == self.before()

    def uninterrupted(self):
        self.after()
        self.case.step()
        self.known.pop(0)

    def before(self):
        return self.known[0]

    def after(self):
        if len(self.known) == 1:
            self.twin.step()
            self.known.append(self.twin.state())
        return self.known[1]


ways = pytest.mark.parametrize("way", WAYS)


class AtEvent:
    """Raises at the n-th event at which Python looks for signals: the start of a function, the end of one in C."""

    def __init__(self, n):
        self.left, self.events = n, 0

    def __call__(self, frame, event, arg):
        if event in ("call", "c_return"):
            self.events += 1
            if self.events == self.left:
                self.interrupt()

    def interrupt(self):
        raise KeyboardInterrupt

    def interrupted(self, step):
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)  # CPython 3.11 counts a frame that never began as one
        sys.setprofile(self)
        try:
            step()
        finally:
            sys.setprofile(None)


class TwoSignals(AtEvent):
    """Two signals arrive at once: the second handler runs after the first has raised."""

    signals = signal.SIGALRM, signal.SIGUSR1

    def interrupt(self):
        [*map(interrupt_main, self.signals)]  # no handler runs in between


def raise_interrupt(number, frame):
    raise KeyboardInterrupt


@pytest.fixture
def handlers():
    """Handlers that raise, for the time of a test."""
    before = {s: signal.signal(s, raise_interrupt) for s in TwoSignals.signals}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


def by_alarm(delay):
    """Interrupts by a signal after a while."""

    def interrupted(step):
        try:
            signal.setitimer(signal.ITIMER_REAL, delay)
            step()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return interrupted


def by_thread(delay):
    """Interrupts from another thread after a while."""

    def interrupt():
        time.sleep(delay)
        interrupt_main()

    def interrupted(step):
        thread, interval = threading.Thread(target=interrupt), sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # the thread need not wait for long until it may run
        try:
            thread.start()
            step()
        finally:
            sys.setswitchinterval(interval)
            thread.join()

    return interrupted


@cache
def attack_on(way):
    return Attack(WAYS[way])


def points(attack, tries, last=40):
    """Events of a step: some of all, and each of the last ones, when results are stored."""
    attack.uninterrupted()
    counter = AtEvent(-1)
    attack.run(counter.interrupted)
    first = random.Random(0).sample(range(1, counter.events), min(tries, counter.events - 1))
    return [*first, *range(counter.events - min(last, 2 * tries), counter.events)]


def report(way, how, counts):
    print(f"{how}, {way}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))


def fewer(way, tries):
    """A smaller number for the ways whose steps, or whose checks, take long."""
    return max(2, tries // {"large": 12, "minimize": 5, "packed": 3}.get(way, 1))


@ways
def test_at_any_point(way):
    attack = attack_on(way)
    attack.counts = dict.fromkeys(attack.counts, 0)
    for n in points(attack, fewer(way, TRIES)):
        attack.run(AtEvent(n).interrupted)
    report(way, "at any point", attack.counts)
    assert attack.counts["before"] and attack.counts["after"]


@pytest.mark.parametrize("way", ["packed", "custom", "scaled", "several", "make_train_step", "function"])
def test_two_signals_at_any_point(way, handlers):
    attack = attack_on(way)
    attack.counts = dict.fromkeys(attack.counts, 0)
    for n in points(attack, fewer(way, TRIES) // 2):
        attack.run(TwoSignals(n).interrupted)
    report(way, "two signals", attack.counts)


@pytest.mark.parametrize("how", [by_alarm, by_thread])
@ways
def test_at_any_moment(way, how, handlers):
    attack = attack_on(way)
    attack.counts = dict.fromkeys(attack.counts, 0)
    attack.after()
    start = time.perf_counter()
    attack.uninterrupted()
    duration = time.perf_counter() - start
    for _ in range(fewer(way, TRIES)):
        attack.run(how(random.uniform(1e-6, 2 * duration)))
    report(way, how.__name__, attack.counts)


COLD = {
    "eager": lambda n: eager(adam, [(n,)] * 2),
    "custom": lambda n: eager(Custom, [(n,)] * 2),
    "minimize": lambda n: over_a_loss(adam, "minimize"),
}


@pytest.mark.parametrize("way", COLD)
def test_the_first_step(way):
    make = COLD[way](1)
    make().step()
    counter = AtEvent(-1)
    counter.interrupted(make().step)
    for i in range(max(2, TRIES // 4)):
        attack = Attack(COLD[way](1 + i), steps=0)
        attack.run(AtEvent(random.randrange(1, counter.events)).interrupted)


class AtManager(AtEvent):
    """Raises where one of this library's `with` statements begins or ends."""

    def __call__(self, frame, event, arg):
        caller = frame.f_back and frame.f_back.f_code.co_filename
        if "contextlib" in frame.f_code.co_filename and caller and "functional_opt" in caller:
            super().__call__(frame, event, arg)


@pytest.mark.parametrize("way", ["make_train_step", "function", "custom"])
def test_no_thread_is_left_recording(way):
    counter = AtManager(-1)
    counter.interrupted(WAYS[way]().step)
    events = range(1, counter.events + 1)
    for n in random.sample(events, min(len(events), max(2, TRIES // 10))):
        attack = Attack(WAYS[way], steps=0)
        attack.run(AtManager(n).interrupted)
        assert not recording.active()
