"""save and restore: variables and everything that an optimizer keeps, as named arrays in one file."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ...checkpoint.arrays import named_arrays
from ...checkpoint.files import read, write
from ...checkpoint.manifest import make_manifest
from ...checkpoint.plan import plan_into
from ..engine.by_variable import ByVariable, is_by_variable
from ..engine.scaled import ScaledEngine
from ..engine.several import SeveralEngine
from ..variables.foreign import all_ours
from ..variables.recording import BUSY
from ..variables.variable import Variable

NO_CONFIG = "it is of an optimizer of functional_opt.keras, whose method restore reads it"


Variables = Iterable[Any] | Mapping[str, Any]


def save(optimizer: Any, path: str | os.PathLike, variables: Variables) -> None:
    """See `Optimizer.save`."""
    with BUSY.lock:
        by_path = _by_path(optimizer, variables)
        arrays, facts, containers = named_arrays(_values(by_path), _state(optimizer, by_path))
        write(path, arrays, make_manifest(None, NO_CONFIG, containers, facts))


def restore(optimizer: Any, path: str | os.PathLike, variables: Variables) -> None:
    """See `Optimizer.restore`."""
    arrays, manifest, _ = read(path)
    with BUSY.lock:
        engine = optimizer._engine
        before = engine.snapshot()
        try:
            by_path = _by_path(optimizer, variables)
            _, values, state = plan_into(manifest, _values(by_path), _state(optimizer, by_path)).filled(arrays)
        except BaseException:
            engine.restore(before)  # without slots that were only made for this
            raise
        keys = {id(v): key for key, v in by_path.items()}
        engine.keep(_renamed(engine, state["slots"], lambda key, v: (keys[id(v)], key)), engine.clock())
        for name, variable in _kept_beside(optimizer).items():
            variable._value = state["variables"][name]
        for key, variable in by_path.items():
            variable._value = values[key]


def _by_path(optimizer: Any, variables: Variables) -> dict[str, Variable]:
    """Returns the variables by path, after making the slots of those that train."""
    if isinstance(variables, Mapping):
        by_path = dict(zip(variables, all_ours(variables.values()), strict=True))
    else:
        by_path = {}
        for v in all_ours(variables):
            if by_path.setdefault(v.path, v) is not v:
                hint = "rename one of them, or give a dict of variables by the paths that they are to have"
                raise ValueError(f"two variables have the path {v.path!r}, which names them; {hint}")
    given = set(map(id, by_path.values()))
    for v in optimizer._engine.known():
        if id(v) not in given:
            raise ValueError(f"the optimizer has slots for {v.path!r}, which is not among the variables; add it")
    optimizer.build([v for v in by_path.values() if v.trainable or optimizer._engine.is_known(v)])
    return by_path


def _renamed(engine: Any, state: Any, names: Callable[[str, Variable], tuple[str, str]]) -> Any:
    """Returns the state of an engine with other keys: `names(key, variable)` is the old and the new one."""
    if isinstance(engine, ScaledEngine):
        scaling, inner = state
        return scaling, _renamed(engine.inner, inner, names)
    if isinstance(engine, SeveralEngine):
        return tuple(_renamed(part, own, names) for part, own in zip(engine._engines(), state, strict=True))
    table = dict(names(key, v) for key, v in engine.store.variables.items())

    def renamed(x: Any) -> Any:
        return ByVariable((table[key], y) for key, y in x.items()) if is_by_variable(x) else x

    return jax.tree.map(renamed, state, is_leaf=is_by_variable)


def _values(by_path: dict[str, Variable]) -> dict[str, Any]:
    return {path: v._value for path, v in by_path.items()}


def _state(optimizer: Any, by_path: dict[str, Variable]) -> dict[str, Any]:
    """Returns all that an optimizer keeps beside the variables that it trains, which are named by their paths."""
    keys, engine = {id(v): path for path, v in by_path.items()}, optimizer._engine
    return {
        "slots": _renamed(engine, engine.state(), lambda key, v: (key, keys[id(v)])),
        "variables": {name: v._value for name, v in _kept_beside(optimizer).items()},
    }


def _kept_beside(optimizer: Any, prefix: str = "") -> dict[str, Variable]:
    """Returns the counts, the hyperparameters that are numbers, and what subclasses add, by name, each once."""
    hyper = {f"{prefix}{name}": x for name, x in optimizer._hyper.items() if isinstance(x, Variable)}
    counters = {f"{prefix}counter_{i}": v for i, v in enumerate(optimizer._counters())}
    own = all_ours([*optimizer._own_weights, *optimizer._extra_weights])
    added = {f"{prefix}weight_{i}": v for i, v in enumerate(own)}
    parts = [_kept_beside(part, f"{prefix}{i}/") for i, part in enumerate(getattr(optimizer, "_parts", ()))]
    named, seen = {}, set()
    for name, v in [item for table in (hyper, counters, added, *parts) for item in table.items()]:
        if id(v) not in seen:
            seen.add(id(v))
            named[name] = v
    return named
