"""Values: what may stand in a field, equality, printing, and their life as pytrees."""

import dataclasses
import inspect
import pickle
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_opt.core.checks import Static, checked
from functional_opt.core.ranges import (
    Convert,
    Count,
    Decay,
    DType,
    Fraction,
    Integer,
    NonNegative,
    Positive,
    PositiveInt,
    Range,
    Real,
)
from functional_opt.core.value import value


@value
class Example:
    rate: NonNegative
    decay: Decay = 0.9
    end: Real | None = None
    steps: Count = 10
    mode: Static[Literal["fast", "slow"]] = "fast"
    flag: Static[bool] = False
    dtype: Static[DType | None] = None


def test_numbers_are_leaves_and_the_rest_is_structure():
    x = Example(0.1, mode="slow")
    assert jax.tree.leaves(x) == [0.1, 0.9, 10]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(x)]
    assert paths == [".rate", ".decay", ".steps"]
    assert jax.tree.structure(x) == jax.tree.structure(Example(0.2, mode="slow"))
    assert jax.tree.structure(x) != jax.tree.structure(Example(0.1))
    assert jax.tree.map(lambda n: n / 2, x) == Example(0.05, 0.45, steps=5, mode="slow")


def test_rebuilding_from_leaves_checks_nothing():
    placeholder = object()
    assert jax.tree.map(lambda _: placeholder, Example(0.1)).rate is placeholder
    assert jax.tree.map(lambda n: -n, Example(0.1)).rate == -0.1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"rate": -1.0}, ValueError, r"rate must be in \[0, inf\), got -1.0"),
        ({"rate": float("nan")}, ValueError, "rate must be in .*, got nan"),
        ({"rate": np.float32(-2)}, ValueError, "rate must be in .*, got -2"),
        ({"rate": "0.1"}, TypeError, r"rate must be a number in .*, got '0.1' \(str\)"),
        ({"rate": None}, TypeError, r"rate must be a number in .*, got None"),
        ({"rate": True}, TypeError, r"rate must be a number in .*, got True \(bool\)"),
        ({"rate": 0.1, "decay": 1.0}, ValueError, r"decay must be in \[0, 1\), got 1.0"),
        ({"rate": 0.1, "end": "x"}, TypeError, "end must be a number"),
        ({"rate": 0.1, "steps": 2.5}, TypeError, "steps must be a whole number in .*, got 2.5"),
        ({"rate": 0.1, "steps": -1}, ValueError, "steps must be in .*, got -1"),
        ({"rate": 0.1, "mode": "medium"}, ValueError, "mode must be 'fast' or 'slow', got 'medium'"),
        ({"rate": 0.1, "flag": 1}, ValueError, "flag must be False or True, got 1"),
        ({"rate": 0.1, "dtype": "floaty"}, TypeError, "dtype must be a dtype such as 'bfloat16', got 'floaty'"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        Example(**arguments)
    if "rate" in arguments and arguments["rate"] == 0.1:
        with pytest.raises(error, match=message):
            dataclasses.replace(Example(0.1), **arguments)


def test_takes():
    assert Example(0).rate == 0
    assert Example(np.float32(0.5)).rate == 0.5
    assert Example(0.1, end=-3.0).end == -3.0
    assert Example(0.1, dtype=jnp.bfloat16) == Example(0.1, dtype="bfloat16")
    traced = jax.make_jaxpr(lambda rate: Example(rate).rate)(1.0)
    assert len(traced.jaxpr.outvars) == 1


def test_arrays_are_read_and_tracers_are_not():
    assert Example(jnp.array(1.0)).rate == 1.0
    with pytest.raises(ValueError, match=r"rate must be in \[0, inf\), got -1.0"):
        Example(jnp.array(-1.0))
    assert jax.jit(lambda rate, decay: Example(rate, decay).decay)(-1.0, 2.0) == 2.0


def test_equality_and_hash_go_by_value():
    assert Example(0.1) == Example(0.1) and hash(Example(0.1)) == hash(Example(0.1))
    assert Example(0.1) != Example(0.2) and Example(0.1) != Example(0.1, mode="slow") and Example(0.1) != 0.1
    stacked = lambda *rates, dtype="float32": jax.tree.map(lambda _: jnp.array(rates, dtype), Example(0.1))  # noqa: E731
    a, b = stacked(1.0, 2.0), jax.tree.map(np.asarray, stacked(1.0, 2.0))
    assert a == b and hash(a) == hash(b)
    assert a != stacked(1.0, 3.0) and a != stacked(1.0, 2.0, dtype="bfloat16")

    @jax.jit
    def traced(x, y):
        assert Example(x) == Example(x) and Example(x) != Example(y)
        return x

    traced(1.0, 1.0)


def test_prints_as_the_code_that_made_it():
    assert repr(Example(0.1)) == "Example(0.1)"
    assert repr(Example(0.1, 0.9, steps=10, flag=True)) == "Example(0.1, flag=True)"
    assert repr(Example(0.1, 0.5, dtype="bfloat16")) == "Example(0.1, decay=0.5, dtype='bfloat16')"
    assert eval(repr(Example(0.1, 0.5, end=1, dtype="bfloat16"))) == Example(0.1, 0.5, end=1, dtype="bfloat16")


def test_is_frozen_and_pickles():
    x = Example(0.1, mode="slow")
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"dataclasses.replace\(tx, rate=...\)"):
        x.rate = 0.2
    with pytest.raises(dataclasses.FrozenInstanceError, match="Example is immutable; make another"):
        x.speed = 0.2
    assert pickle.loads(pickle.dumps(x)) == x


