"""Limits how deeply a config is nested: Python's stack bounds what can be read, so the depth is checked first."""

import contextlib
from collections.abc import Iterator
from typing import Any

DEEPEST = 200
"""The most levels of nested dicts and lists. A chain in a chain is two; nobody writes 30 by hand."""


def refuse_depth(name: str, config: Any) -> None:
    """Raises ValueError, naming the place, for a config nested more than `DEEPEST` levels deep, or within itself.

    >>> refuse_depth("config", {"a": [1, 2]})
    >>> nested = []
    >>> for _ in range(10_000):
    ...     nested = [nested]
    >>> refuse_depth("config", {"value": nested})
    Traceback (most recent call last):
    ValueError: config['value'][0][0][0]... is nested deeper than 200 levels, or within itself
    """
    level = {id(config): (config, ())}  # each object once per level: one that contains itself twice would double it
    for _ in range(DEEPEST):
        level = {id(x): (x, (*at, k)[:4]) for node, at in level.values() for k, x in _items(node)}
        if not level:
            return
    _, at = next(iter(level.values()))
    place = "".join(f"[{k!r}]" for k in at)
    raise ValueError(f"{name}{place}... is nested deeper than {DEEPEST} levels, or within itself")


def _items(node: Any) -> list[tuple[Any, Any]]:
    """Returns the dicts and lists in a dict or list, each with its key."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return [(k, x) for k, x in pairs if isinstance(x, dict | list | tuple)]


@contextlib.contextmanager
def within_the_stack(name: str) -> Iterator[None]:
    """Raises ValueError if the caller's own calls leave too little of Python's stack for a config."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for what is left of Python's stack of calls") from None
