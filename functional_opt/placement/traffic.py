"""Counts what a compiled program sends between devices."""

import math
import re

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
_OPERATION = re.compile(rf"= (.+?) ({KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, int]:
    """Returns the bytes that a device gets from each kind of collective operation, from the text of a program.

    Args:
        text: of the compiled program, `compiled.as_text()`. An operation in a loop counts once.

    >>> collectives("%g = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), dimensions={0}")
    {'all-gather': 128}
    """
    sizes: dict[str, int] = {}
    for shapes, kind in _OPERATION.findall(text):
        sizes[kind] = sizes.get(kind, 0) + sum(_bytes(*array) for array in _ARRAY.findall(shapes))
    return sizes


def _bytes(dtype: str, shape: str) -> int:
    size = SIZES.get(dtype) or int(re.sub(r"\D", "", dtype[1:].split("e")[0]) or 8) / 8
    return math.ceil(size * math.prod(int(n) for n in shape.split(",") if n))
