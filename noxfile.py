"""Runs a selection of the tests on the newest Python and JAX, and on the lowest ones that pyproject.toml allows.

`make test-versions` calls it. Each session installs the package as a user would, into an environment of its own,
and tests what was installed rather than the checkout. A session whose Python is missing is skipped, and says so.
"""

import os
import re
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
EXAMPLES = PROJECT["optional-dependencies"]["examples"]
PEERS = ["chex", "optax", "hypothesis", "pytest", "pytest-xdist"]  # which the selection imports
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))


def pythons() -> dict[tuple[int, int], Path]:
    """Returns the Pythons on PATH and of pyenv by version, those before others first."""
    folders = [*(PYENV / "versions").glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    found = {}
    for path in (path for folder in folders if folder != PYENV / "shims" for path in folder.glob("python3.*")):
        if version := re.fullmatch(r"python(3)\.(\d+)", path.name):
            found.setdefault(tuple(map(int, version.groups())), path)
    return found


FOUND = pythons()
LOWEST = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))


@nox.session(python=str(FOUND[max(FOUND)]))
def newest(session: nox.Session) -> None:
    """The newest Python here with the newest JAX that pip finds for it."""
    select(session, ["jax", "jaxlib"])


@nox.session(python=str(FOUND.get(LOWEST, "{}.{}".format(*LOWEST))))
def lowest(session: nox.Session) -> None:
    """The lowest Python with the lowest versions of all that the package depends on."""
    select(session, [requirement.replace(">=", "==") for requirement in PROJECT["dependencies"]])


def select(session: nox.Session, requirements: list[str]) -> None:
    session.env["PYTHONDONTWRITEBYTECODE"] = ""  # only what is imported is compiled, and only once
    session.install("--no-compile", *requirements, *EXAMPLES, *PEERS, silent=True)
    # kernels for any processor take a third of the time; `make test` tries those for the instructions of this one
    session.install("--no-compile", ".", env={"CPPFLAGS": "-DFUNCTIONAL_OPT_PORTABLE"}, silent=True)
    session.run("python", "-c", "import sys, jax; print('Python', sys.version.split()[0], 'jax', jax.__version__)")
    # -P and importlib keep the checkout off the path
    pytest = ["python", "-P", "-m", "pytest", "--import-mode=importlib", "-n", "auto", "-m", "versions"]
    flags = session.run("python", "-m", "tests.xla_flags", silent=True).strip()
    session.run(*pytest, "--dist=loadgroup", "--ignore=tests/native", "tests", env={"XLA_FLAGS": flags})
    session.run(*pytest, "tests/native")
