"""Runs random programs through the kernels under the compiler's sanitizers, and on an emulated ARM processor.

Needs neither JAX nor jaxlib. What this machine has no tools for is left out, and the reason printed.

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
ARM = "aarch64-linux-gnu-g++", "qemu-aarch64"  # Debian's packages g++-aarch64-linux-gnu and qemu-user


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


def why_not_on_arm() -> str | None:
    """Returns why nothing can be built for ARM and run here, None if it can."""
    missing = [name for name in (*ARM, compiler() or "g++") if shutil.which(name) is None]
    return f"{' and '.join(missing)} is missing" if missing else None


def run(sanitizers: str, folder: Path, seed: int, count: int, quick: bool) -> subprocess.CompletedProcess:
    """Builds the driver and runs it; quickly without the variants for instruction sets, which are the same source."""
    flags = ["-g", "-fno-sanitize-recover=all", "-ffp-contract=fast", f"-fsanitize={sanitizers}"]
    flags += ["-O0", "-DFUNCTIONAL_OPT_PORTABLE"] if quick else ["-O2"]
    return _run([_built(compiler(), flags, folder / "driver")], seed, count)


def run_on_arm(folder: Path, seed: int, count: int) -> list[subprocess.CompletedProcess]:
    """Runs the driver here and on ARM, with NEON's vectors. Both print a digest of all results.

    A product and a sum stay two operations, because compilers choose other pairs of them for other processors.
    """
    cross, emulator = ARM
    flags = ["-O3", "-ffp-contract=off", "-w", "-DFUNCTIONAL_OPT_PORTABLE"]
    here = _built(compiler(), flags, folder / "here")
    there = _built(cross, [*flags, "-static"], folder / "there")
    return [_run(command, seed, count) for command in ([here], [emulator, there])]


def _built(cxx: str | None, flags: list[str], driver: Path) -> str:
    flags = ["-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-pthread", *flags, f"-I{HERE}", f"-I{CPP}"]
    subprocess.run([str(cxx), *flags, str(HERE / "driver.cc"), "-o", str(driver)], check=True)
    return str(driver)


def _run(command: list[str], seed: int, count: int) -> subprocess.CompletedProcess:
    return subprocess.run([*command, str(seed), str(count)], capture_output=True, text=True)


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
    why = why_not_on_arm()
    if why is not None:
        print(f"ARM: left out, {why}")
        return failed
    with tempfile.TemporaryDirectory() as folder:
        here, there = run_on_arm(Path(folder), args.seed, args.count)
    print(f"here: {here.stdout.strip()}\nARM: {there.stdout.strip() or there.stderr.strip()[:3000]}")
    return failed + (there.returncode != 0 or here.stdout != there.stdout)


if __name__ == "__main__":
    sys.exit(main())
