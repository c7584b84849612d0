"""Prints the flags with which XLA compiles fastest, as far as the installed jaxlib knows them.

The tests compile thousands of small programs and run each for a moment. An unknown flag ends the process, so each
is tried in one of its own. tests/native goes without them: it is about the code that XLA makes when it optimizes.
"""

import os
import subprocess
import sys

FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)


def is_known(flag: str) -> bool:
    """Returns whether a process starts JAX's CPU backend with the flag."""
    command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    return not subprocess.run(command, env=os.environ | {"XLA_FLAGS": flag}, capture_output=True).returncode


if __name__ == "__main__":
    print(*filter(is_known, FLAGS))
