"""applied: new params that a step has made together with its updates."""

import weakref
from typing import Any

_known: dict[int, tuple[weakref.ref, Any, Any]] = {}


def remember(update: Any, param: Any, new_param: Any) -> None:
    """`new_param` is `param + update`, to be had as long as this very `update` is."""
    key = id(update)
    _known[key] = (weakref.ref(update, lambda _: _known.pop(key, None)), param, new_param)


def applied(param: Any, update: Any) -> Any:
    """What `param + update` is, if a step has computed it for just these two; else None."""
    found = _known.get(id(update))
    if found is not None and found[0]() is update and found[1] is param:
        return found[2]
    return None
