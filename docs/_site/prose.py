"""Turns the prose of docstrings into MyST: escapes, links to public names, equations, papers."""

import functools
import inspect
import re

from . import catalog
from .equations import pieces

SPECIAL = re.compile(r"([\\*_|<>$\[\]{}~#`])")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@functools.cache
def argument_names() -> frozenset[str]:
    """Returns the names of all arguments in the library, which equations use as variables."""
    found: set[str] = set()
    for entry in catalog.entries().values():
        if callable(entry.value) and entry.kind in ("transformation", "schedule", "function"):
            found |= inspect.signature(entry.value).parameters.keys()
    return frozenset(found)


def myst(text: str, math: bool = True, here: str = "") -> str:
    """Returns a paragraph as MyST on one line.

    Args:
        text: plain text with names in backticks.
        math: whether to look for equations.
        here: the name whose page this is, which gets no links to itself.

    >>> myst("See `trace`; √(1 − b2ᵗ) and a_b.")
    'See [`trace`](trace.md); $\\\\sqrt{1 - {b_{2}}^{t}}$ and a\\\\_b.'
    """
    parts = re.split(r"(``.+?``|`[^`]+`)", " ".join(text.split()))
    done = []
    for part in parts:
        done.append(_code(part.strip("`"), here) if part.startswith("`") else _plain(part, math))
    return "".join(done)


def _code(name: str, here: str) -> str:
    entry = catalog.find(re.sub(r"\(.*\)$", "", name))
    if entry is None or entry.name == here:
        return f"`{name}`"
    return f"[`{name}`]({entry.link})"


def _plain(text: str, math: bool) -> str:
    if not math:
        return _linked(text)
    return "".join(f"${p.latex}$" if p.latex else _linked(p.text) for p in pieces(text, set(argument_names())))


def _linked(text: str) -> str:
    parts = ARXIV.split(text)
    return "".join(
        f"[arXiv:{part}](https://arxiv.org/abs/{part})" if i % 2 else SPECIAL.sub(r"\\\1", part)
        for i, part in enumerate(parts)
    )


def blocks(text: str, here: str = "") -> str:
    """Returns text that may have a list or indented lines, such as that of an argument, as MyST."""
    done = []
    for chunk in re.split(r"\n\s*\n|\n(?=- )", text):
        if chunk.startswith("- "):
            done.append("- " + myst(chunk[2:], here=here))
        elif chunk.strip():
            done.append(myst(chunk, here=here))
    return re.sub(r"(\n- .*)\n\n(?=- )", r"\1\n", "\n\n".join(done))


def equation(text: str) -> tuple[str, str, str] | None:
    """Splits a line around its first equation: what comes before, LaTeX, and what comes after; None if it has none.

    >>> equation("Momentum: u = 2·t.")
    ('Momentum:', 'u = 2 \\\\cdot t', '.')
    """
    found = pieces(text, set(argument_names()))
    relations = [i for i, piece in enumerate(found) if piece.relation]
    if not relations:
        return None
    first, last = relations[0], relations[0]
    latex = found[first].latex or ""
    while last + 2 < len(found) and found[last + 2].relation and found[last + 1].text.strip() in (",", ";", "; then"):
        last += 2
        latex += rf", \qquad {found[last].latex}"
    before, after = ("".join(p.text for p in found[a:b]) for a, b in ((0, first), (last + 1, len(found))))
    return before.strip(), latex, after.strip()
