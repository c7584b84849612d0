"""Plan: what a checkpoint is restored into, known from its manifest before any array is read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from ..config import from_config
from ..config.words import short
from ..core.leaves import Tree
from ..core.transformation import as_transformation
from ..placement.shardings import state_shardings
from . import containers
from .entries import Entry, abstract_state, entries_of, entries_of_params
from .manifest import Fact, read_manifest
from .placed import put, sharding_of, shardings_of
from .stored import checksum_of, form_of, from_stored, is_stored


class OtherSlotsError(ValueError):
    """The state to restore has other slots than the checkpoint."""


class Plan(NamedTuple):
    """`tx`: the transformation. `params`, `state`: trees with shapes. `entries`: theirs. `facts`: the manifest's."""

    tx: Any
    params: Tree
    state: Any
    entries: list[Entry]
    facts: dict[str, Fact]

    def shardings(self) -> dict[str, Any]:
        """Returns the sharding of each array by its name; None where it may lie anywhere."""
        names, places = self._names(), shardings_of(self.entries)
        if any(isinstance(place, NamedSharding) for place in places):
            slots = jax.tree.leaves(state_shardings(self.tx, jax.tree.map(_asked_for, self.params)))
            for i, place in enumerate(slots, len(places) - len(slots)):
                same = places[i] is not None and place.is_equivalent_to(places[i], self.entries[i].value.ndim)
                places[i] = places[i] if same else place
        return {names[entry.key]: to for entry, to in zip(self.entries, places, strict=True)}

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
    return _checked(Plan(tx, params, state := abstract_state(tx, params), entries_of(params, state), facts), OF_TX)


def plan_into(manifest: Any, params: Tree, state: Any) -> Plan:
    """Returns the plan for restoring into params and a state like these. Raises ValueError if they do not fit."""
    facts = read_manifest(manifest)
    return _checked(Plan(None, params, state, entries_of(params, state), facts), OF_OPTIMIZER)


def _asked_for(x: Any) -> Any:
    """Returns the shape of a param with the sharding that is asked for; None for a leaf that is not an array."""
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=sharding_of(x)) if is_stored(x) else None


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


class _Words(NamedTuple):
    """Who makes slots, and what to do if they are others, for errors."""

    slots: str
    params: str
    remedy: str
    remedy_of_params: str


OF_TX = _Words(
    "tx.init(params)",
    "the given params",
    "leave tx= out to get the transformation that was saved, and take its state to another one with migrate",
    "pass the params that were saved, or leave params= out",
)
OF_OPTIMIZER = _Words(
    "the optimizer",
    "the given variables",
    "restore into an optimizer of the same class and arguments",
    "pass the variables that were saved, under the same paths",
)


def _checked(plan: Plan, words: _Words) -> Plan:
    """Returns the plan. Raises ValueError, naming the array, if the manifest has other arrays than it needs."""
    names, wanted = plan._names(), {entry.key for entry in plan.entries}
    for key, name in names.items():
        if key not in wanted:
            slot = plan.facts[name].slot
            whose = f"{words.slots} makes no such slot" if slot else f"{words.params} have no such leaf"
            remedy = words.remedy if slot else words.remedy_of_params
            raise (OtherSlotsError if slot else ValueError)(f"the checkpoint has {name!r}, but {whose}; {remedy}")
    for entry in plan.entries:
        whose = f"{words.slots} makes" if entry.slot else f"{words.params} have"
        remedy = words.remedy if entry.slot else words.remedy_of_params
        error = OtherSlotsError if entry.slot else ValueError
        if entry.key not in names:
            raise error(f"{whose} {str(entry)!r}, but the checkpoint has no such array; {remedy}")
        name = names[entry.key]
        fact, form = plan.facts[name], form_of(entry.value)
        if form[:2] != fact.form[:2]:
            has, makes = (f"{f.dtype}{list(f.shape)}" for f in (fact.form, form))
            raise error(f"the checkpoint's {name!r} is {has}, but {whose} {makes} there; {remedy}")
        if entry.rule != fact.rule:
            raise error(
                f"the checkpoint's {name!r} is of a {fact.rule or 'plain state'}, but {whose} a "
                f"{entry.rule or 'plain state'} there; {remedy}"
            )
    return plan
