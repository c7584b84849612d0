"""Prints the flags with which XLA compiles fastest, as far as the installed jaxlib knows them.

The tests compile thousands of small programs and run each for a moment. An unknown flag ends the process, so they
are tried in another one: all together, and one by one if that fails. tests/native goes without them: it is about the
code that XLA makes when it optimizes.
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


def are_known(*flags: str) -> bool:
    """Returns whether a process starts JAX's CPU backend with the flags."""
    command, env = [sys.executable, "-c", "import jax; jax.devices('cpu')"], {"XLA_FLAGS": " ".join(flags)}
    return not subprocess.run(command, env=os.environ | env, capture_output=True).returncode


if __name__ == "__main__":
    print(*(FLAGS if are_known(*FLAGS) else filter(are_known, FLAGS)))
