"""Configs: everything public makes the trip through JSON, and what is wrong is refused with its place."""

import functools
import json
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import functional_opt as fo
from functional_opt.config import from_config, register, to_config
from functional_opt.core.checks import Static
from functional_opt.core.value import value

from ..conformance.cases import each_case


def register_what_the_cases_use():
    """The functions and transformations that the table's modules define."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tests.conformance.case"):
            for x in vars(module).values():
                own = getattr(x, "__module__", None) == name and x.__name__ != "<lambda>"
                if own and (isinstance(x, types.FunctionType) or hasattr(x, "__dataclass_fields__")):
                    if x.__name__ not in vars(fo):
                        register(x)


register_what_the_cases_use()


def trip(tx):
    return from_config(json.loads(json.dumps(to_config(tx), allow_nan=False)))


def assert_returns(tx):
    twin = trip(tx)
    assert twin == tx and hash(twin) == hash(tx) and repr(twin) == repr(tx) and type(twin) is type(tx)
    assert jax.tree.structure(twin) == jax.tree.structure(tx)
    assert to_config(twin) == to_config(tx)


@each_case
def test_every_case_returns(case):
    assert_returns(case.tx())


@each_case
def test_every_case_returns_with_arrays_for_numbers(case):
    assert_returns(jax.tree.map(jnp.asarray, case.tx()))


SCHEDULES = [
    fo.constant_schedule(0.1),
    fo.cosine_decay_schedule(0.1, 100),
    fo.cosine_onecycle_schedule(100, 0.1),
    fo.cosine_restarts_schedule(0.1, 10),
    fo.exponential_decay(0.1, 10, 0.5, staircase=True),
    fo.inverse_sqrt_schedule(0.1, 10),
    fo.inverse_time_decay(0.1, 10, 0.5),
    fo.averaging_decay(10),
    fo.join_schedules([fo.constant_schedule(1.0), fo.linear_schedule(1.0, 0.0, 5)], [3]),
    fo.linear_onecycle_schedule(100, 0.1),
    fo.linear_schedule(1.0, 0.0, 5),
    fo.piecewise_constant_schedule(1.0, {5: 0.1, 10: 0.5}),
    fo.piecewise_interpolate_schedule("cosine", 1.0, {5: 0.1, 10: 0.5}),
    fo.polynomial_schedule(1.0, 0.0, 2.0, 5),
    fo.proportional_schedule(0.1, fo.linear_schedule(1.0, 0.0, 5), 1.0),
    fo.sgdr_schedule([{"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 1, "decay_steps": 3}] * 2),
    fo.warmup_constant_schedule(0.0, 1.0, 5),
    fo.warmup_cosine_decay_schedule(0.0, 1.0, 5, 10),
    fo.warmup_exponential_decay_schedule(0.0, 1.0, 5, 10, 0.5),
    fo.warmup_stable_decay_schedule(0.0, 1.0, 5, 10, 20),
    fo.relative_step(0.5),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_schedule_returns(schedule):
    assert_returns(schedule)
    assert_returns(fo.adam(schedule))


def test_every_public_schedule_is_in_the_list():
    classes = {x for x in vars(fo).values() if isinstance(x, type) and issubclass(x, fo.Schedule)} - {fo.Schedule}
    assert {type(s) for s in SCHEDULES} == classes


# What may stand in a field

NUMBERS = [
    0.1,
    -0.0,
    float("inf"),
    float("-inf"),
    float("nan"),
    7,
    True,
    np.float32(0.1),
    np.float64(0.1),
    np.int64(2**62 + 1),
    jnp.float32(0.1),
    jnp.bfloat16(0.1),
    jnp.asarray(0.1, "float8_e4m3fn"),
    np.array(0.1),
    np.array([np.inf, -np.inf, np.nan, -0.0, 1e-45], np.float32),
    np.zeros((2, 0), "int8"),
    np.array([[True], [False]]),
    np.array([1 + 2j, complex("inf")]),
    jnp.arange(6).reshape(2, 3),
]


@register
@fo.transformation
class holds(fo.GradientTransformation):
    """A transformation that holds anything."""

    leaf: Any = None
    kept: Static[Any] = None
    names: Static[tuple[str, ...]] = ()
    steps: int = 0
    words: str = ""

    def init(self, params):
        return fo.EmptyState()


@pytest.mark.parametrize("x", NUMBERS, ids=repr)
def test_numbers_return_exactly(x):
    twin = trip(holds(leaf=x)).leaf
    assert type(twin) is type(x)
    x, twin = np.asarray(x), np.asarray(twin)
    assert (twin.dtype, twin.shape, twin.tobytes()) == (x.dtype, x.shape, x.tobytes())


def test_the_rest_of_what_may_stand_in_a_field():
    assert_returns(holds(kept=(1, ("a", None), jnp.dtype("bfloat16"))))
    assert_returns(holds(leaf=[1, (2, [])]))
    assert_returns(holds(leaf={"type": 1, "b": {(3, "a"): 4.0, (5, "c"): [6]}}))
    key = trip(holds(leaf=jax.random.key(7))).leaf
    assert key.dtype == jax.random.key(7).dtype and jax.random.bits(key) == jax.random.bits(jax.random.key(7))
    skip = functools.partial(fo.skip_large_updates, max_squared_norm=np.inf)
    assert_returns(fo.MultiSteps(fo.sgd(0.1), 2, should_skip_update_fn=skip))
    assert_returns(fo.MultiSteps(fo.sgd(0.1), fo.linear_schedule(1, 4, 3), False, fo.skip_not_finite, "bfloat16"))


def test_masks_and_labels():
    for mask in (True, {"a": True, "b": [False, (True, None)]}, {"*/bias": False}, fo.PathRules({"bias": False})):
        assert_returns(fo.add_decayed_weights(0.1, mask))
    for labels in ("x", {"a": "x", "b": ["y"]}, {"a/**": "x", "**": "y"}, {"type": "x"}):
        assert_returns(fo.partition({"x": fo.sgd(0.1), "y": fo.set_to_zero()}, labels))
    assert_returns(fo.partition({1: fo.sgd(0.1), 2: fo.identity()}, fo.PathRules({"a": 1, "**": 2})))
    assert_returns(fo.muon(0.1, muon_mask={"*/embedding": False}))
    numbers = {"a": fo.MuonDimensionNumbers(0, (1, 2)), "b": None}
    assert_returns(fo.muon(0.1, muon_weight_dimension_numbers=numbers))
    assert_returns(fo.galore(0.1, weight_dimension_numbers=fo.GaLoreDimensionNumbers(0, -1)))


@register
def own_sgd(rate, momentum=None):
    return fo.sgd(rate, momentum)


INJECTED = [
    fo.inject_hyperparams(fo.adam)(SCHEDULES[1], b1=0.5),
    fo.inject_hyperparams(fo.scale_by_adam, "eps", "bfloat16")(b2=fo.WrappedSchedule(SCHEDULES[0])),
    fo.inject_hyperparams(fo.adamw)(0.1, mask={"*/bias": False}),
    fo.inject_hyperparams(functools.partial(fo.adam, b1=0.5))(learning_rate=jnp.float32(0.1)),
    fo.inject_hyperparams(own_sgd)(rate=0.1),
    fo.inject_hyperparams(fo.MultiSteps)(fo.sgd(0.1), 2),
    fo.inject_hyperparams(fo.contrib.muon)(0.1, muon_weight_dimension_numbers=fo.MuonDimensionNumbers(1, 0)),
]


@pytest.mark.parametrize("tx", INJECTED, ids=repr)
def test_injected_hyperparams_return(tx):
    assert_returns(tx)
    assert_returns(fo.chain(fo.clip(1.0), tx))
    params = {"w": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    assert jax.tree.structure(trip(tx).init(params)) == jax.tree.structure(tx.init(params))


def plain(learning_rate):
    return fo.sgd(learning_rate)


@pytest.mark.parametrize("factory", [plain, lambda learning_rate: fo.sgd(learning_rate), optax.sgd])
def test_what_makes_an_injected_one_must_be_registered(factory):
    tx = fo.chain(fo.inject_hyperparams(factory)(learning_rate=0.1))
    with pytest.raises(TypeError, match=r"^chain.transforms\[0\].inner_factory cannot be saved: .*register"):
        to_config(tx)


def test_a_measure_must_be_registered():
    with pytest.raises(TypeError, match=r"^monitor.measures\['x'\] cannot be saved: .*with def and decorate"):
        to_config(fo.monitor({"x": lambda updates: updates}))


@pytest.mark.parametrize(
    "field, x, error",
    [
        ("inner_factory", {"type": "constructor", "name": "os.system"}, "name 'os.system' is not known"),
        ("inner_factory", {"type": "constructor", "name": "to_config"}, "name 'to_config' is not known"),
        ("inner_factory", {"type": "function", "name": "adam"}, "name 'adam' is not known"),
        ("inner_factory", {"type": "function", "name": "skip_not_finite"}, "inner_factory must be a constructor"),
        ("inner_factory", 3, "inner_factory must be a constructor"),
        ("numbers", {}, "learning_rate is missing"),
        ("numbers", 3, "numbers and others must be dicts"),
        ("others", {"b1": 0.5}, "is missing"),
        ("given", ["b3"], "each argument must be in either"),
        ("given", 3, "numbers and others must be dicts"),
    ],
    ids=str,
)
def test_what_is_refused_of_an_injected_one(field, x, error):
    config = to_config(INJECTED[0])
    config["value"][field] = x
    with pytest.raises((TypeError, ValueError), match=error):
        from_config(config)


def test_numbers_of_an_injected_one_are_checked():
    config = to_config(INJECTED[0])
    config["value"]["numbers"]["b1"] = 1.5
    with pytest.raises(ValueError, match=r"^inject_hyperparams: b1 must be in \[0, 1\), got 1.5"):
        from_config(config)


def test_partials_compare_by_value():
    skips = [functools.partial(fo.skip_large_updates, max_squared_norm=x) for x in (1.0, 1.0, 2.0, np.ones(2))]
    one, same, other, array = (fo.MultiSteps(fo.sgd(0.1), 2, should_skip_update_fn=skip) for skip in skips)
    assert one == same and hash(one) == hash(same) and one != other and one != array
    assert "functools.partial(skip_large_updates, max_squared_norm=2.0)" in repr(other)


def test_float64_arrays_need_x64():
    with jax.enable_x64(True):
        config = to_config(fo.scale(jnp.asarray(0.1, "float64")))
        assert_returns(fo.scale(jnp.asarray(0.1, "float64")))
    with pytest.raises(ValueError, match=r"^scale.step_size: an array of dtype float64 needs .*jax_enable_x64"):
        from_config(config)


FINITE = st.floats(0, width=32, allow_infinity=False)
RATES = st.one_of(FINITE, st.sampled_from(SCHEDULES), st.just(jnp.bfloat16(0.3)))
LINKS = st.one_of(
    st.builds(fo.clip, st.floats(0)),
    st.builds(fo.scale_by_adam, b1=st.floats(0, 0.99), mu_dtype=st.sampled_from([None, "bfloat16"])),
    st.builds(fo.scale_by_learning_rate, RATES, st.booleans()),
    st.builds(fo.add_decayed_weights, RATES, st.sampled_from([None, True, {"*/bias": False}, {"a": True}])),
)
PATTERNS = st.dictionaries(st.sampled_from(["*/bias", "a/**", "/head/*"]), st.sampled_from(["x", "y"]), min_size=1)
NESTINGS = st.recursive(
    LINKS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda links: fo.chain(*links)),
        st.dictionaries(st.text(max_size=4), inner, max_size=3).map(lambda d: fo.named_chain(*d.items())),
        st.builds(fo.masked, inner, st.sampled_from([True, {"**/kernel": True}, {"a": [True, False]}])),
        st.builds(lambda x, y, labels: fo.partition({"x": x, "y": y}, labels), inner, inner, PATTERNS),
        st.builds(fo.MultiSteps, inner, st.integers(1, 9), st.booleans()),
        st.builds(fo.apply_if_finite, inner, st.integers(0, 9)),
    ),
    max_leaves=8,
)


@given(NESTINGS)
@settings(deadline=None)
def test_nestings_return(tx):
    assert_returns(tx)


# What cannot be saved


def jnp_mean(count):
    return 0.1


@fo.transformation
class not_registered(fo.GradientTransformation):
    """Not registered."""


@pytest.mark.parametrize(
    "tx, message",
    [
        (
            fo.chain(fo.clip(1.0), fo.scale_by_schedule(lambda t: t)),
            r"^chain.transforms\[1\].step_size_fn .*with def",
        ),
        (fo.masked(fo.clip(1.0), lambda p: p), r"^masked.mask cannot be saved: .*lambda.*path rules"),
        (fo.adam(jnp_mean), r"^chain.transforms\[1\].learning_rate .*jnp_mean \(function\). Decorate it with @"),
        (
            fo.adam(optax.constant_schedule(0.1)),
            r"learning_rate cannot be saved: .*constant_schedule.*polynomial|reg",
        ),
        (fo.chain(optax.adam(0.1)), r"^chain.transforms\[0\] .*optax|GradientTransformation.* use functional_opt's"),
        (fo.chain(not_registered()), r"^chain.transforms\[0\] .*Decorate its class not_registered with @"),
        (optax.adam(0.1), r"^to_config takes .*It is not a transformation of functional_opt"),
        (fo.adam, r"^to_config takes a transformation"),
        (fo.scale_by_adam, r"^to_config takes .*Call it first: scale_by_adam\(...\)"),
        (holds(leaf=object()), r"^holds.leaf cannot be saved: <object.*A config holds numbers"),
        (holds(leaf=(1, {"a": jax.ShapeDtypeStruct((), "float32")})), r"^holds.leaf\[1\]\['a'\] cannot be saved"),
        (holds(leaf=fo.MaskedNode()), r"^holds.leaf cannot be saved: MaskedNode"),
        (holds(leaf=np.array(["a"])), r"^holds.leaf cannot be saved: an array of dtype <U1"),
        (holds(kept=functools.partial(jnp_mean)), r"^holds.kept.function cannot be saved: jnp_mean"),
        (holds(kept=holds), r"^holds.kept cannot be saved: .*Call it first: holds"),
        (fo.masked(fo.clip(1.0), fo.MaskedNode()), r"^masked.mask cannot be saved"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,  # what prints with addresses is no name
)
def test_what_cannot_be_saved(tx, message):
    with pytest.raises(TypeError, match=message):
        to_config(tx)


def test_a_tracer_cannot_be_saved():
    with pytest.raises(TypeError, match=r"^chain.transforms\[1\].learning_rate is a tracer, .*outside of jit"):
        jax.jit(lambda rate: to_config(fo.sgd(rate)))(0.1)


# What is refused

GOOD = to_config(fo.chain(fo.clip(1.0), fo.scale_by_adam(), fo.scale_by_learning_rate(SCHEDULES[1])))
PATH = r"^chain.transforms\[1\]"


def edited(*path, to=None, drop=False):
    """The good config with one place changed."""
    config = json.loads(json.dumps(GOOD))
    node = config
    for step in path[:-1]:
        node = node[step]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = to
    return config


AT = ("value", "transforms", 1)


@pytest.mark.parametrize(
    "config, message",
    [
        (None, r"^config must be a dict with a version"),
        ({"value": {}}, r"^config must be a dict with a version"),
        (edited("version", to=2), r"^config.version is 2; this library reads version 1"),
        (edited("version", to=True), r"^config.version is True"),
        (edited("more", to=2), r"^config.more is not known, got 2; the fields are version, value"),
        (edited("value", drop=True), r"^config.value is missing"),
        (edited("value", to=[]), r"^config.value must be a transformation or a schedule, got \[\]"),
        (edited("value", to={"type": "number", "number": "inf"}), r"^config.value must be a transformation"),
        (
            edited(*AT, "type", to="scale_by_adm"),
            PATH + r": type 'scale_by_adm' is not known; .* scale_by_adam.*regis",
        ),
        (edited(*AT, "type", to="os.system"), PATH + r": type 'os.system' is not known"),
        (edited(*AT, "type", to="GradientTransformation"), PATH + r": type 'GradientTransformation' is not known"),
        (edited(*AT, "type", to="adam"), PATH + r": type 'adam' is not known"),
        (edited(*AT, "type", to=["chain"]), PATH + r": type \['chain'\] is not known"),
        (edited(*AT, "b2", drop=True), PATH + r".b2 is missing; the fields are b1, b2"),
        (edited(*AT, "b3", to=0.5), PATH + r".b3 is not known, got 0.5; the fields are b1, b2"),
        (edited(*AT, "b2", to=1.5), PATH + r".b2: b2 must be in \[0, 1\), got 1.5"),
        (edited(*AT, "b2", to="0.9"), PATH + r".b2: b2 must be a number in \[0, 1\), got '0.9' \(str\)"),
        (edited(*AT, "b2", to=None), PATH + r".b2: b2 must be a number in \[0, 1\), got None"),
        (edited(*AT, "b2", to={"type": "clip", "max_delta": 1.0}), PATH + r".b2: b2 must be a number"),
        (edited(*AT, "nesterov", to=1), PATH + r".nesterov must be bool, got 1 \(int\)"),
        (edited(*AT, "mu_dtype", to="floaty"), PATH + r".mu_dtype: mu_dtype must be a dtype"),
        (edited(*AT, "mu_dtype", to={"type": "dtype", "name": "O"}), PATH + r".mu_dtype.name 'O' is not known"),
        (edited(*AT, "mu_dtype", to={"type": "dtype"}), PATH + r".mu_dtype.name is missing"),
        (edited(*AT, to=3), r"^chain.transforms must be tuple.* got"),
        (edited("value", "transforms", to={}), r"^chain.transforms must be tuple.*got \{\} \(dict\)"),
        (edited("value", "transforms", to="clip"), r"^chain.transforms must be tuple.*got 'clip' \(str\)"),
        (edited(*AT, "b2", to={1: 2}), PATH + r".b2 must be JSON"),
        (edited(*AT, "b2", to=object()), PATH + r".b2 must be JSON, got <object"),
        (
            edited("value", "transforms", 2, "learning_rate", "decay_steps", to=0),
            r"^chain.transforms\[2\].learning_rate.decay_steps: decay_steps must be",
        ),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_config(config)


ARRAY = {"type": "array", "kind": "numpy", "dtype": "float32", "shape": [2], "data": [[1.0, 2.0]]}


@pytest.mark.parametrize(
    "node, message",
    [
        ({"type": "function", "name": "os.system"}, r"^scale.step_size.name 'os.system' is not known"),
        ({"type": "function", "name": "to_config"}, r"^scale.step_size.name 'to_config' is not known"),
        ({"type": "function", "name": None}, r"^scale.step_size.name None is not known"),
        ({"type": "number", "number": "1e3"}, r"^scale.step_size.number '1e3' is not known; .* inf"),
        ({"type": "partial", "function": 3, "args": [], "keywords": {}}, r"^scale.step_size must be a partial"),
        ({"type": "list", "items": 3}, r"^scale.step_size.items must be a list, got 3"),
        ({"type": "dict", "items": [3]}, r"^scale.step_size.items must be a list of pairs"),
        ({"type": "dict", "items": [[{}, 3]]}, r"^scale.step_size.items: unhashable.*a key must be"),
        ({"type": "key", "impl": "none", "data": ARRAY}, r"^scale.step_size: data is not a key of 'none'"),
        (ARRAY | {"kind": "torch"}, r"^scale.step_size.kind 'torch' is not known"),
        (ARRAY | {"dtype": "object"}, r"^scale.step_size.dtype 'object' is not known"),
        (ARRAY | {"shape": [3]}, r"^scale.step_size: data is not an array of dtype float32 and shape \[3\]"),
        (ARRAY | {"shape": "x"}, r"^scale.step_size: data is not an array of dtype float32"),
        (ARRAY | {"data": [["x"]]}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"data": 3}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"data": []}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"kind": "scalar"}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"dtype": "int8", "data": [[1, 300]]}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"dtype": "int8", "data": [[1, 1.5]]}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"data": [[1, 1e300]]}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"data": [[1, None]]}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"data": [[1, True]]}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"shape": [-1]}, r"^scale.step_size: data is not an array"),
        (ARRAY | {"shape": [-1, 2]}, r"^scale.step_size: data is not an array"),
    ],
    ids=str,
)
def test_what_is_refused_in_a_field(node, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_config({"version": 1, "value": {"type": "scale", "step_size": node}})


@pytest.mark.parametrize(
    "field, x, message",
    [("names", "ab", "tuple"), ("names", [1], "tuple"), ("steps", 1.5, "int"), ("words", 3, "str")],
)
def test_fields_without_a_check_are_held_to_their_annotation(field, x, message):
    config = to_config(holds())
    config["value"][field] = x
    with pytest.raises(TypeError, match=rf"^holds.{field} must be {message}.*got"):
        from_config(config)


@pytest.mark.parametrize("x", [[["a"]], [["a", 1, 2]], [[1, True]], [3], {"a": True}])
def test_path_rules_are_pairs(x):
    with pytest.raises(TypeError, match=r"^PathRules.rules must be tuple\[tuple\[str, .*got"):
        from_config({"version": 1, "value": {"type": "PathRules", "rules": x}})


def test_register_refuses():
    def identity(x):
        return x

    with pytest.raises(ValueError, match="the name 'identity' is taken by <class 'functional_opt"):
        register(identity)
    with pytest.raises(ValueError, match="the name 'skip_not_finite' is taken"):
        register(types.FunctionType(identity.__code__, {}, "skip_not_finite"))
    with pytest.raises(ValueError, match="the name 'dtype' is taken by 'the format'"):
        register(types.FunctionType(identity.__code__, {}, "dtype"))
    with pytest.raises(TypeError, match="with a name, got .*lambda.*write it with def"):
        register(lambda x: x)
    with pytest.raises(TypeError, match="with a name, got 3"):
        register(3)
    with pytest.raises(TypeError, match="plain must be decorated with @transformation"):
        register(type("plain", (), {}))
    with pytest.raises(ValueError, match="has a field called type"):
        register(value(type("typed", (), {"__annotations__": {"type": int}})))


def test_names_are_for_one_thing():
    def local(count):
        return count

    def other():
        def local(count):
            return -count

        return local

    assert register(local) is local and register(local) is local
    with pytest.raises(ValueError, match="the name 'local' is taken"):
        register(other())
    again = types.FunctionType(jnp_mean.__code__, {}, "jnp_mean")
    again.__module__ = jnp_mean.__module__
    register(jnp_mean)
    assert register(again) is again
    assert trip(fo.scale_by_schedule(again)) == fo.scale_by_schedule(again)
    with pytest.raises(TypeError, match="cannot be saved: jnp_mean"):
        to_config(fo.scale_by_schedule(jnp_mean))
