"""save and restore: variables and everything that an optimizer keeps, as named arrays in one file."""

import os
from collections.abc import Iterable
from typing import Any

from ...checkpoint.arrays import named_arrays
from ...checkpoint.files import read, write
from ...checkpoint.manifest import make_manifest
from ...checkpoint.plan import plan_into
from ..variables.foreign import all_ours
from ..variables.recording import BUSY
from ..variables.variable import Variable

NO_CONFIG = "it is of an optimizer of functional_opt.keras, whose method restore reads it"


def save(optimizer: Any, path: str | os.PathLike, variables: Iterable[Any]) -> None:
    """See `Optimizer.save`."""
    with BUSY.lock:
        by_path = _by_path(optimizer, variables)
        arrays, facts, containers = named_arrays(_values(by_path), _state(optimizer))
        write(path, arrays, make_manifest(None, NO_CONFIG, containers, facts))


def restore(optimizer: Any, path: str | os.PathLike, variables: Iterable[Any]) -> None:
    """See `Optimizer.restore`."""
    arrays, manifest, _ = read(path)
    with BUSY.lock:
        before = optimizer._engine.snapshot()
        try:
            by_path = _by_path(optimizer, variables)
            _, values, state = plan_into(manifest, _values(by_path), _state(optimizer)).filled(arrays)
        except BaseException:
            optimizer._engine.restore(before)  # without slots that were only made for this
            raise
        engine = optimizer._engine
        engine.keep(state["slots"], engine.clock())
        for name, variable in _kept_beside(optimizer).items():
            variable._value = state["variables"][name]
        for key, variable in by_path.items():
            variable._value = values[key]


def _by_path(optimizer: Any, variables: Iterable[Any]) -> dict[str, Variable]:
    """Returns the variables by path, after making the slots of those that train."""
    ours, by_path = all_ours(variables), {}
    for v in ours:
        if by_path.setdefault(v.path, v) is not v:
            raise ValueError(f"two variables have the path {v.path!r}, which names them; rename one of them")
    given = set(map(id, ours))
    for v in optimizer._engine.known():
        if id(v) not in given:
            raise ValueError(f"the optimizer has slots for {v.path!r}, which is not among the variables; add it")
    optimizer.build([v for v in ours if v.trainable or optimizer._engine.is_known(v)])
    return by_path


def _values(by_path: dict[str, Variable]) -> dict[str, Any]:
    return {path: v._value for path, v in by_path.items()}


def _state(optimizer: Any) -> dict[str, Any]:
    """Returns all that an optimizer keeps beside the variables that it trains."""
    return {
        "slots": optimizer._engine.state(),
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
