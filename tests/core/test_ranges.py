"""Ranges: every public constructor refuses what is no number or out of range, by the argument's name."""

import dataclasses
import decimal
import fractions
import inspect
import pydoc
import types
import typing
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt import experimental, keras
from functional_opt.core.checks import Static
from functional_opt.core.ranges import Fraction, Integer, PositiveInt, Range, number, unread
from functional_opt.core.schedule import OrSchedule
from functional_opt.core.value import value
from functional_opt.keras import optimizers

from ..helpers import assert_close, make_grads, make_params, train_eagerly


def rules(hint):
    """The ranges of an annotation, alternatives included, and whether it is structure."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        found, static = rules(inner)
        found += [m if isinstance(m, Range) else m.numbers for m in marks if isinstance(m, Range | OrSchedule)]
        return found, static or "static" in map(repr, marks)
    if get_origin(hint) in (Union, UnionType):
        parts = [rules(h) for h in get_args(hint)]
        return sum((found for found, _ in parts), []), any(static for _, static in parts)
    return [], False


def is_constructor(x):
    if isinstance(x, type):
        return dataclasses.is_dataclass(x)
    made = typing.get_type_hints(x).get("return") if inspect.isfunction(x) else None
    return isinstance(made, type) and issubclass(made, fo.GradientTransformation | fo.Schedule)


CONSTRUCTORS = {
    name: x for name, x in sorted((vars(fo) | vars(experimental)).items()) if name[0] != "_" and is_constructor(x)
}
GIVEN = {  # where an argument that must be given is no number
    "blocks": None,
    "schedules": [fo.constant_schedule(0.1)] * 2,
    "boundaries": [3],
    "seed": 0,
    "key": 0,
    "mask": True,
    "param_labels": "a",
    "transforms": {"a": fo.sgd(0.1)},
    "interpolate_type": "linear",
    "measure": fo.global_norm,
    "measure_name": "norm",
    "powers": {"**": 0.5},
    "step_size_fn": fo.constant_schedule(0.1),
    "should_transform_fn": lambda *args, **kwargs: True,
    "schedule_fn": fo.constant_schedule(0.1),
    "measures": {"norm": fo.global_norm},
    "base_params": (3, 3),
    "freeze_mask": True,
}
TOGETHER = {  # where one argument decides what another may be, or which rule
    "gradient_noise_scale": {"small_batch": 0.25, "large_batch": 0.5},
    "warmup_cosine_decay_schedule": {"decay_steps": 9},
    "hyperball": {"inner": fo.scale_by_adam()},
    "differentially_private_aggregate": {"key": 0},
}


def arguments(x):
    """`(name, range, whether it is structure)` of each argument that is a number, and what else must be given."""
    hints, found, given = typing.get_type_hints(x, include_extras=True), [], {}
    for p in inspect.signature(x).parameters.values():
        ranges, static = rules(hints.get(p.name))
        if ranges:
            found.append((p.name, ranges[0], static))
        if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            given[p.name] = inside(ranges[0]) if ranges else GIVEN.get(p.name, fo.sgd(0.1))
    return found, given | TOGETHER.get(x.__name__, {})


def inside(interval):
    """A number in an interval; the same for all that are alike, in which order they may have to be."""
    if isinstance(interval, Integer):
        return int(max(interval.low, 3))
    return next(x for x in (0.5, 1.5, -0.5, 5.0) if x in interval)


def outside(interval):
    """Numbers that are out of the interval, as Python, NumPy and JAX have them."""
    low, high = interval.low, interval.high
    ends = [float("nan"), low - 1, high + 1 if high < 1e9 else low - 2]
    ends += [low] * interval.open_low + [high] * interval.open_high
    finite = [x for x in ends if not (np.isinf(x) and x in interval)]
    return [make(x) for x in finite for make in (float, np.array, jnp.float32) if make(x) not in interval or x != x]


NO_NUMBERS = [
    *(True, np.True_, np.array(False), jnp.array(True), "1e-3", b"1", 1 + 0j, np.complex64(1), jnp.array(1j)),
    *(np.ones(2), np.array([0.5]), jnp.full((2,), 0.5), jnp.ones((1, 1), "int32"), [0.5], (0.5,), {}, {"a": 0.5}),
    *(decimal.Decimal("0.5"), fractions.Fraction(1, 2), np.datetime64(1, "s"), np.timedelta64(1, "s"), np.array("a")),
    *(np.array(0.5, object), np.float32, jax.random.key(0), jax.ShapeDtypeStruct((2,), "float32"), 10**400, object()),
]  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_number_is_held_to_its_range(name):
    make = CONSTRUCTORS[name]
    numbers, given = arguments(make)
    for argument, interval, _ in numbers:
        make(**{argument: inside(interval)} | given)
        for x in NO_NUMBERS + outside(interval):
            with pytest.raises((TypeError, ValueError), match=f"^{argument}\\b.* must be .*, got "):
                make(**given | {argument: x})


def test_there_are_as_many_as_there_were():
    assert sum(len(arguments(make)[0]) for make in CONSTRUCTORS.values()) > 630


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_arrays_of_no_shape_are_numbers(name):
    """As Python's number: structure becomes one, and a leaf stays the array that it is."""
    make = CONSTRUCTORS[name]
    numbers, given = arguments(make)
    if isinstance(make, type) and numbers:
        for argument, interval, static in numbers:
            x = given.get(argument, inside(interval))
            for array in (np.float32(x), np.array(x), jnp.asarray(x), jnp.bfloat16(x)):
                held = getattr(make(**given | {argument: array}), argument)
                assert held == x and (type(held) in (int, float) if static else held is array)
        struct = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make(**given)))
        leaves = {argument: getattr(struct, argument) for argument, _, static in numbers if not static}
        make(**given | {k: x for k, x in leaves.items() if isinstance(x, jax.ShapeDtypeStruct)})


