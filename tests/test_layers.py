"""The layers: what may import what, and that importing the library brings in nothing it does not depend on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import functional_opt

ROOT = Path(functional_opt.__file__).parent
LAYERS = {  # the first part of a module's name below the package, "" the package itself; arrows point down only
    "ranges": 0,
    "value": 0,
    "leaves": 1,
    "boxes": 2,
    "native": 1,
    "numerics": 2,
    "microbatching": 2,
    "average": 2,
    "base": 2,
    "trees": 2,
    "paths": 2,
    "slots": 2,
    "state": 2,
    "state_check": 1,
    "schedules": 2,
    "train_step": 3,
    "transforms": 3,
    "optimizers": 4,
    "tree": 5,
    "tree_utils": 5,
    "linear_algebra": 5,
    "config": 5,
    "review": 5,
    "explain": 5,
    "describe": 5,
    "contrib": 5,
    "experimental": 5,
    "": 6,
    "keras": 7,
    "interop": 8,
}
BY_NAME = {("schedules", "transforms")}  # one asks the other for Optax's names only when they are asked for
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
                own = [*above, *(node.module.split(".") if node.module else [alias.name])]
                yield ".".join(["functional_opt", *own]), node in tree.body


def layer(module):
    """The layer of a name below the package; what `from . import x` finds in the package itself is its own."""
    first = module.split(".")[0]
    return LAYERS[first if first in LAYERS else ""]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name(path) or "functional_opt")
def test_imports_point_down(path):
    own = name(path)
    assert own.split(".")[0] in LAYERS, f"give {own} a place among the layers"
    for module, top_level in imports(path):
        package, _, below = module.partition(".")
        if package == "functional_opt":
            lazily = (own, below) in BY_NAME and not top_level
            assert layer(below) <= layer(own) or lazily, f"{own} imports {module}, which stands above it"
        elif package not in sys.stdlib_module_names and package not in DEPENDENCIES:
            assert own.startswith("interop") and not top_level, f"{own} imports {module}"


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


def test_importing_the_core_does_not_load_what_is_above():
    ours = {module for module in loaded_by("import functional_opt") if module.startswith("functional_opt.")}
    assert {module for module in ours if layer(module.partition(".")[2]) > LAYERS[""]} == set()
