"""The public names of the library, each with its kind, its page and its place in docs/inventory.md."""

import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import functional_opt as fo
from functional_opt.core.schedule import Schedule
from functional_opt.core.transformation import GradientTransformation

INVENTORY = Path(__file__).parents[1] / "inventory.md"
MODULES = {
    "keras": "tf.keras's stateful interface",
    "keras.optimizers": "Keras's optimizers",
    "keras.optimizers.schedules": "Keras's schedules",
    "keras.random": "Random numbers with a seed that is kept",
    "interop": "Bridges to other libraries",
    "interop.keras": "Optimizers of Keras as transformations",
    "interop.optax": "States of Optax",
    "interop.orbax": "Checkpoints in folders of orbax",
    "interop.safetensors": "Checkpoints in one file",
    "interop.torch": "States of torch",
    "tree": "Functions on trees",
    "tree_utils": "Functions on trees, by other names of Optax",
    "contrib": "Optax's contrib",
    "experimental": "Optax's experimental aggregators",
    "schedules": "Optax's module of schedules",
    "transforms": "Optax's module of transformations",
    "microbatching": "Micro-batches",
    "native": "The CPU kernels",
    "codes": "Formats of few bits",
}
"""The modules that users import, with a title; each has a page for the names that have none of their own."""
INNER = {"analysis", "checkpoint", "config", "core", "optimizers", "placement", "train_step"}
"""Modules of the package that are not public: their names are in the package itself."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A public name.

    `name`: from the package on, such as `keras.Variable`. `kind`: "transformation", "schedule", "state", "class",
    "function", "type" or "value". `page`: the file below `api/`, without its suffix, and `anchor` in it, if the page
    has several names. `section` and `row`: where the inventory lists it.
    """

    name: str
    value: Any
    kind: str
    page: str
    anchor: str = ""
    section: str = ""
    row: str = ""

    @property
    def link(self) -> str:
        """Returns the target of a link from another page in the folder."""
        return f"{self.page}.md#{self.page}.{self.anchor}" if self.anchor else f"{self.page}.md"


def kind_of(x: Any) -> str:
    """Returns the kind of a public object.

    >>> [kind_of(x) for x in (fo.adam, fo.scale_by_adam, fo.cosine_decay_schedule, fo.TraceState, fo.global_norm)]
    ['transformation', 'transformation', 'schedule', 'state', 'function']
    """
    if x is Any:
        return "type"
    if inspect.isclass(x):
        if x is GradientTransformation:
            return "class"
        if issubclass(x, GradientTransformation):
            return "transformation"
        if issubclass(x, Schedule):
            return "class" if x is Schedule else "schedule"
        return "state" if hasattr(x, "_fields") and x.__name__.endswith(("State", "ApplyEvery")) else "class"
    if not callable(x) or typing.get_origin(x) is not None:
        return "type" if hasattr(x, "__args__") else "value"
    returned = _returned(x)
    if inspect.isclass(returned) and issubclass(returned, GradientTransformation):
        return "transformation"
    if inspect.isclass(returned) and issubclass(returned, Schedule):
        return "schedule"
    return "function"


def _returned(fn: Any) -> Any:
    try:
        return typing.get_type_hints(fn).get("return")
    except (NameError, TypeError):  # what only a type checker reads
        return None


def public(module: Any) -> dict[str, Any]:
    """Returns the public names of a module that are no modules, and not of another library."""
    names = {name: x for name, x in vars(module).items() if not name.startswith("_") and not inspect.ismodule(x)}
    own = {n: x for n, x in names.items() if str(getattr(x, "__module__", "functional_opt")).startswith(PACKAGES)}
    reexported = set(re.findall(r"import \w+ as (\w+)", inspect.getsource(module)))
    here = {n for n, x in own.items() if getattr(x, "__module__", "") == module.__name__}
    return {name: x for name, x in names.items() if name in reexported | here}


PACKAGES = ("functional_opt", "typing", "types", "collections")


@functools.cache
def entries() -> dict[str, Entry]:
    """Returns all public names. Raises ValueError for a name, or a module, that has no page.

    >>> entries()["adam"].page, entries()["TraceState"].link, entries()["keras.Variable"].link
    ('adam', 'states.md#states.tracestate', 'keras.Variable.md')
    """
    places, found = inventory(), {}
    for name, x in sorted(public(fo).items(), key=lambda pair: pair[0].lower()):
        kind = kind_of(x)
        section, row = places.get(name, ("", ""))
        if not section:
            raise ValueError(f"functional_opt.{name} has no page: give it a line in docs/inventory.md")
        page, anchor = (f"{kind}s", slug(name)) if kind in ("state", "type") else (name, "")
        found[name] = Entry(name, x, kind, page, anchor, section, row)
    modules = {name for name, x in vars(fo).items() if inspect.ismodule(x) and name[0] != "_"} - INNER
    if missing := modules - set(MODULES):
        raise ValueError(f"functional_opt.{missing.pop()} has no page: give it a title in docs/_site/catalog.py")
    known = {id(entry.value) for entry in found.values() if entry.kind != "type"}
    for path in MODULES:
        module = fo.codes if path == "codes" else importlib.import_module(f"functional_opt.{path}")
        for name, x in public(module).items():
            if id(x) not in known:
                full, kind = f"{path}.{name}", kind_of(x)
                known |= {id(x)} if kind != "type" else set()
                own = kind == "class" and path.startswith("keras") and "schedules" not in path
                found[full] = Entry(full, x, kind, full if own else path, "" if own else slug(name))
    return found


def slug(name: str) -> str:
    """Returns the anchor of a heading that is a name."""
    return name.lower()


@functools.cache
def inventory() -> dict[str, tuple[str, str]]:
    """Returns the section and the row of the inventory for each name in it, the first if it has several.

    >>> inventory()["adamw"]
    ('Optimizers', 'classic')
    """
    found: dict[str, tuple[str, str]] = {}
    section = ""
    for line in INVENTORY.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        cells = [cell.strip() for cell in line.split("|")]
        row = cells[1] if line.startswith("| ") and len(cells) > 2 else ""
        for name in re.findall(r"`(\w+)`", line):
            found.setdefault(name, (section, re.sub("`", "", row)))
    return found


def sections() -> Iterator[tuple[str, dict[str, list[Entry]]]]:
    """Yields the sections of the inventory with the entries of each row that have pages of their own."""
    grouped: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries().values():
        if entry.section and not entry.anchor:
            grouped.setdefault(entry.section, {}).setdefault(entry.row, []).append(entry)
    order = list(dict.fromkeys(section for section, _ in inventory().values()))
    yield from ((section, grouped[section]) for section in order if section in grouped)


@functools.cache
def find(name: str) -> Entry | None:
    """Returns the entry that a docstring means by a name in backticks, such as `trace` or `fo.codes.encode`."""
    short = name.removeprefix("functional_opt.").removeprefix("fo.")
    return entries().get(short)
