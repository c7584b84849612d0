"""Loads the compiled library if it exists, fits the installed jaxlib, and computes correct results."""

import ctypes
import os
import re
import sysconfig
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import jax

from .switch import reason, trying, turn_off, why_not

STEP, SUMS_OF_SQUARES = "functional_opt_step", "functional_opt_sums_of_squares"
NEWTON_SCHULZ = "functional_opt_newton_schulz"
HERE = Path(__file__).parent
NOT_BUILT = "not_built.txt"  # setup.py writes its reason to this file
REBUILD = "rebuild with `pip install --no-build-isolation --force-reinstall --no-deps .`"
INSTRUCTIONS = {0: "the compiler's instructions", 2: "AVX2", 512: "AVX-512"}

_lock = threading.Lock()
_checks: list[Callable[[], None]] = []
_done: list[str] = []  # at most one: how the kernels were loaded


def to_check(check: Callable[[], None]) -> Callable[[], None]:
    """Registers a check that runs once, before the kernels are first used, and raises if they are wrong."""
    _checks.append(check)
    return check


def available() -> bool:
    """See `native.available`."""
    with _lock:
        if not _done and reason() is None:
            _done.append(_load())
            if reason() is None:
                _run_checks()
    return reason() is None


def enabled() -> bool:
    """See `native.enabled`."""
    return why_not() is None and available()


def status() -> str:
    """See `native.status`."""
    why = why_not()
    if why is None and not available():
        why = reason()
    return f"kernels on ({_done[0]})" if why is None else f"kernels off: {why}"


def installed_ffi() -> tuple[int, int]:
    """Returns the version of XLA's foreign function interface in the installed jaxlib, from its header."""
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    major, minor = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    if major is None or minor is None:
        raise ValueError("c_api.h does not define its version")
    return int(major[1]), int(minor[1])


def checksum() -> int | None:
    """Returns the checksum of the C++ sources, computed as in setup.py; None if they are not installed."""
    sources = sorted((HERE / "cpp").glob("*.*"))
    return zlib.crc32(b"".join(p.read_bytes() for p in sources)) & 0x7FFFFFFF if sources else None


def _load() -> str:
    """Registers the first library that fits and returns a description of it. Turns the kernels off if none fits."""
    own = f"kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    paths = sorted(HERE.glob("kernels*.so"), key=lambda path: path.name != own)
    if not paths:
        turn_off(_not_built(), warn=False)
        return ""
    try:
        installed, sources, why = installed_ffi(), checksum(), []
    except Exception as e:
        turn_off(f"the FFI version of the installed jaxlib cannot be determined: {e}")
        return ""
    for path in paths:
        try:
            library = ctypes.CDLL(str(path))
            *built, sources_then = (ctypes.c_int32 * 3).in_dll(library, "functional_opt_built_for")
            if sources not in (None, sources_then):
                raise ValueError("built from other C++ sources than these")
            if tuple(built) != installed:
                raise ValueError(
                    "built for XLA's FFI {}.{}, and the installed jaxlib has {}.{}".format(*built, *installed)
                )
            handlers = {name: getattr(library, name) for name in (STEP, SUMS_OF_SQUARES, NEWTON_SCHULZ)}
            instructions = INSTRUCTIONS[library.functional_opt_instructions()]
        except Exception as e:
            why.append(f"{path.name} was {e}" if isinstance(e, ValueError) and e.args else f"{path.name}: {e}")
            continue
        try:
            for name, handler in handlers.items():
                jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
        except Exception as e:
            turn_off(f"JAX {jax.__version__} cannot register them: {e}")
        return f"{instructions}, FFI {built[0]}.{built[1]}, {_threads()} threads"
    turn_off(f"{why[0]}; {REBUILD}")
    return ""


def _not_built() -> str:
    note = HERE / NOT_BUILT
    why = f" ({note.read_text().strip()})" if note.exists() else ""
    return f"the extension was not built{why}; {REBUILD}, which needs a C++ compiler"


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_checks() -> None:
    """Runs the checks on a separate thread, because the caller may be tracing inside any context of JAX."""
    raised: list[BaseException] = []

    def run():
        try:
            with trying():
                for check in _checks:
                    check()
        except BaseException as e:
            raised.append(e)

    try:
        thread = threading.Thread(target=run, name="functional_opt: check of the kernels")
        thread.start()
        thread.join()
    except RuntimeError as e:  # no more threads
        raised.append(e)
    if raised:
        turn_off(f"the check of a small step, which runs once at the first use, failed: {raised[0]}")
