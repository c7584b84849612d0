"""States of Optax's transformations as states here, and back.

Nothing of Optax is imported: its states have the same names, and its transformations an `init`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint.entries import Entry, entries_of_old_state, entries_of_state
from ..checkpoint.matching import node_of, sources_of
from ..core.leaves import Tree
from ..core.transformation import as_transformation


def from_optax(state: Any, tx: Any, params: Tree) -> Any:
    """Returns a state for `tx` that continues one of Optax: the next steps are Optax's, up to rounding.

    Args:
        state: a state of an Optax transformation.
        tx: the same chain with the links of functional_opt.
        params: the params that the state was made for.

    Slots that only exist here, such as the weights of `MultiSteps`, start as `tx.init(params)` makes them.

    Raises ValueError, naming the slot, if one of the two has a slot without a counterpart in the other. `migrate`
    also takes such states, and reports what became of each slot.

    >>> import optax
    >>> from functional_opt import adam
    >>> params = {"w": jnp.ones(2)}
    >>> theirs = optax.adam(0.1)
    >>> _, state = theirs.update(params, theirs.init(params), params)
    >>> state = from_optax(state, adam(0.1), params)
    >>> int(state[0].count), type(state[0]).__module__
    (1, 'functional_opt.optimizers.adam')
    """
    return _carried(state, as_transformation(tx).init(params), params, "tx", "the state of Optax")


def to_optax(state: Any, tx: Any, params: Tree) -> Any:
    """Returns a state for an Optax transformation that continues one of functional_opt; the inverse of `from_optax`.

    Args:
        state: a state of a transformation of functional_opt.
        tx: the same chain with the links of Optax.
        params: the params that the state was made for.

    Raises ValueError, naming the slot, if one of the two has a slot without a counterpart in the other.

    >>> import optax
    >>> from functional_opt import adam
    >>> params = {"w": jnp.ones(2)}
    >>> state = to_optax(adam(0.1).init(params), optax.adam(0.1), params)
    >>> type(state[0]).__module__.startswith("optax"), int(state[0].count)
    (True, 0)
    """
    return _carried(state, tx.init(params), params, "the transformation of Optax", "the state")


ALIASES = {"WeightDecaySchedule": "ScaleByScheduleState", "ScaleByBeliefState": "ScaleByAcpropState"}
"""Classes of Optax's states that have another name here, in some chain."""
WEIGHTS = "weight_sum"
"""The field of `MultiSteps` that only exists here: the sum of the weights of the gradients in the window."""


def _carried(state: Any, start: Any, params: Tree, whose: str, given: str) -> Any:
    """Returns `start` with the arrays of another library's state in it."""
    old, new = entries_of_old_state(state, params), entries_of_state(start, params)
    old = _under_names_of(old, new)
    rules = {x.rule for x in old} & {x.rule for x in new}
    fields = {(x.rule, x.field) for x in old} & {(x.rule, x.field) for x in new}
    values, used = [], set()
    for entry, source in zip(new, sources_of(old, new), strict=True):
        if source.i is None or source.conversion is not None:
            if entry.rule not in rules or (entry.rule, entry.field) in fields:
                raise ValueError(f"{whose} keeps {entry}, of a {entry.rule}, which {given} does not have")
            values.append(_weights_so_far(entry, new, values))
            continue
        x = _as(old[source.i].value, entry)
        if jnp.shape(x) != jnp.shape(entry.value):
            shapes = f"shape {jnp.shape(x)} in {given}, but {jnp.shape(entry.value)}"
            raise ValueError(f"{entry} has {shapes} in that of {whose}")
        used |= {source.i, *source.merged}
        values.append(x)
    for i, entry in enumerate(old):
        if i not in used and (entry.rule not in rules or (entry.rule, entry.field) in fields):
            raise ValueError(f"{given} has {entry}, of a {entry.rule}, which {whose} does not keep")
        if entry.field == WEIGHTS and i not in used and entry.value != _mini_step(entry, old).value:
            raise ValueError(f"{given} has gradients with weights in its window, which {whose} does not have")
    return jax.tree.structure(start).unflatten(values)


def _mini_step(entry: Entry, entries: list[Entry]) -> Entry:
    """Returns the count of the window of `MultiSteps` whose sum of weights the entry is."""
    return next(x for x in entries if x.field == "mini_step" and node_of(x) == node_of(entry))


def _weights_so_far(entry: Entry, new: list[Entry], values: list[Any]) -> Any:
    """Returns what a slot that only exists here starts with: for the sum of weights, the gradients in the window."""
    if entry.field != WEIGHTS:
        return entry.value
    return jnp.asarray(values[new.index(_mini_step(entry, new))], jnp.result_type(entry.value))


def _under_names_of(old: list[Entry], new: list[Entry]) -> list[Entry]:
    """Returns the old entries, under the names that the new ones have for the classes of their states."""
    known, there = {x.rule for x in new}, {x.rule for x in old}
    both = ALIASES | {ours: theirs for theirs, ours in ALIASES.items()}
    names = {rule: both[rule] for rule in there if rule in both and rule not in known and both[rule] in known}
    return [entry._replace(rule=names.get(entry.rule, entry.rule)) for entry in old]


def _as(x: Any, like: Entry) -> Any:
    """Returns an array in the dtype of the new one; a key of `jax.random` in the form in which that keeps it."""
    dtype, wanted = jnp.result_type(x), jnp.result_type(like.value)
    typed = [jnp.issubdtype(d, jax.dtypes.prng_key) for d in (dtype, wanted)]
    if dtype == wanted or all(typed):
        return x
    if any(typed):
        return jax.random.key_data(x) if typed[0] else jax.random.wrap_key_data(x)
    return jnp.asarray(np.asarray(x), wanted)
