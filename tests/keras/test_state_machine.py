"""Random calls on one optimizer, in any order: after each, all that it keeps is what a model beside it says.

The model holds the arrays that were last seen, so that what a call must leave alone is compared bit for bit. What a
step does is computed by NumPy in float64, from these arrays and the hyperparameters as they were at the call.

STATE_MACHINE=1000 makes at least 1000 random calls on optimizers of each kind.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from functional_opt.keras import Variable, function
from functional_opt.keras.optimizers import SGD, Adagrad, Adam, Ftrl, Nadam, RMSprop, schedules

CALLS = int(os.environ.get("STATE_MACHINE", "0"))

# The rules: of each the new p, and the slots s in place, from a gradient g at step t with hyperparameters h


def sgd(h, t, p, s, g):
    s["momentum"] = h["momentum"] * s["momentum"] - h["learning_rate"] * g
    return p + s["momentum"]


def adam(h, t, p, s, g, m="m", v="v"):
    s[m] = h["beta_1"] * s[m] + (1 - h["beta_1"]) * g
    s[v] = h["beta_2"] * s[v] + (1 - h["beta_2"]) * g**2
    rate = h["learning_rate"] * np.sqrt(1 - h["beta_2"] ** t) / (1 - h["beta_1"] ** t)
    return p - rate * s[m] / (np.sqrt(s[v]) + 1e-7)


def adam3(h, t, p, s, g):
    return adam(h, t, p, s, g, "momentum", "velocity")


def rmsprop(h, t, p, s, g):
    s["rms"] = h["rho"] * s["rms"] + (1 - h["rho"]) * g**2
    s["momentum"] = h["momentum"] * s["momentum"] + h["learning_rate"] * g / np.sqrt(s["rms"] + 1e-7)
    return p - s["momentum"]


def adagrad(h, t, p, s, g):
    s["accumulator"] = s["accumulator"] + g**2
    return p - h["learning_rate"] * g / (np.sqrt(s["accumulator"]) + 1e-7)


def ftrl(h, t, p, s, g):
    rate, l1, before = h["learning_rate"], h["l1_regularization_strength"], np.sqrt(s["accumulator"])
    s["accumulator"] = s["accumulator"] + g**2
    after = np.sqrt(s["accumulator"])
    s["linear"] = s["linear"] + g - (after - before) / rate * p
    shrunk = np.sign(s["linear"]) * np.maximum(np.abs(s["linear"]) - l1, 0)
    return -shrunk / (after / rate + h["beta"] / rate)


def nadam(h, t, p, s, g):
    b1, b2, cache = h["beta_1"], h["beta_2"], h["cache"]
    u, u_next = (b1 * (1 - 0.5 * 0.96 ** (0.004 * i)) for i in (t, t + 1))
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    m = (1 - u) * g / (1 - cache) + u_next * s["m"] / (1 - cache * u_next)
    return p - h["learning_rate"] * m / (np.sqrt(s["v"] / (1 - b2**t)) + 1e-7)


BROKEN: set[str] = set()
"""The places whose functions raise."""


class Broken(Exception):
    pass


def passes(place):
    def function(grads_and_vars):
        if place in BROKEN:
            raise Broken(place)
        return grads_and_vars

    return function


aggregate, transform = passes("aggregator"), passes("transformer")


def at_most_4(x):
    return jnp.clip(x, -4, 4)


def broken_constraint(x):
    raise Broken("constraint")


# Optimizers of the user's own, which override something, and the rules of those that override the rule


def doubled(pairs):
    return [(None if g is None else 2 * g, v) for g, v in pairs]


class AppliesTwice(SGD):
    def apply_gradients(self, grads_and_vars, name=None, **how):
        return super().apply_gradients(doubled(grads_and_vars), name, **how)


class ComputesTwice(Adagrad):
    def compute_gradients(self, loss, var_list=None, grad_loss=None, **how):
        return doubled(super().compute_gradients(loss, var_list, grad_loss, **how))


class TransformsTwice(RMSprop):
    def _transform_gradients(self, grads_and_vars):
        return doubled(super()._transform_gradients(grads_and_vars))


class Sums(Adam):
    """Passes on half of each gradient, and keeps the sum of them in a slot of its own."""

    def _create_slots(self, var_list):
        super()._create_slots(var_list)
        for v in var_list:
            self.add_slot(v, "sum", "ones")

    def _resource_apply_dense(self, grad, var, apply_state=None):
        self.get_slot(var, "sum").assign_add(grad)
        super()._resource_apply_dense(grad / 2, var, apply_state)


def sums(h, t, p, s, g):
    s["sum"] = s["sum"] + g
    return adam(h, t, p, s, g / 2)


class Fast(Nadam):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, 2 * learning_rate)


def fast(h, t, p, s, g):
    return nadam(h | {"learning_rate": 2 * h["learning_rate"]}, t, p, s, g)


class Signs(SGD):
    """A rule without that of the built-in class, whose slots it does not move."""

    def _resource_apply_dense(self, grad, var, apply_state=None):
        var.assign_sub(self._decayed_lr(var.dtype) * jnp.sign(grad))


def signs(h, t, p, s, g):
    return p - h["learning_rate"] * np.sign(g)


@dataclass
class Kind:
    make: Callable[..., Any]
    rule: Callable
    slots: dict[str, float]  # of the built-in rule, in the order of the weights, and what they begin with
    hyper: dict[str, float]
    choices: dict[str, list[float]] = field(default_factory=dict)  # what hyperparameters are set to
    options: dict[str, Any] = field(default_factory=dict)
    created: dict[str, float] = field(default_factory=dict)  # slots that the code of the optimizer makes
    factor: float = 1.0  # of gradients, before anything else is done with them
    factor_of_loss: float = 1.0  # of those that are computed from a loss

    def __call__(self):
        more = {} if "clipnorm" in self.options else {"gradient_transformers": [transform]}
        return self.make(**self.hyper, **self.options, gradient_aggregator=aggregate, **more)


BETAS = {"beta_1": 0.9, "beta_2": 0.999}
SET_BETAS = {"beta_1": [0.9, 0.5], "beta_2": [0.999, 0.9]}
DECAY = {"decay": [0.0, 0.5]}
M_V = {"m": 0.0, "v": 0.0}
KINDS = {
    "SGD": Kind(SGD, sgd, {"momentum": 0.0}, {"momentum": 0.9}, {"momentum": [0.9, 0.5, 0.0]} | DECAY),
    "Adam": Kind(Adam, adam, M_V, BETAS, SET_BETAS | DECAY),
    "RMSprop": Kind(
        RMSprop, rmsprop, {"rms": 0.0, "momentum": 0.0}, {"rho": 0.9, "momentum": 0.5}, {"rho": [0.9, 0.5]} | DECAY
    ),
    "Adagrad": Kind(Adagrad, adagrad, {"accumulator": 0.1}, {}, DECAY),
    "Ftrl": Kind(
        Ftrl,
        ftrl,
        {"accumulator": 0.1, "linear": 0.0},
        {"l1_regularization_strength": 0.0, "beta": 0.0},
        {"l1_regularization_strength": [0.0, 0.5], "beta": [0.0, 0.5]},
    ),
    "Nadam": Kind(Nadam, nadam, M_V, BETAS, SET_BETAS),
    "Adam with more": Kind(
        *(Adam, adam, M_V, BETAS, SET_BETAS),
        {"clipnorm": 1.5, "weight_decay": 0.125, "use_ema": True, "ema_momentum": 0.75},
    ),
    "Adam of Keras 3": Kind(Adam, adam3, {"momentum": 0.0, "velocity": 0.0}, BETAS, SET_BETAS, {"dialect": "keras3"}),
    "SGD of two gradients": Kind(
        SGD, sgd, {"momentum": 0.0}, {"momentum": 0.9}, {"momentum": [0.9, 0.5]}, {"gradient_accumulation_steps": 2}
    ),
    "SGD, apply_gradients": Kind(
        AppliesTwice, sgd, {"momentum": 0.0}, {"momentum": 0.9}, {"momentum": [0.9, 0.5]} | DECAY, factor=2.0
    ),
    "Adagrad, compute_gradients": Kind(
        ComputesTwice, adagrad, {"accumulator": 0.1}, {}, DECAY, {"dialect": "keras3"}, factor_of_loss=2.0
    ),
    "RMSprop, _transform_gradients": Kind(
        *(
            TransformsTwice,
            rmsprop,
            {"rms": 0.0, "momentum": 0.0},
            {"rho": 0.9, "momentum": 0.5},
            {"rho": [0.9, 0.5]} | DECAY,
        ),
        factor=2.0,
    ),
    "Adam, _resource_apply_dense": Kind(Sums, sums, M_V, BETAS, SET_BETAS | DECAY, created={"sum": 1.0}),
    "Nadam of two gradients, update_step": Kind(
        Fast, fast, M_V, BETAS, SET_BETAS, {"gradient_accumulation_steps": 2}
    ),
    "SGD, its own rule with more": Kind(
        *(Signs, signs, {"momentum": 0.0}, {"momentum": 0.9}, {"momentum": [0.9, 0.5]}),
        {"weight_decay": 0.125, "use_ema": True, "ema_momentum": 0.75, "gradient_accumulation_steps": 2},
    ),
}

SHAPES = [(2,), (1, 2), (2,)]
gradients = st.tuples(*[st.integers(-8, 8).map(lambda n: n / 4)] * 2)
indices = st.integers(0, len(SHAPES) - 1)
some_pairs = st.lists(st.tuples(indices, gradients), min_size=1, max_size=3, unique_by=lambda pair: pair[0])
some_none = st.sets(indices)
rates = st.sampled_from([0.5, 0.1, 0.25])
ways = st.sampled_from(["minimize", "apply_gradients", "function"])
added_names = st.sampled_from(["zeta", "nu"])  # not in alphabetical order; Adam's rule has a field `nu`
SCHEDULE = schedules.PiecewiseConstantDecay([2, 5], [0.5, 0.25, 0.125])


class Machine(RuleBasedStateMachine):
    steps = 0
    kinds = tuple(KINDS.values())

    @initialize(data=st.data(), rate=rates)
    def begin(self, data, rate):
        self.kind = data.draw(st.sampled_from(self.kinds), "kind")
        self.opt = self.kind()
        self.variables = [
            Variable(np.linspace(-1, 2, 2).reshape(shape), name=f"v{i}", constraint=None if i else at_most_4)
            for i, shape in enumerate(SHAPES)
        ]
        self.count = Variable(0.0, trainable=False, name="count")
        self.opt.learning_rate = rate
        self.functions: dict[Any, Callable] = {}  # compiled, by what they do and with which variables
        # the model
        self.values = [v.numpy() for v in self.variables]
        self.counted, self.iterations, self.cache = 0.0, 0, np.float32(1.0)
        self.batches: list[list[int]] = []  # of variables whose slots were made together
        self.joins = False  # whether slots made by `add_slot` join the last batch, as it is of such slots
        self.slots: dict[int, dict[str, np.ndarray]] = {}
        self.added = list(self.kind.created)  # names of slots that are not of the built-in rule
        self.frozen: set[int] = set()
        self.hyper = {"decay": 0.004 if self.is_nadam else 0.0} | self.kind.hyper
        self.rate = lambda t: rate
        self.saved: list[tuple[list, list]] = []
        self.taken: list[tuple[Any, np.ndarray]] = []
        self.left: list[tuple] = []  # optimizers and variables that are used no more, and what they hold

    # The model

    @property
    def extra(self):
        """What is kept before the slots."""
        options = self.kind.options
        names = {"average": "use_ema", "gradient_accumulator": "gradient_accumulation_steps"}
        return [name for name, option in names.items() if option in options]

    def after(self, pairs, of_loss=False):
        """Values, slots and cache after a step, by NumPy in float64; variables listed twice are updated twice."""
        factor = self.kind.factor * (self.kind.factor_of_loss if of_loss else 1.0)
        options, f64 = self.kind.options, np.float64
        n = options.get("gradient_accumulation_steps", 1)
        done = self.iterations // n
        h = {name: f64(np.float32(x)) for name, x in self.hyper.items()}
        h["learning_rate"] = f64(np.float32(self.rate(done)))
        if not self.is_nadam:
            h["learning_rate"] /= 1 + h["decay"] * done
        h["cache"] = self.cache * h["beta_1"] * (1 - 0.5 * 0.96 ** (0.004 * (done + 1))) if self.is_nadam else 1.0
        values, slots, now = {}, {}, (self.iterations + 1) % n == 0
        for i, g in pairs:
            p = f64(values.get(i, self.values[i]))
            s = slots.setdefault(i, {name: f64(x) for name, x in self.slots.get(i, self.fresh(i)).items()})
            g = factor * f64(g).reshape(SHAPES[i])
            if n > 1:
                total = s["gradient_accumulator"] + g
                s["gradient_accumulator"], g = total * (not now), total / n
            if now:
                if "clipnorm" in options:
                    g = g * min(1, options["clipnorm"] / max(np.linalg.norm(g), 1e-30))
                p = p - p * h["learning_rate"] * options.get("weight_decay", 0.0)
                p = self.kind.rule(h, done + 1, p, s, g)
                p = p if i else np.clip(p, -4, 4)
            if now and "average" in s:
                m = options["ema_momentum"] if done else 0.0
                s["average"] = m * s["average"] + (1 - m) * p
            values[i] = p
        return values, slots, h["cache"] if now else self.cache

    def fresh(self, i):
        start = dict.fromkeys(self.extra, 0.0) | self.kind.slots | self.kind.created
        slots = {name: np.full(SHAPES[i], x) for name, x in start.items()}
        return slots | ({"average": self.values[i]} if "average" in slots else {})

    @property
    def is_nadam(self):
        return issubclass(self.kind.make, Nadam)

    def places(self):
        """What the weights are, in the order they must have: "iterations", or (variable, slot) and the like."""
        keras3, known = "dialect" in self.kind.options, [i for batch in self.batches for i in batch]
        places = ["iterations", *["cache"] * (self.is_nadam and bool(known))]
        places += ["learning_rate"] * (keras3 and isinstance(self.opt.learning_rate, Variable))
        places += [(i, name) for name in self.extra for i in known]
        for batch in self.batches:
            if keras3 or self.kind.make is Ftrl:  # variable by variable
                places += [(i, name) for i in batch for name in self.kind.slots]
            else:
                places += [(i, name) for name in self.kind.slots for i in batch]
            places += [(i, name) for name in self.added for i in batch if name in self.slots[i]]
        return places

    def name(self, place):
        if "dialect" in self.kind.options:
            name = {"ComputesTwice": "computes_twice"}.get(self.kind.make.__name__, "adam")
            prefix, joint, plain = name, "_", {"iterations": "iteration", "learning_rate": "learning_rate"}
        else:
            prefix, joint, plain = self.kind.make.__name__, "/", {"iterations": "iter", "cache": "momentum_cache"}
        return f"{prefix}/{plain[place]}:0" if place in plain else f"{prefix}/v{place[0]}{joint}{place[1]}:0"

    def weight(self, place):
        plain = {"iterations": self.iterations, "cache": self.cache, "learning_rate": np.float32(self.rate(0))}
        return plain[place] if place in plain else self.slots[place[0]][place[1]]

    def stepped(self, opt, pairs, of_loss=False):
        """Compares what a step did with the reference; returns what the variables and their slots now are."""
        values, slots, cache = self.after(pairs, of_loss)
        seen_values = {i: self.variables[i].numpy() for i in values}
        weights = {w.name: w.numpy() for w in opt.weights}
        seen_slots = {i: {name: weights[self.name((i, name))] for name in slots[i]} for i in slots}
        for i in values:
            np.testing.assert_allclose(seen_values[i], values[i], rtol=1e-4, atol=1e-4)
            for name in slots[i]:
                np.testing.assert_allclose(seen_slots[i][name], slots[i][name], rtol=1e-4, atol=1e-5, err_msg=name)
        if self.is_nadam:
            cache, expected = weights[self.name("cache")], cache
            np.testing.assert_allclose(cache, expected, rtol=1e-5)
        assert int(opt.iterations) == self.iterations + 1
        return seen_values, seen_slots, cache

    def adopt(self, pairs, of_loss=False):
        for i in {i for i, _ in pairs if i in self.slots}:  # steps leave these alone
            for name in set(self.added) & set(self.slots[i]) - set(self.kind.created):
                slot = self.opt.get_slot(self.variables[i], name)
                np.testing.assert_array_equal(slot.value, self.slots[i][name])
        values, slots, self.cache = self.stepped(self.opt, pairs, of_loss)
        for i, x in values.items():
            self.values[i] = x
        if new := [i for i in slots if i not in self.slots]:
            self.batches.append(new)
            self.joins = False
        self.slots |= slots
        self.iterations += 1

    @invariant()
    def all_is_as_in_the_model(self):
        Machine.steps += 1
        for v, x in zip(self.variables, self.values, strict=True):
            np.testing.assert_array_equal(v.value, x)
        assert float(self.count) == self.counted
        places = self.places()
        assert [w.name for w in self.opt.weights] == [self.name(place) for place in places]
        for place, x in zip(places, self.opt.get_weights(), strict=True):
            np.testing.assert_array_equal(x, self.weight(place), err_msg=str(place))
        added = [name for name in self.added if any(name in slots for slots in self.slots.values())]
        assert self.opt.get_slot_names() == ([*self.kind.slots, *added] if self.slots else [])
        assert self.opt.built == bool(self.slots)
        for i, v in enumerate(self.variables):
            assert v.trainable == (i not in self.frozen)
            for name in [*self.kind.slots, *added]:
                if name in self.slots.get(i, ()):
                    np.testing.assert_array_equal(self.opt.get_slot(v, name).value, self.slots[i][name])
                else:
                    with pytest.raises(KeyError):
                        self.opt.get_slot(v, name)
        for array, x in self.taken:
            np.testing.assert_array_equal(array, x)
        for opt, variables, values, weights in self.left:
            for x, y in zip([*variables, *opt.weights], [*values, *weights], strict=True):
                np.testing.assert_array_equal(x.value, y)

    # Steps

    def listed(self, pairs, none=()):
        arrays = [None if i in none else np.float32(g).reshape(SHAPES[i]) for i, g in pairs]
        return [(g, self.variables[i]) for g, (i, _) in zip(arrays, pairs, strict=True)]

    def loss(self, listed):
        def loss():
            self.count.assign_add(1.0)
            if "loss" in BROKEN:
                raise Broken("loss")
            return sum(jnp.sum(v * g) for g, v in listed)

        return loss

    def compiled(self, how, order):
        """A function of the gradients of these variables that takes a step, compiled: always the same one."""

        def step(grads):
            listed = list(zip(grads, [self.variables[i] for i in order], strict=True))
            if how == "minimize":
                self.opt.minimize(self.loss(listed))
            else:
                self.opt.apply_gradients(listed)
            return self.opt.iterations.value

        return self.functions.setdefault((how, order), function(step))

    @rule(pairs=some_pairs, none=some_none)
    def apply_gradients(self, pairs, none):
        there = [pair for pair in pairs if pair[0] not in none]
        if there:
            assert int(self.opt.apply_gradients(self.listed(pairs, none))) == self.iterations + 1
            self.adopt(there)
        else:
            with pytest.raises(ValueError, match="No gradients provided for any variable"):
                self.opt.apply_gradients(self.listed(pairs, none))

    @rule(pairs=some_pairs, again=gradients)
    def apply_gradients_to_one_twice(self, pairs, again):
        pairs = [*pairs, (pairs[0][0], again)]
        self.opt.apply_gradients(self.listed(pairs))
        self.adopt(pairs)

    @rule(pairs=some_pairs, unread=some_none, how=st.sampled_from(["list", "function", "none"]))
    def minimize(self, pairs, unread, how):
        given = [self.variables[i] for i in dict.fromkeys([i for i, _ in pairs] + sorted(unread))]
        self.take_a_step_down(
            lambda: self.opt.minimize(
                self.loss(self.listed(pairs)), {"list": given, "function": lambda: given, "none": None}[how]
            ),
            [pair for pair in pairs if how != "none" or pair[0] not in self.frozen],
        )

    def take_a_step_down(self, minimize, trained):
        if trained:
            minimize()
            self.counted += 1
            self.adopt(trained, of_loss=True)
        else:
            with pytest.raises(ValueError, match="No variables to minimize"):
                minimize()

    @rule(pairs=some_pairs, how=st.sampled_from(["minimize", "apply_gradients"]))
    def step_in_a_function(self, pairs, how):
        grads = [g for g, _ in self.listed(pairs)]
        step = self.compiled(how, tuple(i for i, _ in pairs))
        if how == "minimize":
            self.take_a_step_down(lambda: step(grads), [pair for pair in pairs if pair[0] not in self.frozen])
        else:
            assert int(step(grads)) == self.iterations + 1
            self.adopt(pairs)

    @rule(changed=st.sets(indices, min_size=1))
    def freeze_or_thaw(self, changed):
        self.frozen ^= changed
        for i in changed:
            self.variables[i].trainable = i not in self.frozen

    @rule(pairs=some_pairs)
    def minimize_by_what_is_not_read(self, pairs):
        unread = [v for i, v in enumerate(self.variables) if i not in dict(pairs)]
        with pytest.raises(ValueError, match="No (gradients provided|variables to minimize)"):
            self.opt.minimize(self.loss(self.listed(pairs)), unread)

    @rule(pairs=some_pairs, wrong=st.sampled_from([np.ones(3), np.ones((2, 1)), np.ones((), np.float32)]))
    def a_gradient_of_another_shape(self, pairs, wrong):
        listed = self.listed(pairs)
        with pytest.raises(ValueError, match="the gradient of v. has shape|has shape"):
            self.opt.apply_gradients([*listed, (wrong, listed[0][1])])

    @rule(pairs=some_pairs, twice=st.booleans())
    def a_gradient_of_whole_numbers(self, pairs, twice):
        listed = self.listed(pairs)
        wrong = (np.ones(listed[0][1].shape, int), listed[0][1])
        with pytest.raises((TypeError, ValueError)):
            self.opt.apply_gradients([*listed, wrong] if twice else [wrong, *listed[1:]])

    def fails(self, pairs, how):
        listed = self.listed(pairs)

        def step():
            if how == "minimize":
                self.opt.minimize(self.loss(listed), [v for _, v in listed])
            else:
                self.opt.apply_gradients(listed)

        with pytest.raises(Broken):
            function(step)() if how == "function" else step()

    @rule(pairs=some_pairs, place=st.sampled_from(["loss", "aggregator", "transformer"]), how=ways)
    def a_function_raises(self, pairs, place, how):
        if place == "transformer" and "clipnorm" in self.kind.options:
            place = "aggregator"
        BROKEN.add(place)
        try:
            self.fails(pairs, "minimize" if place == "loss" else how)
        finally:
            BROKEN.clear()

    @rule(pairs=some_pairs, how=ways)
    def a_constraint_raises(self, pairs, how):
        v = self.variables[pairs[0][0]]
        before, v.constraint = v.constraint, broken_constraint
        try:
            self.fails(pairs, how)
        finally:
            v.constraint = before

    @rule(pairs=some_pairs, again=gradients, how=ways)
    def a_learning_rate_raises(self, pairs, again, how):
        before = self.opt.learning_rate

        def rate():
            raise Broken("learning rate")

        self.opt.learning_rate = rate
        try:
            self.fails(pairs if how == "minimize" else [*pairs, (pairs[0][0], again)], how)
        finally:
            self.opt.learning_rate = before

    # Weights and hyperparameters

    @rule()
    def get_weights(self):
        self.saved = [*self.saved[-2:], (self.places(), self.opt.get_weights())]

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def set_weights(self, data):
        places, weights = data.draw(st.sampled_from(self.saved), "saved")
        if places == self.places():
            self.opt.set_weights(weights)
            self.take_over(places, weights)
        elif self.slots:  # before the first step they would be kept until there is something to compare with
            with pytest.raises(ValueError, match="weight list of length|has shape"):
                self.opt.set_weights(weights)

    def take_over(self, places, weights):
        for place, x in zip(places, weights, strict=True):
            if place == "iterations":
                self.iterations = int(x)
            elif place == "cache":
                self.cache = x
            elif place == "learning_rate":
                self.rate = lambda t, x=x: x
            else:
                self.slots[place[0]][place[1]] = x

    @precondition(lambda self: self.slots)
    @rule(wrong=st.sampled_from(["none", "twice", "shape"]))
    def set_weights_that_do_not_fit(self, wrong):
        weights = [x + 1 for x in self.opt.get_weights()]
        wrong = {"none": [], "twice": weights * 2, "shape": [*weights[:-1], np.ones((3, 1))]}[wrong]
        with pytest.raises(ValueError, match="weight list of length|has shape"):
            self.opt.set_weights(wrong)

    @rule(rate=rates, how=st.sampled_from(["number", "assign", "callable", "schedule"]))
    def set_learning_rate(self, rate, how):
        if how == "schedule" and self.is_nadam:
            return  # it takes none
        if how == "assign" and isinstance(self.opt.learning_rate, Variable):
            self.opt.learning_rate.assign(rate)
        else:
            self.opt.learning_rate = {"callable": lambda: rate, "schedule": SCHEDULE}.get(how, rate)
        self.rate = (lambda t: float(SCHEDULE(t))) if how == "schedule" else lambda t: rate

    @rule(data=st.data())
    def set_another_hyperparameter(self, data):
        name = data.draw(st.sampled_from(sorted(self.kind.choices)), "name")
        x = data.draw(st.sampled_from(self.kind.choices[name]), "value")
        setattr(self.opt, name, x)
        self.hyper[name] = x

    @rule(wrong=st.sampled_from(["high", None, [0.5]]))
    def a_hyperparameter_that_is_none(self, wrong):
        for name in ("learning_rate", *self.kind.hyper):
            with pytest.raises(TypeError, match=f"{name} must be a number"):
                setattr(self.opt, name, wrong)

    @rule(n=st.sampled_from([0, 1, 4, 1000]))
    def assign_iterations(self, n):
        self.opt.iterations.assign(n)
        self.iterations = n

    # Slots

    @rule(i=indices, name=added_names, how=st.sampled_from(["zeros", "ones", "array", "shape"]))
    def add_slot(self, i, name, how):
        x = np.linspace(0, 1, 2).reshape(SHAPES[i])
        shape = (3,) if how == "shape" else None
        slot = self.opt.add_slot(
            self.variables[i], name, x if how == "array" else how.replace("shape", "ones"), shape
        )
        if i not in self.slots:
            self.slots[i] = {slot: np.float32(y) for slot, y in self.fresh(i).items()}
            if self.joins:
                self.batches[-1].append(i)
            else:
                self.batches.append([i])
            self.joins = True
        start = {"zeros": np.zeros(SHAPES[i]), "ones": np.ones(SHAPES[i]), "array": x, "shape": np.ones(3)}[how]
        self.slots[i].setdefault(name, np.float32(start))
        if name not in self.added:
            self.added.append(name)
        np.testing.assert_array_equal(slot.value, self.slots[i][name])

    @rule(i=indices)
    def add_a_slot_of_the_rule(self, i):
        if i in self.slots:
            with pytest.raises(ValueError, match="is a slot that .* keeps itself"):
                self.opt.add_slot(self.variables[i], next(iter(self.kind.slots)))

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), x=st.sampled_from([0.25, 1.0]))
    def assign_a_slot(self, data, x):
        i = data.draw(st.sampled_from(sorted(self.slots)), "variable")
        name = data.draw(st.sampled_from([n for n in self.slots[i] if n not in self.extra]), "slot")
        shape = self.slots[i][name].shape
        self.opt.get_slot(self.variables[i], name).assign(np.full(shape, x))
        self.slots[i] = self.slots[i] | {name: np.full(shape, x, np.float32)}

    # Copies

    @rule(i=indices)
    def take_a_value(self, i):
        names = [name for name in self.slots.get(i, ()) if name not in self.extra]
        v = self.variables[i]
        arrays = [v.value, *(self.opt.get_slot(v, name).value for name in names)]
        self.taken = [*self.taken[-8:], *((x, np.array(x)) for x in arrays)]

    @rule()
    def from_config(self):
        if self.hyper.get("momentum") == 0:  # it has no slot in the twin, as in Keras
            return
        config, rate = self.opt.get_config(), self.opt.learning_rate
        twin = type(self.opt).from_config(config)
        assert twin.get_config() == config
        assert (int(twin.iterations), twin.get_slot_names()) == (0, [])
        assert {name: config.get(name, 0.0) for name in self.hyper} == self.hyper
        if not isinstance(rate, Variable):  # a schedule, or what a function returned, which is in no config
            twin.learning_rate = rate if callable(rate) else lambda: rate
        twin.gradient_aggregator, twin.gradient_transformers = aggregate, self.opt.gradient_transformers
        for batch in self.batches:
            twin.build([self.variables[i] for i in batch])
        for name in self.added:
            for i in [i for i in self.slots if name in self.slots[i]]:
                twin.add_slot(self.variables[i], name, shape=self.slots[i][name].shape)
        twin.set_weights(self.opt.get_weights())
        self.opt, self.joins = twin, False
        self.functions.clear()

    @rule(go_on_with=st.sampled_from([0, 1]))
    def copy_the_optimizer_and_its_variables(self, go_on_with):
        of_both = [(self.opt, self.variables, self.count)]
        of_both.append(copy.deepcopy(of_both[0]))
        self.opt, self.variables, self.count = of_both[go_on_with]
        opt, variables, _ = of_both[1 - go_on_with]
        self.left = [*self.left[-1:], (opt, variables, list(self.values), self.opt.get_weights())]
        self.functions.clear()

    @rule(pairs=some_pairs, rate=rates)
    def step_a_copy(self, pairs, rate):
        twin = copy.deepcopy(self.opt)
        twin.apply_gradients(self.listed(pairs))
        self.stepped(twin, pairs)
        twin.learning_rate = 2 * rate
        twin.iterations.assign(100)
        for name in self.kind.slots:
            slot = twin.get_slot(self.variables[pairs[0][0]], name)
            slot.assign(slot + 1)
        for i, _ in pairs:  # which the two share
            self.variables[i].assign(self.values[i])


# to explain a failure takes too long
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]


CHOICES = [(name,) for name in KINDS] if CALLS else [tuple(KINDS)]


@pytest.mark.parametrize("names", CHOICES, ids=lambda names: names[0] if CALLS else "all")
def test_random_calls_agree_with_the_model(names):
    class Chosen(Machine):
        kinds = tuple(KINDS[name] for name in names)

    Machine.steps, each = 0, min(CALLS, 100) or 40
    # the first example that hypothesis tries is its simplest one, and some end early
    examples = 2 + 3 * CALLS // (2 * each) if CALLS else 40
    options = settings(max_examples=examples, stateful_step_count=each, phases=PHASES)
    run_state_machine_as_test(Chosen, settings=settings(options, suppress_health_check=list(HealthCheck)))
    assert Machine.steps >= (CALLS or 700)