def test_an_array_gives_the_same_update():
    params, grads = make_params(), make_grads(2)
    expected = train_eagerly(fo.adamw(0.125, 0.5, 0.75, 0.25, weight_decay=0.5), params, grads, 2)
    for array in (np.float16, np.float32, np.float64, np.array, jnp.asarray, jnp.bfloat16, jnp.float32):
        tx = fo.adamw(*map(array, (0.125, 0.5, 0.75, 0.25)), weight_decay=array(0.5))
        assert_close(train_eagerly(tx, params, grads, 2), expected, rtol=1e-6)


def test_tracers_are_held_to_their_shape_and_kind():
    rates = jnp.array([0.1, -1.0])
    assert jax.vmap(fo.adam)(rates).transforms[1].learning_rate is not None
    assert jax.jit(lambda x: fo.adam(0.1, b1=x).transforms[0].b1)(7.0) == 7.0
    assert jax.grad(lambda x: fo.scale(x).update(1.0, fo.EmptyState())[0])(3.0) == 1.0
    for x, shown in [(rates, r"shape \(2,\)"), (True, "dtype bool"), (1j, "dtype complex64")]:
        with pytest.raises(TypeError, match=rf"^b1 must be a number in \[0, 1\), got a traced array of .*{shown}"):
            jax.jit(lambda x: fo.adam(0.1, b1=x).transforms[0].b1)(x)
    with pytest.raises(TypeError, match="^ns_steps decides how the step is built and must be a plain number, got"):
        jax.jit(lambda n: fo.orthogonalize(ns_steps=n).eps)(3)
    known = jnp.float32(7)  # inside of jit, too
    with pytest.raises(ValueError, match=r"^b1 must be in \[0, 1\), got 7"):
        jax.jit(lambda: fo.adam(0.1, b1=known).transforms[0].b2)()


def test_rebuilding_and_replacing():
    tx = fo.scale_by_adam()
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), jax.tree.map(jnp.asarray, tx))
    assert stacked.b1.shape == (2,) and jax.vmap(lambda t: t.b1)(stacked).shape == (2,)
    assert dataclasses.replace(tx, b1=jnp.float32(0.5)).b1 == 0.5
    with pytest.raises(TypeError, match=r"^b1 must be a number in \[0, 1\), got an array of shape \(2,\)"):
        dataclasses.replace(stacked, eps=1e-3)


class Box:
    """An array in a box, as Flax has them."""

    shape, dtype = (), np.dtype("float32")

    def __init__(self, x):
        self.x = x

    def __jax_array__(self):
        return jnp.asarray(self.x)


def test_an_array_in_a_box_is_looked_at():
    assert number(Box(0.5)) == 0.5
    with pytest.raises(ValueError, match=r"^b2 must be in \[0, 1\), got"):
        fo.adam(0.1, b2=Box(1.5))


