"""to_arrays and from_arrays: params and a state as named arrays with a manifest, and back."""

from collections.abc import Mapping
from typing import Any

from ..core.leaves import Tree
from ..core.transformation import as_transformation
from . import containers
from .entries import Entry, abstract_state, entries_of, entries_of_params, entries_of_state
from .manifest import Fact, config_of, make_manifest
from .names import names_of
from .restored import restored
from .stored import checksum_of, form_of, is_stored, to_stored


def to_arrays(tx: Any, params: Tree, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns params and a state as a flat dict of arrays, and a manifest, plain JSON, that says what they are.

    A param's name is its path, such as `encoder/layer_0/kernel`. A slot's name is the path of its param and the
    slot's field: `encoder/layer_0/kernel#mu`; `#count` belongs to no param. Names do not depend on containers: dicts,
    lists, modules and boxes give the same. If two slots would have the same name, theirs have the place in the state,
    such as `encoder/layer_0/kernel#0/mu`.

    Args:
        tx: the transformation. The manifest has its config, or None if it has none, such as another library's.
        params: the params. Leaves that are not arrays or numbers, such as functions in a model, are left out.
        state: a state that `tx.init(params)` or `tx.update` returned.

    The arrays are those of params and state, not copies; keys of `jax.random` become their data. Their checksums are
    computed on the host; an array of which this process has only a part has none.

    Raises ValueError, naming the array, for a state that is not one of `tx`, and TypeError for tracers.

    >>> import jax.numpy as jnp
    >>> from functional_opt import adam
    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    >>> tx = adam(1e-3)
    >>> arrays, manifest = to_arrays(tx, params, tx.init(params))
    >>> list(arrays)
    ['dense/bias', 'dense/kernel', '#count', 'dense/bias#mu', 'dense/kernel#mu', 'dense/bias#nu', 'dense/kernel#nu']
    >>> manifest["arrays"]["dense/bias#mu"]  # doctest: +NORMALIZE_WHITESPACE
    {'role': 'slot', 'slot': '0/mu', 'rule': 'ScaleByAdamState', 'path': 'dense/bias', 'shape': [3],
     'dtype': 'float32', 'checksum': 'crc32:7bd5c66f'}
    """
    tx = as_transformation(tx)
    _refuse_other_state(tx, params, entries_of_state(state, params))
    arrays, facts, inside = named_arrays(params, state)
    return arrays, make_manifest(*config_of(tx), inside, facts)


def from_arrays(
    arrays: Mapping[str, Any], manifest: dict[str, Any], tx: Any = None, params: Tree = None
) -> tuple[Any, Tree, Any]:
    """Returns the `(tx, params, state)` that `to_arrays` described, with the same bits.

    Args:
        arrays: arrays by name, JAX's or NumPy's. NumPy's are copied.
        manifest: the manifest that `to_arrays` returned with them, also after a round trip through JSON.
        tx: the transformation; if None, the one in the manifest. If it has other slots than that one, the state is
            migrated to it, with a warning that says what is not kept; see `migrate`.
        params: params in the containers that you want, in any order, whose leaves have shapes and dtypes: arrays or
            `jax.ShapeDtypeStruct`. Arrays are put where the shardings of these leaves say, and slots beside their
            params. Leaves that are not arrays stay. If None, params are in dicts, lists and tuples.

    Raises ValueError, before anything is used, for a manifest that is damaged or of another version, for an array
    that is missing, not expected, or has another shape, dtype or checksum than the manifest says, for params that do
    not fit, and for a `tx` that would lose an array; it names the array.

    >>> import jax.numpy as jnp
    >>> from functional_opt import adam
    >>> params = {"w": jnp.ones(2)}
    >>> arrays, manifest = to_arrays(adam(1e-3), params, adam(1e-3).init(params))
    >>> tx, params, state = from_arrays(arrays, manifest)
    >>> tx == adam(1e-3), state[0].nu["w"].tolist()
    (True, [0.0, 0.0])
    >>> del arrays["w#nu"]
    >>> from_arrays(arrays, manifest)
    Traceback (most recent call last):
    ValueError: the array 'w#nu' is missing
    """
    return restored(manifest, tx, params, lambda plan: arrays)


def named_arrays(params: Tree, state: Any) -> tuple[dict[str, Any], dict[str, Fact], Any]:
    """Returns the arrays by name, what the manifest says of each, and the containers of the params as JSON."""
    entries, arrays, facts = entries_of(params, state), {}, {}
    for name, entry in zip(names_of(entries), entries, strict=True):
        x = to_stored(entry.value, name)
        role = "slot" if entry.slot else "param"
        arrays[name] = x
        facts[name] = Fact(role, entry.slot, entry.rule, entry.path, entry.part, form_of(entry.value), checksum_of(x))
    names = {fact.path: name for name, fact in facts.items() if not fact.slot}
    in_order = [names.get(entry.path) if is_stored(entry.value) else None for entry in entries_of_params(params)]
    return arrays, facts, containers.to_json(params, in_order)


def _refuse_other_state(tx: Any, params: Tree, slots: list[Entry]) -> None:
    """Raises ValueError if `from_arrays` could not put the slots into a state of `tx`."""
    made = {entry.key: entry for entry in entries_of_state(abstract_state(tx, params), params)}
    given = {entry.key: entry for entry in slots}
    for key in [*made, *given]:
        if key not in given:
            raise ValueError(f"the state has no {made[key]}, which tx.init(params) makes; pass the state of this tx")
        if key not in made:
            raise ValueError(f"the state has {given[key]}, which tx.init(params) does not make; pass the tx it is of")
        forms = form_of(given[key].value), form_of(made[key].value)
        if forms[0][:2] != forms[1][:2]:
            has, makes = (f"{form.dtype}{list(form.shape)}" for form in forms)
            raise ValueError(
                f"the state's {given[key]} is {has}, but tx.init(params) makes {makes}; pass its own params"
            )
