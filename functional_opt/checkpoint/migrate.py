"""migrate: a state of one transformation as a state of another, by what its parts mean."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.leaves import Tree
from ..core.transformation import as_transformation
from ..transforms.combining.nesting import walk
from .decoded import decoded, encoded, stored_dtypes
from .entries import Entry, entries_of_old_state, entries_of_params, entries_of_state
from .matching import Source, node_of, sources_of
from .meanings import FRESH, TRACE
from .placed import put, shardings_of
from .renames import renamed
from .report import Move, Report
from .stored import is_stored


def migrate(
    state: Any,
    old_tx: Any,
    new_tx: Any,
    params: Tree,
    *,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
) -> tuple[Any, Report]:
    """Returns a state for `new_tx` that continues a state of `old_tx`, and a report on every slot.

    Arrays are matched by the rule that made them, the slot and the path of the param, wherever they stand. Links may
    be added, removed and moved, wrapped, masked, grouped and partitioned; slots may change their dtype or become
    codes. Moments are converted between Adam and AMSGrad, from these to Lion and Muon, and between momentum, Lion and
    Muon. Schedules go on with the steps done. All else starts afresh, as `new_tx.init(params)` makes it; running
    means of the params then start from the params.

    Args:
        state: the old state.
        old_tx: the transformation that made it.
        new_tx: the transformation to continue with.
        params: the params now: leaves may be added, removed or renamed, in other containers or on another mesh.
        rename: new paths by old ones, such as `{"encoder/**": "backbone/**"}`; the first rule that matches applies.
        strict: whether to raise ValueError rather than drop an array of the old state.

    The report is a sequence of moves with `kind`, `path`, `slot` and `why`, and prints as a table. The kinds are
    "kept" (the same bits), "converted", "fresh" and "dropped".

    Raises ValueError for a rename that does not fit and, if `strict`, for arrays that would be dropped.

    >>> import functional_opt as fo
    >>> params = {"w": jnp.ones(2)}
    >>> old, new = fo.adam(0.1), fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(fo.linear_schedule(0.1, 0.0, 9)))
    >>> _, state = old.update(params, old.init(params), params)
    >>> state, report = migrate(state, old, new, params)
    >>> print(report)
    kept       1/0/count  -
    kept       1/0/mu     w
    kept       1/0/nu     w
    converted  1/2/count  -  the steps done, from 0/count
    >>> updates, state = new.update(params, state, params)
    """
    old_tx, new_tx = as_transformation(old_tx), as_transformation(new_tx)
    in_floats = decoded(old_tx, state)
    old = entries_of_old_state(in_floats, params)
    was = stored_dtypes(state)
    paths = renamed(dict.fromkeys(entry.path for entry in old if entry.path is not None), rename or {})
    old = [entry._replace(path=paths.get(entry.path or "", entry.path)) for entry in old]

    start = new_tx.init(jax.tree.map(lambda x: x if is_stored(x) else None, params))
    floats = decoded(new_tx, start)
    new, becomes = entries_of_state(floats, params), stored_dtypes(start)
    leaves = [entry for entry in entries_of_params(params) if is_stored(entry.value)]
    placed = shardings_of([*leaves, *new])[len(leaves) :]
    decays = _decays("old", old_tx, in_floats) | _decays("new", new_tx, floats)

    values, moves, used = [], [], set()
    for entry, source, dtype, sharding in zip(new, sources_of(old, new), becomes, placed, strict=True):
        value, move = _moved(entry, source, old, was, dtype, decays)
        used |= {source.i, *source.merged} if move.kind != "fresh" else set()
        values.append(put(value, sharding))
        moves.append(move)
    known = {entry.path for entry in leaves}
    for i, entry in enumerate(old):
        if i not in used:
            gone = entry.path is not None and entry.path not in known
            why = "the params have no such leaf" if gone else "the new state has no such slot"
            moves.append(Move("dropped", entry.path, place_of(entry), why))
    report = Report(moves)
    if strict and (lost := report.of("dropped")):
        raise ValueError(f"strict: {len(lost)} arrays of the old state would be lost:\n{Report(lost)}")
    filled = jax.tree.structure(floats).unflatten(values)
    return encoded(new_tx, filled, start), report


def _moved(
    entry: Entry, source: Source, old: list[Entry], was: list[Any], dtype: Any, decays: Mapping[tuple[str, str], Any]
) -> tuple[Any, Move]:
    """Returns the new value of an entry, and what is to be said of it."""

    def fresh(why: str) -> tuple[Any, Move]:
        return entry.value, Move(
            "fresh", entry.path, place_of(entry), FRESH.get(entry.rule, why) if why == "new" else why
        )

    if source.i is None:
        return fresh(source.why)
    x, conversion, whys = old[source.i].value, source.conversion, []
    if jnp.shape(x) != jnp.shape(entry.value):
        return fresh(f"the old one has shape {jnp.shape(x)}, not {jnp.shape(entry.value)}")
    if not _converts(x, entry.value):
        return fresh(f"the old one is {x.dtype}, not {entry.value.dtype}")
    if conversion is not None:
        whys.append(conversion.why)
        if conversion.times is not None:
            decay = decays.get((conversion.side, node_of(old[source.i] if conversion.side == "old" else entry)))
            if decay is None:
                return fresh("the decay of the momentum is not known")
            x = jnp.asarray(x) * conversion.times(decay)
    if was[source.i] != dtype:
        whys.append(f"{was[source.i]} to {dtype}")
    x = x if getattr(x, "dtype", None) == entry.value.dtype else jnp.asarray(x, entry.value.dtype)
    return x, Move("converted" if whys else "kept", entry.path, place_of(entry), "; ".join(whys))


def place_of(entry: Entry) -> str:
    return f"{entry.slot}{entry.part and '/' + entry.part}"


def _converts(x: Any, like: Any) -> bool:
    """Returns whether the numbers of one array mean the same in the dtype of another."""
    x, like = jnp.result_type(x), jnp.result_type(like)
    floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (x, like))
    return x == like or floats


def _decays(side: str, tx: Any, state: Any) -> dict[tuple[str, str], Any]:
    """Returns the decay of each `trace` by the side and the place of its state."""
    links = {id(own): link for _, _, link, own in walk(tx, state) if type(own).__name__ == TRACE}
    places = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: type(x).__name__ == TRACE)
    return {
        (side, "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)): links[id(x)].decay
        for path, x in places
        if hasattr(links.get(id(x)), "decay")
    }