def test_integers_that_int32_cannot_hold():
    for x in (2**31, np.int64(2**40), np.array(2**40)):
        tx = fo.scale(x)
        assert type(tx.step_size) is float and tx.step_size == float(x)
    assert fo.scale(-(2**40)).step_size == -(2.0**40) and fo.scale(7).step_size == 7
    assert type(fo.scale(np.int64(7)).step_size) is np.int64


def test_infinity_is_for_bounds_only():
    for tx in (fo.clip(np.inf), fo.clip_by_global_norm(jnp.inf), fo.adaptive_grad_clip(np.float32("inf"))):
        assert np.isinf(jax.tree.leaves(tx)[0])
    assert fo.exponential_decay(1.0, 1, 2.0, end_value=np.inf)(3) == 8.0
    grads = jax.tree.map(lambda g: g[0], make_grads(1))
    assert_close(fo.clip_by_global_norm(np.inf).update(grads, fo.EmptyState())[0], grads)
    for x in (np.inf, np.float32("inf"), jnp.float32("inf")):
        for make in (fo.adam, fo.scale, fo.constant_schedule, fo.scale_by_learning_rate, fo.add_decayed_weights):
            with pytest.raises(ValueError, match=r"must be in .*inf\), got inf"):
                make(x)


def test_numbers_of_a_state_are_not_read(monkeypatch):
    """Where a transformation is made at every step, the host does not wait for its numbers."""
    tx = fo.inject_hyperparams(fo.adam)(jnp.float32(0.1))
    state, opt, v = tx.init(1.0), optimizers.Adam(0.1), keras.Variable(1.0)
    opt.apply_gradients([(1.0, v)])
    seen = []
    spy = types.SimpleNamespace(**vars(np) | {"asarray": lambda x: seen.append(x) or np.asarray(x)})
    monkeypatch.setattr("functional_opt.core.ranges.np", spy)
    assert number(jnp.float32(1.0)) == 1.0 and len(seen) == 1
    assert unread(lambda: number(jnp.float32(1.0))) is None
    assert unread(lambda: number(np.float32(1.0))) == 1.0
    with pytest.raises(TypeError, match="^b1 must be a number"):
        unread(lambda: fo.adam(0.1, b1=jnp.ones(2)))
    tx.update(1.0, state)
    opt._numbers()
    assert len(seen) == 1


DTYPES = [
    *("int8", "bool", "complex64", "datetime64", "O", "V8", "S10", "U", int, bool, np.uint32, "m8[s]", jnp.int4),
    *("f4,(", [("a", "f4")], "floaty", "f4,f4", jax.dtypes.float0, jax.random.key(0).dtype, 10**400, np.ones(2), ()),
]
OF_DTYPES = [(name, k) for name, x in CONSTRUCTORS.items() for k in inspect.signature(x).parameters if "dtype" in k]
OF_DTYPES.remove(("master_weights", "dtype"))  # which may be of integers


@pytest.mark.parametrize("name, argument", OF_DTYPES)
def test_slots_are_of_floats(name, argument):
    make = CONSTRUCTORS[name]
    _, given = arguments(make)
    for dtype in DTYPES:
        with pytest.raises(TypeError, match=f"^{argument} must be a (floating-point )?dtype such as 'bfloat16', got"):
            make(**given | {argument: dtype})
    for dtype in ("bfloat16", jnp.float16, np.float32, float, np.dtype("float64"), "float8_e4m3fn"):
        make(**given | {argument: dtype})


def test_help_shows_the_ranges():
    for name, x in CONSTRUCTORS.items():
        page = pydoc.render_doc(x, renderer=pydoc.plaintext)
        assert " object at 0x" not in page and "<lambda>" not in page, name
    page = pydoc.render_doc(fo.adam, renderer=pydoc.plaintext)
    assert "[0, 1)] = 0.9" in page and "[0, inf), a schedule or a function of the step]" in page
    assert repr(Range("[0, 1)")) == "[0, 1)" and repr(Integer("[1, inf)")) == "whole number in [1, inf)"


