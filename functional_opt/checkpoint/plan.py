"""Plan: what a checkpoint is restored into, known from its manifest before any array is read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..config import from_config
from ..config.words import short
from ..core.leaves import Tree
from ..core.transformation import as_transformation
from . import containers
from .entries import Entry, abstract_state, entries_of, entries_of_params
from .manifest import Fact, read_manifest
from .placed import put, sharding_of, sharding_of_slot
from .stored import checksum_of, form_of, from_stored, is_stored


class Plan(NamedTuple):
    """`tx`: the transformation. `params`, `state`: trees with shapes. `entries`: theirs. `facts`: the manifest's."""

    tx: Any
    params: Tree
    state: Any
    entries: list[Entry]
    facts: dict[str, Fact]

    def shardings(self) -> dict[str, Any]:
        """Returns the sharding of each array by its name; None where it may lie anywhere."""
        names, wanted = self._names(), {entry.path: entry.value for entry in self.entries if not entry.slot}
        return {
            names[entry.key]: sharding_of_slot(entry, wanted) if entry.slot else sharding_of(entry.value)
            for entry in self.entries
        }

    def filled(self, arrays: Mapping[str, Any]) -> tuple[Any, Tree, Any]:
        """Returns the `(tx, params, state)` with the arrays, after checking all of them."""
        _check_arrays(arrays, self.facts)
        names, shardings = self._names(), self.shardings()
        in_order = (names[entry.key] for entry in self.entries)
        values = (put(from_stored(arrays[name], self.facts[name].form), shardings[name]) for name in in_order)
        params = jax.tree.map(lambda x: next(values) if is_stored(x) else x, self.params)
        return self.tx, params, jax.tree.map(lambda _: next(values), self.state)

    def _names(self) -> dict[Any, str]:
        return {fact.key: name for name, fact in self.facts.items()}


def plan_of(manifest: Any, tx: Any = None, params: Tree = None) -> Plan:
    """Returns the plan for restoring what a manifest describes; see `from_arrays` for the arguments.

    Raises ValueError for a manifest that is damaged, and for a `tx` or params that do not fit it.
    """
    facts = read_manifest(manifest)
    tx = _config(manifest) if tx is None else as_transformation(tx)
    params = _abstract_params(manifest, facts) if params is None else params
    state = abstract_state(tx, params)
    plan = Plan(tx, params, state, entries_of(params, state), facts)
    _check_template(plan.entries, plan._names(), facts)
    return plan


def _check_arrays(arrays: Mapping[str, Any], facts: dict[str, Fact]) -> None:
    for name, fact in facts.items():
        if name not in arrays:
            raise ValueError(f"the array {name!r} is missing")
        x = arrays[name]
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise ValueError(f"the array {name!r} must be an array, got {short(x)} ({type(x).__name__})")
        has, said = f"{np.dtype(x.dtype).name}{list(x.shape)}", f"{fact.form.dtype}{list(fact.form.shape)}"
        if has != said:
            raise ValueError(f"the array {name!r} is {has}, but the manifest says {said}")
        if not fact.form.key and jax.dtypes.canonicalize_dtype(x.dtype) != np.dtype(x.dtype):
            raise ValueError(f"the array {name!r} is {has}, which needs jax.config.update('jax_enable_x64', True)")
    for name in arrays:
        if name not in facts:
            raise ValueError(f"the array {name!r} is not in the manifest")
    for name, fact in facts.items():
        found = checksum_of(arrays[name]) if fact.checksum is not None else None
        if found is not None and found != fact.checksum:
            raise ValueError(f"the array {name!r} is damaged: its checksum is {found}, not {fact.checksum}")


def _config(manifest: dict[str, Any]) -> Any:
    if manifest["config"] is None:
        reason = short(manifest["no_config"])
        raise ValueError(f"the manifest has no config of the transformation ({reason}): pass it as tx=")
    try:
        return as_transformation(from_config(manifest["config"]))
    except TypeError as e:
        raise ValueError(f"the manifest's config: {e}") from e


def _abstract_params(manifest: dict[str, Any], facts: dict[str, Fact]) -> Tree:
    def abstract(fact: Fact) -> Any:
        if fact.form.key:
            data = jax.ShapeDtypeStruct(fact.form.shape, "uint32")
            return jax.eval_shape(lambda x: jax.random.wrap_key_data(x, impl=fact.form.key), data)
        return jax.ShapeDtypeStruct(fact.form.shape, fact.form.dtype, weak_type=fact.form.weak)

    leaves = {name: abstract(fact) for name, fact in facts.items() if not fact.slot}
    params = containers.from_json(manifest["containers"], leaves)
    there = {entry.path for entry in entries_of_params(params)}
    if there != {fact.path for fact in facts.values() if not fact.slot}:
        raise ValueError("the manifest's containers do not hold the params that it lists")
    return params


def _check_template(entries: list[Entry], names: dict[Any, str], facts: dict[str, Fact]) -> None:
    wanted = {entry.key for entry in entries}
    for key, name in names.items():
        if key not in wanted:
            whose = "tx.init(params) makes no such slot" if facts[name].slot else "the given params have no such leaf"
            raise ValueError(f"the checkpoint has {name!r}, but {whose}; {_remedy(facts[name])}")
    for entry in entries:
        if entry.key not in names:
            whose = "tx.init(params) makes" if entry.slot else "the given params have"
            raise ValueError(f"{whose} {str(entry)!r}, but the checkpoint has no such array; {_remedy(entry)}")
        fact, form = facts[names[entry.key]], form_of(entry.value)
        if form[:2] != fact.form[:2]:
            has, said = (f"{f.dtype}{list(f.shape)}" for f in (fact.form, form))
            whose = "tx.init(params) makes" if entry.slot else "the given params have"
            raise ValueError(
                f"the checkpoint's {names[entry.key]!r} is {has}, but {whose} {said} there; {_remedy(entry)}"
            )


def _remedy(x: Entry | Fact) -> str:
    if not x.slot:
        return "pass the params that were saved, or leave params= out"
    return "leave tx= out to get the transformation that was saved, and take its state to another one with migrate"
