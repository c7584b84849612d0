"""Runs random programs through the kernels under the compiler's sanitizers; needs neither JAX nor jaxlib.

python -m tests.native.sanitize [--seed 0] [--count 2000] [--quick]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CPP = HERE.parents[2] / "functional_opt" / "native" / "cpp"
SANITIZERS = {"ASan and UBSan": "address,undefined", "TSan": "thread"}


def compiler() -> str | None:
    """Returns the C++ compiler, as setuptools would take it."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def why_not(sanitizers: str, folder: Path) -> str | None:
    """Returns why nothing can be built and run with these sanitizers, None if it can."""
    cxx = compiler()
    if cxx is None:
        return "there is no C++ compiler"
    source = folder / "empty.cc"
    source.write_text("int main() {}\n")
    for command in (
        [cxx, f"-fsanitize={sanitizers}", str(source), "-o", str(folder / "empty")],
        [str(folder / "empty")],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"the runtime of -fsanitize={sanitizers} is missing: {done.stderr.strip()[-200:]}"
    return None


def run(sanitizers: str, folder: Path, seed: int, count: int, quick: bool) -> subprocess.CompletedProcess:
    """Builds the driver and runs it; quickly without the variants for instruction sets, which are the same source."""
    driver = folder / "driver"
    flags = ["-std=c++17", "-g", "-fno-sanitize-recover=all", "-fno-math-errno", "-ffp-contract=fast", "-pthread"]
    flags += ["-O0", "-DFUNCTIONAL_OPT_PORTABLE"] if quick else ["-O2"]
    build = [compiler(), *flags, f"-fsanitize={sanitizers}", f"-I{HERE}", f"-I{CPP}", str(HERE / "driver.cc")]
    subprocess.run([*build, "-o", str(driver)], check=True)
    return subprocess.run([str(driver), str(seed), str(count)], capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="do not build for AVX2 and AVX-512")
    args = parser.parse_args()
    failed = 0
    for name, sanitizers in SANITIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            why = why_not(sanitizers, Path(folder))
            if why is not None:
                print(f"{name}: left out, {why}")
                continue
            done = run(sanitizers, Path(folder), args.seed, args.count, args.quick)
            print(f"{name}: {done.stdout.strip() or done.stderr.strip()[:3000]}", flush=True)
            failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
