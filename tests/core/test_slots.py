"""Slots: every field of every state says what it holds, and what is stored is what it says."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import functional_opt as fo
from functional_opt.core.slots import declared, slots_of

from ..conformance.cases import OPTIMIZERS, TRANSFORMATIONS
from ..helpers import make_params

CASES = [*OPTIMIZERS, *TRANSFORMATIONS]
ASKED_FOR = ("schedule_free", "dog", "dowg", "scale_by_dog", "scale_by_dowg", "mechanize")
"""Whose argument is said to be for their params."""
DTYPES: dict[str, Any] = {
    "signed": jnp.inexact,
    "unsigned": jnp.floating,
    "params": jnp.inexact,
    "counter": jnp.integer,
}


def public_states():
    modules = [fo, fo.contrib, fo.experimental]
    found = {x for module in modules for x in vars(module).values() if inspect.isclass(x) and hasattr(x, "_fields")}
    return sorted((x for x in found if "State" in x.__name__ and x._fields), key=lambda x: x.__name__)


@pytest.mark.parametrize("cls", public_states(), ids=lambda x: x.__name__)
def test_every_field_is_declared(cls):
    assert set(declared(cls)) == set(cls._fields)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_array_of_a_state_is_declared(case):
    state = jax.eval_shape(case.make(**case.args).init, make_params())
    for place in slots_of(state):
        assert place.slot is not None, f"{place.name} is not declared"
        for x in jax.tree.leaves(place.value):
            if place.slot.bits <= 8 and x.dtype in (jnp.int8, jnp.uint8):  # codes
                continue
            assert jnp.issubdtype(x.dtype, DTYPES.get(place.slot.kind, jnp.generic)), f"{place.name} is {x.dtype}"


def takes_state_dtype(case):
    return "state_dtype" in inspect.signature(case.make).parameters and "state_dtype" not in case.args


@pytest.mark.parametrize("case", [case for case in CASES if takes_state_dtype(case)], ids=str)
def test_state_dtype_reaches_what_may_have_16_bits(case):
    plain, short = (jax.eval_shape(case.tx(**x).init, make_params()) for x in ({}, {"state_dtype": "bfloat16"}))
    for before, after in zip(slots_of(plain), slots_of(short), strict=True):
        params = before.slot.kind == "params" and case.name.startswith(ASKED_FOR)
        bits = 16 if params else before.slot.bits
        for x, y in zip(jax.tree.leaves(before.value), jax.tree.leaves(after.value), strict=True):
            assert y.dtype == (jnp.bfloat16 if bits <= 16 else x.dtype), f"{before.name} is {y.dtype}"
