"""Reads the docstrings of the library into blocks: its text, arguments, examples, papers and differences."""

import inspect
import re
from typing import Any, NamedTuple

HEADS = {"Args:": "args", "Attributes:": "args"}
PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}|^[A-ZÉ][\w'é&,. -]*?\(?\b(?:19|20)\d\d\b(?! steps)")
ARGUMENT = re.compile(r"^    (\*{0,2}\w+(?:, ?\*{0,2}\w+)*): ?(.*)$")


class Argument(NamedTuple):
    """An entry below "Args:". `names`: the arguments it describes. `text`: lines, with their list markers."""

    names: tuple[str, ...]
    text: str


class Docstring(NamedTuple):
    """The parts of a docstring.

    `summary`: the first line. `blocks`: what comes before the arguments and is none of the others, each with its
    kind: "text", "list" or "code". `args`, `raises`, `examples` (doctests), `papers`, `differs`: the rest.
    """

    summary: str
    blocks: list[tuple[str, str]]
    args: list[Argument]
    raises: list[str]
    examples: list[str]
    papers: list[str]
    differs: list[str]


def read(x: Any) -> Docstring:
    """Returns the parts of an object's docstring.

    >>> import functional_opt as fo
    >>> parts = read(fo.trace)
    >>> parts.summary[:9], [a.names for a in parts.args], len(parts.examples)
    ('Momentum,', [('decay',), ('nesterov',), ('accumulator_dtype',)], 1)
    """
    return parse(inspect.getdoc(x) or "")


def parse(source: str) -> Docstring:
    """Returns the parts of a docstring given as text."""
    found = Docstring("", [], [], [], [], [], [])
    chunks = [chunk for chunk in re.split(r"\n\s*\n", source.strip("\n")) if chunk.strip()]
    inside = False  # the block of arguments, which may have empty lines
    for number, chunk in enumerate(chunks):
        head, _, rest = chunk.partition("\n")
        if head.strip() in HEADS:
            inside = True
            found.args.extend(_arguments(rest))
        elif inside and chunk.startswith("    ") and found.args:
            more = _arguments(chunk)
            if more and ARGUMENT.match(chunk.split("\n")[0]):
                found.args.extend(more)
            else:
                last = found.args[-1]
                found.args[-1] = last._replace(text=f"{last.text}\n\n{inspect.cleandoc(chunk)}")
        else:
            inside = False
            _sort(chunk, number, found)
    return found._replace(summary=found.blocks.pop(0)[1] if found.blocks else "")


def _sort(chunk: str, number: int, found: Docstring) -> None:
    """Adds a chunk to the part that it belongs to."""
    one = " ".join(chunk.split())
    if chunk.lstrip().startswith(">>>"):
        found.examples.append(inspect.cleandoc(chunk))
    elif number == 0:
        found.blocks.append(("text", one))
    elif one.startswith("Raises "):
        found.raises.append(one)
    elif one.startswith(("Differs from", "Differs in")):
        found.differs.extend(re.split(r"(?<=[.]) (?=Differs )", one))
    elif chunk.lstrip().startswith("- "):
        found.blocks.append(("list", inspect.cleandoc(chunk)))
    elif chunk.startswith("    "):
        found.blocks.append(("code", inspect.cleandoc(chunk)))
    elif PAPER.search(one) and len(one) < 400 and not one.startswith(("See", "This", "By")):
        found.papers.append(one)
    else:
        found.blocks.append(("text", one))


def _arguments(text: str) -> list[Argument]:
    """Returns the entries of the block; a line that is indented further continues the one before."""
    found: list[tuple[tuple[str, ...], list[str]]] = []
    for line in text.split("\n"):
        if match := ARGUMENT.match(line):
            names = tuple(name.strip().lstrip("*") for name in match[1].split(","))
            found.append((names, [match[2]]))
        elif found:
            found[-1][1].append(line[8:] if line.startswith(" " * 8) else line.strip())
    return [Argument(names, "\n".join(lines).strip()) for names, lines in found]
