"""The layers: what may import what, and that importing the library brings in nothing it does not depend on."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import functional_opt

ROOT = Path(functional_opt.__file__).parent
README = Path(__file__).parents[1] / "README.md"


def picture():
    """README's rooms in their order, each the first part of a module's name; "" for the package's `__init__`."""
    lines = README.read_text().split("```\nfunctional_opt/\n")[1].split("\n```")[0].splitlines()
    rooms = [line.split()[0].removesuffix("/").removesuffix(".py") for line in lines]
    return {"" if room == "__init__" else room: place for place, room in enumerate(rooms)}


LAYERS = picture()
DEPENDENCIES = {"jax", "jaxlib", "numpy"}
MODULES = sorted(ROOT.rglob("*.py"))


def name(path):
    """`transforms.clip` for transforms/clip.py, and "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """`(module, whether at the top level)` for every import, relative ones by their name below the package."""
    tree = ast.parse(path.read_text())
    package = name(path).split(".") if name(path) else []
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, node in tree.body
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            for alias in node.names:
                own = [*above, *(node.module.split(".") if node.module else []), alias.name]
                yield ".".join(["functional_opt", *own]), node in tree.body


def layer(module):
    """The place of a name below the package; `from . import x` finds x in the package itself."""
    first = module.split(".")[0]
    return LAYERS[first if first in LAYERS else ""]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name(path) or "functional_opt")
def test_imports_point_down(path):
    own = name(path)
    assert own.split(".")[0] in LAYERS, f"give {own} a place in README's picture"
    for module, top_level in imports(path):
        package, _, below = module.partition(".")
        if package == "functional_opt":
            assert layer(below) <= layer(own), f"{own} imports {module}, which stands above it"
        elif package not in sys.stdlib_module_names and package not in DEPENDENCIES:
            bridge = own.startswith("interop") or (own, package) == ("analysis.plot", "matplotlib")
            assert bridge and not top_level, f"{own} imports {module}"


def test_every_room_exists():
    assert all((ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file() for room in LAYERS)


def test_no_circle():
    """Of files and of folders, imports inside functions included; prepare() raises CycleError with the circle."""
    packages = {name(path) for path in MODULES if path.name == "__init__.py"}
    known = {name(path) for path in MODULES} - {""}  # the package imports all and, by the layers, none imports it
    folder = {own: own if own in packages else own.rpartition(".")[0] or own for own in known}
    files, folders = {}, {}
    for path in MODULES:
        own = name(path)
        for module, _ in imports(path) if own else ():
            below = module.partition(".")[2] if module.startswith("functional_opt.") else ""
            found = next((m for m in (below, below.rpartition(".")[0]) if m in known), own)
            if found != own:
                files.setdefault(own, set()).add(found)
            if own not in packages and folder[found] != folder[own]:
                folders.setdefault(folder[own], set()).add(folder[found])
    for graph in (files, folders):
        graphlib.TopologicalSorter(graph).prepare()


def loaded_by(statement):
    """The names of the modules of a process that runs the statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )


def third_party(statement):
    packages = {module.split(".")[0] for module in loaded_by(statement)}
    return {p for p in packages if p not in sys.stdlib_module_names and not p.startswith("_")}


def test_importing_brings_in_only_the_dependencies():
    ours = third_party("import functional_opt, functional_opt.keras")
    assert ours - third_party("import jax, numpy") == {"functional_opt"}


def test_importing_loads_nothing_that_jax_has_not_loaded():
    """Parts of JAX that are slow to import, such as jax.scipy, wait until they are used."""
    new = loaded_by("import functional_opt") - loaded_by("import jax, jax.numpy, numpy")
    assert {module for module in new if module.split(".")[0] != "functional_opt"} == set()


def test_importing_the_core_does_not_load_what_is_above():
    ours = {module for module in loaded_by("import functional_opt") if module.startswith("functional_opt.")}
    assert {module for module in ours if layer(module.partition(".")[2]) > LAYERS[""]} == set()
