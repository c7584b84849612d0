"""Counts what a compiled program sends between devices."""

import math
import re

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
_OPERATION = re.compile(rf"= (.+?) ({KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)[^\n]*\{\n(.*?)^\}", re.M | re.S)
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_CALLED = re.compile(rf"{_BRANCHES.pattern}|(?:to_apply|calls|body|condition)=%?([\w.\-]+)")


def collectives(text: str, due: bool = True) -> dict[str, int]:
    """Returns the bytes that a device gets from each kind of collective operation, from the text of a program.

    Args:
        text: of the compiled program, `compiled.as_text()`. An operation in a loop counts once.
        due: whether to count the branches of conditionals too, which run only when they are due, such as the roots of
            Shampoo.

    >>> collectives("%g = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), dimensions={0}")
    {'all-gather': 128}
    """
    sizes: dict[str, int] = {}
    for shapes, kind in _OPERATION.findall(text if due else _without_branches(text)):
        sizes[kind] = sizes.get(kind, 0) + sum(_bytes(*array) for array in _ARRAY.findall(shapes))
    return sizes


def _without_branches(text: str) -> str:
    """Returns a program without the computations that run in branches of conditionals only."""
    bodies = dict(_COMPUTATION.findall(text))
    names, found = [x for body in bodies.values() for x in _names(_BRANCHES, body)], set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            names += _names(_CALLED, bodies.get(name, ""))
    return "\n".join(body for name, body in bodies.items() if name not in found)


def _names(pattern: re.Pattern, body: str) -> list[str]:
    listed = (",".join(groups) for groups in pattern.findall(body))
    return [name.strip().lstrip("%") for names in listed for name in names.split(",") if name.strip()]


def _bytes(dtype: str, shape: str) -> int:
    size = SIZES.get(dtype) or int(re.sub(r"\D", "", dtype[1:].split("e")[0]) or 8) / 8
    return math.ceil(size * math.prod(int(n) for n in shape.split(",") if n))
