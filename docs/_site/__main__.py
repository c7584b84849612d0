"""Builds the site: copies the pages, writes those of the public names, draws the gallery and runs Sphinx.

`python -m docs._site [FOLDER]` builds into out/docs, or another folder, with the sources in out/docs_source.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .stage import DOCS, ROOT, stage

DEVICES = 4
"""The number of devices on which the pages say what an update sends."""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def main(out: Path) -> int:
    start = time.perf_counter()
    source = ROOT / "out" / "docs_source"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    stage(source)
    made = [
        part("api", source, XLA_FLAGS=f"--xla_force_host_platform_device_count={DEVICES} {QUICK}"),
        part("gallery", source, XLA_FLAGS=QUICK),
    ]
    if any([process.wait() for process in made]):
        return 1
    quiet(source.parent / "ipython")
    flags = ["-b", "html", "-c", str(DOCS), "-W", "--keep-going", "-n", "-q", "-j", "2"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags, "-d", str(source.parent / "doctrees"), source, out],
        # the pages compile much and run little
        env={**os.environ, "XLA_FLAGS": QUICK, "IPYTHONDIR": str(source.parent / "ipython")},
    )
    print(f"built {out} in {time.perf_counter() - start:.0f} s" if not built.returncode else "the build failed")
    return built.returncode


def quiet(folder: Path) -> None:
    """Makes a folder of IPython's settings with which kernels that run a page say nothing but errors."""
    (folder / "profile_default").mkdir(parents=True, exist_ok=True)
    (folder / "profile_default" / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 40\n")


def part(name: str, source: Path, **env: str) -> subprocess.Popen:
    """Starts the part of the build of that name, in a process of its own."""
    code = f"from pathlib import Path; from docs._site.{name} import write; write(Path({str(source)!r}))"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | env)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "out" / "docs"))
