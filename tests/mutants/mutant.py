"""Mutant: one mistake, and the tests that notice it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """Replaces `old` by `new` in a file of the library; `tests` must then fail.

    Args:
        file: a path below `functional_opt/`.
        old: a piece of the file, which occurs exactly once in it.
        new: what stands there instead.
        tests: one or several of pytest's node ids, as narrow as possible.
        rebuild: whether the native extension must be built again.
    """

    file: str
    old: str
    new: str
    tests: str | tuple[str, ...]
    rebuild: bool = False

    def __str__(self):
        return f"{self.file}: {_in_one_line(self.old)} → {_in_one_line(self.new) or 'nothing'}"

    @property
    def node_ids(self) -> tuple[str, ...]:
        return (self.tests,) if isinstance(self.tests, str) else self.tests

    @property
    def test_files(self) -> set[str]:
        return {node.split("::")[0] for node in self.node_ids}

    def path(self, root: Path) -> Path:
        """Returns the file, in a folder that holds the package."""
        return root / "functional_opt" / self.file

    def mutated(self, root: Path) -> str:
        """Returns the text of the file with the mistake in it. ValueError if `old` does not occur exactly once."""
        text = self.path(root).read_text()
        if (n := text.count(self.old)) != 1:
            raise ValueError(f"{self}: `old` must occur once in {self.file}, it occurs {n} times; update the mutant")
        if self.old == self.new:
            raise ValueError(f"{self}: `new` must differ from `old`")
        return text.replace(self.old, self.new)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