@value
class Derived:
    """With a constructor of its own, as `chain` has."""

    items: tuple
    label: Static[Annotated[Any, Convert(lambda name, x: f"{name}={x}")]] = "none"

    def __init__(self, *items):
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "label", len(items))


def test_a_constructor_of_its_own():
    assert Derived(1.0, 2.0).items == (1.0, 2.0)
    assert jax.tree.leaves(Derived(1.0, Example(0.1))) == [1.0, 0.1, 0.9, 10]


@value
class Twice:
    """A step of its own after the checks."""

    low: NonNegative
    high: NonNegative

    def __post_init__(self):
        if self.low > self.high:
            raise ValueError(f"low must be at most high={self.high}, got {self.low}")


def test_a_check_of_its_own():
    assert Twice(1.0, 2.0).high == 2.0
    with pytest.raises(ValueError, match="low must be at most high=2.0, got 3.0"):
        Twice(3.0, 2.0)
    with pytest.raises(ValueError, match="low must be in"):
        Twice(-1.0, 2.0)


def test_checked_functions():
    @checked
    def step(rate: Positive, power: Fraction = 1.0, *, count: PositiveInt = 1, name: str = ""):
        """Doc."""
        return rate, power, count, name

    assert step(0.1, count=2) == (0.1, 1.0, 2, "")
    assert step.__doc__ == "Doc." and list(inspect.signature(step).parameters) == ["rate", "power", "count", "name"]
    for call, message in [
        (lambda: step(0.0), r"rate must be in \(0, inf\), got 0.0"),
        (lambda: step(1.0, 1.1), r"power must be in \[0, 1\], got 1.1"),
        (lambda: step(1.0, power=-0.1), "power must be in"),
        (lambda: step(1.0, count=0), r"count must be in \[1, inf\), got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="rate"):
        step()


@pytest.mark.parametrize(
    "interval, taken", [("[0, 1]", [0.0, 1.0]), ("[0, 1)", [0.0]), ("(0, 1]", [1.0]), ("(0, 1)", [])]
)
def test_the_ends_of_a_range(interval, taken):
    assert [x for x in (0.0, 1.0) if x in Range(interval)] == taken


@given(st.floats(allow_nan=True), st.sampled_from(["[0, 1)", "(0, 1]", "[-inf, inf]", "(0, inf)", "[1, inf)"]))
def test_a_range_holds_what_it_says(x, interval):
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = (low < x or low == x and interval[0] == "[") and (x < high or x == high and interval[-1] == "]")
    if inside:
        assert Range(interval).check("x", x) is x
    else:
        with pytest.raises(ValueError, match="x must be in"):
            Range(interval).check("x", x)


@given(st.one_of(st.integers(-5, 5), st.floats(-5, 5), st.just(float("inf"))))
def test_an_integer_is_whole(x):
    if x == float("inf") or x < 0 or x != int(x):
        with pytest.raises((TypeError, ValueError), match="x must be"):
            Integer("[0, inf)").check("x", x)
    else:
        assert Integer("[0, inf)").check("x", x) == x
