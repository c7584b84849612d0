"""Renames paths by rules such as `{"encoder/**": "backbone/**"}`."""

import difflib
import re
from collections.abc import Iterable, Mapping

WILD = re.compile(r"\*\*|\*")


def renamed(paths: Iterable[str], rules: Mapping[str, str]) -> dict[str, str]:
    """Returns the new path of each path; the first rule that matches applies.

    A rule matches the whole path. `**` stands for any number of parts and `*` for any characters within one; in the
    new path, the wildcards stand for the same text, in order.

    Raises ValueError for a rule that matches nothing, for wildcards that do not correspond, and if two paths would
    become the same.

    >>> renamed(["old/a/w", "b"], {"old/**": "new/**"})
    {'old/a/w': 'new/a/w', 'b': 'b'}
    """
    paths = list(paths)
    found, used = {}, set()
    for path in paths:
        found[path] = path
        for pattern, to in rules.items():
            if (hit := _regex(pattern).fullmatch(path)) is not None:
                found[path] = _filled(pattern, to, hit.groups())
                used.add(pattern)
                break
    for pattern in rules:
        if pattern not in used:
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise ValueError(f"the rule {pattern!r} of rename matches no path; the nearest are {', '.join(near)}")
    became: dict[str, str] = {}
    for path, new in found.items():
        if became.setdefault(new, path) != path:
            raise ValueError(f"rename makes {new!r} of both {became[new]!r} and {path!r}")
    return found


def _regex(pattern: str) -> re.Pattern[str]:
    kinds = {"**": "(.*)", "*": "([^/]*)"}
    texts, wilds = WILD.split(pattern), WILD.findall(pattern)
    return re.compile(
        "".join(re.escape(text) + kinds.get(wild, "") for text, wild in zip(texts, [*wilds, ""], strict=True))
    )


def _filled(pattern: str, to: str, groups: tuple[str, ...]) -> str:
    if WILD.findall(pattern) != WILD.findall(to):
        raise ValueError(f"rename: {pattern!r} and {to!r} must have the same wildcards in the same order")
    rest = iter(groups)
    return WILD.sub(lambda _: next(rest), to)