@pytest.mark.parametrize("array", [float, np.array, np.float32, jnp.float32, keras.Variable])
def test_hyperparameters_of_the_facade(array):
    for name, x in [("learning_rate", -1.0), ("learning_rate", np.nan), ("beta_1", 1.0), ("beta_2", -0.5)]:
        with pytest.raises(ValueError, match=rf"Expected {name} >= 0, received|^{name} must be in \[0, 1\), got"):
            optimizers.Adam(**{name: array(x)})
        opt = optimizers.Adam()
        with pytest.raises(ValueError, match=f"{name}"):
            setattr(opt, name, array(x))
    for name in ("learning_rate", "decay", "beta_1"):
        with pytest.raises(ValueError, match=f"^{name} must be in .*, got"):
            optimizers.Adam(**{name: array(np.inf)})
    assert float(optimizers.Adam(array(0.0)).learning_rate) == 0.0
    assert float(optimizers.SGD(array(0.5), momentum=array(0.5)).momentum) == 0.5


@pytest.mark.parametrize(
    "x", [True, np.True_, "1", b"1", 1j, np.ones(1), np.array(1j), [0.5], {"a": 1}, decimal.Decimal(1)]
)
def test_what_is_no_hyperparameter_of_the_facade(x):
    for name in ("learning_rate", "beta_1", "clipnorm", "epsilon"):
        with pytest.raises(TypeError, match=f"^{name} must be a number.*, got"):
            optimizers.Adam(**{name: x})
    with pytest.raises(TypeError, match="got the class ExponentialDecay; call it"):
        optimizers.Adam(optimizers.schedules.ExponentialDecay)


def test_a_rate_may_be_traced():
    assert jax.jit(lambda rate: optimizers.SGD(rate).learning_rate.value)(-0.5) == -0.5
    with pytest.raises(TypeError, match="^learning_rate must be a number, a schedule or a callable, got a traced"):
        jax.jit(lambda rate: optimizers.SGD(rate).learning_rate.value)(np.ones(2))


@value
class Structured:
    steps: Static[PositiveInt] = 3
    share: Static[Fraction | None] = None


def test_structure_is_of_plain_numbers():
    x = Structured(np.array(4), jnp.float32(0.5))
    assert x == Structured(4, 0.5) and hash(x) == hash(Structured(4, 0.5))
    assert (type(x.steps), type(x.share)) == (int, float) and type(Structured(4.0).steps) is int
    with pytest.raises(TypeError, match="^share decides how the step is built and must be a plain number, got"):
        Structured(4, jax.ShapeDtypeStruct((), "float32"))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: fo.adam(lr=1e-3),
            r"^adam\(\) got an unexpected .*'lr'; did you mean learning_rate\? .* learning_rate, b1",
        ),
        (lambda: fo.adamw(1e-3, betas=(0.9, 0.99)), r"'betas'; did you mean b1 and b2\?"),
        (lambda: fo.adam(1e-3, weight_decay=0.1), r"'weight_decay'; put add_decayed_weights\(...\) into the chain"),
        (lambda: fo.sgd(0.1, maximize=True), r"'maximize'\. The arguments are learning_rate, momentum"),
        (lambda: fo.scale_by_adam(epsilon=1e-7), r"^scale_by_adam\(\) got .*'epsilon'; did you mean eps\?"),
        (
            lambda: fo.MultiSteps(fo.sgd(0.1), every_k=2),
            r"^MultiSteps\(\) got .*'every_k'; did you mean every_k_schedule\?",
        ),
        (
            lambda: fo.cosine_decay_schedule(0.1),
            r"^cosine_decay_schedule\(\) missing a required argument: 'decay_steps'",
        ),
        (lambda: fo.adam(), r"^adam\(\) missing a required argument: 'learning_rate'"),
        (lambda: fo.adam(1e-3, *range(20)), r"^adam\(\) too many positional arguments"),
        (lambda: fo.inject_hyperparams(fo.adam)(lr=1e-3), r"^adam\(\) got .*'lr'; did you mean learning_rate\?"),
    ],
)
def test_names_of_arguments_elsewhere_are_understood(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: fo.conditionally_transform(fo.sgd(0.1), True), "should_transform_fn"),
        (lambda: fo.conditionally_mask(fo.sgd(0.1), 3), "should_transform_fn"),
        (lambda: fo.stateless(None), "f"),
        (lambda: fo.stateless_with_tree_map(0.1), "f"),
        (lambda: fo.scale_by_factored_rms(decay_rate_fn=0.8), "decay_rate_fn"),
        (lambda: fo.inject_hyperparams("adam"), "inner_factory"),
    ],
)
def test_what_must_be_a_function(make, name):
    with pytest.raises(TypeError, match=f"^{name} must be a function"):
        make()
