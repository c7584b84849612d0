"""Writes a file as a whole or not at all: beside its place, synced to the disk, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be renamed anyway
    fcntl = None


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Gives a file to write, which takes the place of `path` at the end; after an error `path` is as it was.

    The file is `path` with `.partial` at the end until it is complete and on the disk. A process that is killed
    leaves it behind, and the next one overwrites it.

    Raises BlockingIOError if another process is writing the same path.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a")
    ...     with replaced(path) as f:
    ...         _ = f.write(b"all")
    ...     path.read_bytes(), [x.name for x in path.parent.iterdir()]
    (b'all', ['a'])
    """
    path = os.path.realpath(os.fspath(path))  # a link keeps pointing to the file
    partial = f"{path}.partial"
    f = _locked(partial)
    try:
        f.truncate(0)
        yield f
        f.flush()
        os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    finally:
        f.close()
    _sync_folder(os.path.dirname(path))


def _locked(partial: str) -> IO[bytes]:
    """Returns the open file, which no other process writes."""
    while True:
        f = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        if fcntl is None:
            return f
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            f.close()
            raise BlockingIOError(f"another process is writing {partial}; save to another path") from e
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(f.fileno()), os.stat(partial)):
                return f
        f.close()  # another process has just renamed it: that is its complete file now


def _sync_folder(folder: str) -> None:
    """Makes sure that the new name outlives a power failure, where folders can be synced."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
