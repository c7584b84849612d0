"""Undoes what a program does at once while it is traced, such as making slots, if its call fails."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Thread(threading.local):
    undo: list[Callable[[], None]] | None = None


_thread = _Thread()


def undoing(done: Callable[[], Any], run: Callable[[], T]) -> T:
    """Returns `run()`. If it fails before `done()` changes, undoes what `undo_with` noted, last first."""
    before, outer = done(), _thread.undo
    undo: list[Callable[[], None]] = []
    try:
        _thread.undo = undo
        return run()
    except BaseException:
        if done() == before:
            for restore in reversed(undo):
                restore()
        raise
    finally:
        _thread.undo = outer


def undo_with(make: Callable[[], Callable[[], None]]) -> None:
    """Notes how to undo what comes next: `make()` returns the function. Does nothing outside of `undoing`."""
    if _thread.undo is not None:
        _thread.undo.append(make())
