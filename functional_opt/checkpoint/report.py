"""Report: what a migration did with every slot, as a sequence that prints as a table."""

from typing import Literal, NamedTuple

Kind = Literal["kept", "converted", "fresh", "dropped"]


class Move(NamedTuple):
    """What became of one array. `slot` is its place in the new state, or in the old one if it is dropped."""

    kind: Kind
    path: str | None
    slot: str
    why: str


class Report(tuple[Move, ...]):
    """The moves of a migration: first those of the new state in its order, then what is dropped.

    >>> kept = Move("kept", "w", "0/mu", ""), Move("kept", "b", "0/mu", "")
    >>> print(Report([*kept, Move("fresh", None, "1/count", "new")]))
    kept   0/mu     w and 1 more
    fresh  1/count  -             new
    """

    def of(self, kind: Kind) -> list[Move]:
        """Returns the moves of a kind."""
        return [move for move in self if move.kind == kind]

    def __str__(self):
        rows: dict[tuple, list[str]] = {}
        for kind, path, slot, why in self:
            rows.setdefault((kind, slot, why), []).append("-" if path is None else path)
        cells = [
            (kind, slot, paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more", why)
            for (kind, slot, why), paths in rows.items()
        ]
        widths = [max((len(cell[i]) for cell in cells), default=0) for i in range(3)]
        lines = ("  ".join([*(x.ljust(n) for x, n in zip(cell, widths, strict=False)), cell[3]]) for cell in cells)
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self):
        return f"Report({list(self)!r})"
