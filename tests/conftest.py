"""Sets four CPU devices and a cache of programs before JAX is imported; marks and groups tests; frees programs."""

import collections
import functools
import gc
import hashlib
import itertools
import os
import platform
import sys
import threading
from pathlib import Path


def processor() -> str:
    """A name for processors with the same instructions, which are those that XLA compiles for."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
# what one test, worker, process or run has compiled, others load; `make clean` removes it
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs" / processor()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("local", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def share_a_context():
    """Lowers all programs of this thread, which runs the tests, in one MLIR context.

    JAX makes a context for each program and keeps it as long as the program. Each takes a megabyte and slows down
    the lowering and compilation of all later programs: tenfold after some thousands. Threads that a test starts go
    without, as does a JAX without this function.
    """
    mlir = sys.modules.get("jax._src.interpreters.mlir")
    if make := getattr(mlir, "make_ir_context", None):
        shared, this = functools.cache(make), threading.current_thread()
        mlir.make_ir_context = lambda: (shared if threading.current_thread() is this else make)()


share_a_context()

CONTRACTS = "tests/conformance/test_contracts.py"
VERSIONS = (  # the selection for other Pythons and JAXs: these tests (not the C++ by itself),
    "tests/native/",
    "tests/placement/test_owners.py",
    "tests/transforms/test_shard.py::test_the_numbers_of_the_whole",
    "tests/test_examples.py::test_the_main_job",
    "tests/test_examples.py::test_a_failed_run",
)
EVERY_FIFTH = (  # of these, which has all classes and dtypes and every kind of chain,
    "tests/keras/test_goldens",
    "tests/native/test_native.py::test_same_numbers",
    "tests/native/test_native.py::test_codes",
)
A_DOZEN = {  # and the contracts of these
    *("sgd", "adam", "adamw", "lion", "rmsprop", "adagrad", "adafactor", "muon", "soap", "lbfgs"),
    *("schedule_free_adamw", "quantize_state"),
}


def pytest_ignore_collect(collection_path, config):
    """Leaves out files without a test of the selection, if it is asked for: they import peers that are not there."""
    path = collection_path.relative_to(config.rootpath).as_posix()
    if config.option.markexpr == "versions" and collection_path.name.startswith("test_"):
        starts = (start.partition("::")[0] for start in (CONTRACTS, *VERSIONS, *EVERY_FIFTH))
        return not path.startswith(tuple(starts)) or None
    return None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    many = [item for item in items if item.nodeid.startswith(EVERY_FIFTH)]
    chosen = {item.nodeid for item in many[::5]}
    chosen |= {item.nodeid for item in items if item.nodeid.startswith(VERSIONS) and item not in many}
    sizes = collections.Counter(item.path for item in items)
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        # one worker compiles what tests share; those of small files fill the gaps at the end
        if case and item.nodeid.startswith("tests/conformance/"):
            item.add_marker(pytest.mark.xdist_group(repr(case)))
        elif sizes[item.path] >= 10:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        contract = item.nodeid.startswith(CONTRACTS) and repr(case) in A_DOZEN
        if contract or (item.nodeid in chosen and "test_random_programs" not in item.nodeid):
            item.add_marker(pytest.mark.versions)


def pytest_collection_finish():
    """Collects garbage less often, and never looks again at what was imported and collected until here."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


_tests = itertools.count(1)
MAPS = Path("/proc/self/maps")


def pytest_runtest_teardown():
    """A process may map some 65,000 pieces of memory; every compiled program takes a few, and XLA aborts without."""
    if next(_tests) % 250 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
