"""Configs that were written before a class had all of its fields still load, and mean the same."""

import dataclasses
import json
from pathlib import Path

import pytest

import functional_opt as fo
from functional_opt.config.registry import ADDED

from ..conformance.cases import each_case
from .test_config import register_what_the_cases_use

register_what_the_cases_use()

FIRST = json.loads(Path(__file__).with_name("first_fields.json").read_text())
"""The fields of each class when configs first had it."""
CLASSES = {name: x for name, x in vars(fo).items() if isinstance(x, type) and dataclasses.is_dataclass(x)}


@pytest.mark.parametrize("name", CLASSES)
def test_fields_that_were_added_have_a_value_for_older_configs(name):
    fields = {f.name for f in dataclasses.fields(CLASSES[name])}
    assert name in FIRST, f"{name} is new: give first_fields.json a line with its fields"
    assert fields >= set(FIRST[name]), "older configs have a field that is gone"
    assert fields - set(FIRST[name]) == set(ADDED.get(name, {})), "config/registry.py: ADDED"


def before(node, used):
    """The config without the fields that were added; collects those with other values than older configs mean."""
    if isinstance(node, dict):
        added = json.loads(json.dumps(ADDED.get(node.get("type"), {})))
        used += [key for key in added if node[key] != added[key]]
        return {key: before(x, used) for key, x in node.items() if key not in added}
    return [before(x, used) for x in node] if isinstance(node, list) else node


@each_case
def test_an_older_config_makes_the_same(case):
    tx, used = case.tx(), []
    old = before(json.loads(json.dumps(fo.to_config(tx))), used)
    assert (fo.from_config(old) == tx) == (not used)
