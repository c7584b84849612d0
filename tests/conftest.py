"""Four CPU devices, set before JAX is imported; compiled programs that are let go; the profiles of hypothesis."""

import itertools
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("local", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_tests = itertools.count(1)


def pytest_runtest_teardown():
    """A process may map some 65,000 pieces of memory, and every compiled program takes a few: XLA aborts without."""
    if next(_tests) % 1000 == 0:
        jax.clear_caches()
