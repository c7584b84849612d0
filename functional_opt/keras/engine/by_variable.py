"""The state of an optimizer: pytrees with a dict keyed by variable in each place of the params."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.transformation import GradientTransformation, zero_count


def _in_order(cls: type) -> None:
    """Registers a class of dicts as a pytree that keeps the order of its keys, as that of other dicts is not."""
    jax.tree_util.register_pytree_with_keys(
        cls,
        lambda d: ([(jax.tree_util.DictKey(k), x) for k, x in d.items()], tuple(d)),
        lambda keys, values: cls(zip(keys, values, strict=True)),
        lambda d: (list(d.values()), tuple(d)),
    )


class ByVariable(dict):
    """A dict keyed by variable path. It marks the parts of a state that are kept per variable."""


class BySlot(dict):
    """A dict of `ByVariable`s by the name of the slot."""


_in_order(ByVariable)
_in_order(BySlot)


def is_by_variable(x: Any) -> bool:
    return isinstance(x, ByVariable)


def field_name(path: tuple) -> str:
    """Returns the name of the field or key that a path ends with; empty if it has none."""
    return str(getattr(path[-1], "name", getattr(path[-1], "key", ""))) if path else ""


class ImperativeState(NamedTuple):
    """The state of `imperative`, the transformation that runs code of the user's.

    `count` is the number of updates, `rule` the state of the built-in rule that is extended. `slots` holds the slots
    made by `add_slot`.
    """

    count: jax.Array
    rule: Any
    slots: BySlot


class State(NamedTuple):
    """The state of an optimizer.

    `inner` is the state of the transformation, and `counted` the number of steps that the counts in it stand for.
    `average` and `accumulated` hold, by variable, running means of the values and the gradients accumulated so
    far. They are empty if the optimizer keeps none. `slots` holds the slots made by `add_slot`, unless `inner` does.
    """

    inner: Any
    counted: jax.Array
    average: ByVariable
    accumulated: ByVariable
    slots: BySlot

    @property
    def rule(self) -> Any:
        """The state of the built-in rule."""
        return self.inner.rule if isinstance(self.inner, ImperativeState) else self.inner

    def with_rule(self, rule: Any) -> "State":
        """Returns the state with another one of the built-in rule."""
        return self._replace(
            inner=self.inner._replace(rule=rule) if isinstance(self.inner, ImperativeState) else rule
        )

    @property
    def added(self) -> BySlot:
        """The slots made by `add_slot`."""
        return self.inner.slots if isinstance(self.inner, ImperativeState) else self.slots

    def with_added(self, slots: BySlot) -> "State":
        """Returns the state with other slots made by `add_slot`."""
        if isinstance(self.inner, ImperativeState):
            return self._replace(inner=self.inner._replace(slots=slots))
        return self._replace(slots=slots)


def extend_state(
    tx: GradientTransformation, state: State | None, values: ByVariable, *, average: bool, accumulate: bool
) -> State:
    """Returns the state for all of `values`: entries of `state` where it has them, initial ones elsewhere."""
    state = State(None, zero_count(), ByVariable(), ByVariable(), BySlot()) if state is None else state
    old = dict(jax.tree_util.tree_leaves_with_path(state.inner, is_leaf=is_by_variable))

    def carry(path, fresh):
        kept = old.get(path, fresh)
        return ByVariable(fresh | kept) if is_by_variable(fresh) else kept

    fresh = shift_counts(tx.init(values), state.counted)
    zeros = {key: jnp.zeros_like(x) for key, x in values.items()}
    copies = {key: jnp.copy(x) for key, x in values.items() if key not in state.average} if average else {}
    return State(
        jax.tree_util.tree_map_with_path(carry, fresh, is_leaf=is_by_variable),
        state.counted,
        ByVariable((key, state.average.get(key, copies.get(key))) for key in values) if average else ByVariable(),
        ByVariable(zeros | state.accumulated) if accumulate else ByVariable(),
        state.slots,
    )


def completed(state: State, full: State) -> State:
    """Returns a state with the variables of another one: its own entries, and those of `full` that it lacks."""
    own = dict(jax.tree_util.tree_leaves_with_path(state, is_leaf=is_by_variable))

    def entry(path, x):
        return ByVariable(x | own.get(path, {})) if is_by_variable(x) else own.get(path, x)

    return jax.tree_util.tree_map_with_path(entry, full, is_leaf=is_by_variable)


def restricted(inner: Any, key: str) -> Any:
    """Returns the part of a state that one variable has, with all that is kept once for all of them."""
    return jax.tree.map(
        lambda x: ByVariable({key: x[key]}) if is_by_variable(x) else x, inner, is_leaf=is_by_variable
    )


def merged(inner: Any, part: Any, shared_of: str, but_counts: bool = False) -> Any:
    """Returns a state with the entries of another one, by variable, in the place of its own.

    What is kept once for all variables is that of the "first" or of the "second", with `but_counts` but for counts.
    """

    def leaf(path, x, new):
        if is_by_variable(x):
            return ByVariable(x | new)
        return x if shared_of == "first" or but_counts and field_name(path) == "count" else new

    return jax.tree_util.tree_map_with_path(leaf, inner, part, is_leaf=is_by_variable)


def shift_counts(inner: Any, by: jax.Array) -> Any:
    """Adds `by` to every field called count. The counts of inner states may lag behind the others."""

    def leaf(path, x):
        is_count = field_name(path) == "count" and not is_by_variable(x)
        return jnp.maximum(x + by, 0).astype(x.dtype) if is_count else x

    return jax.tree_util.tree_map_with_path(leaf, inner, is_leaf=is_by_variable)


def keep_variables(keys: Any, old: Any, new: Any) -> Any:
    """Returns the new state, with the old entries for the variables in `keys`."""

    def leaf(old, new):
        return ByVariable((k, old[k] if k in keys else x) for k, x in new.items()) if is_by_variable(new) else new

    return jax.tree.map(leaf, old, new, is_leaf=is_by_variable)
