"""torch's parameters and the leaves of params: which is which, and how their axes are ordered."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..checkpoint.entries import entries_of_params
from ..core.leaves import Tree
from ..core.paths import PathRules
from ..transforms.matrices.dimension_numbers import MuonDimensionNumbers

FLAX = ("kernel", "scale", "embedding")
"""The names that Flax has for what torch calls weight."""


class Places:
    """The leaf of each parameter of torch, in torch's order.

    Args:
        names: torch's names, or paths of the params.
        params: the params.
        paths: paths by torch's names, for those that no convention finds.
    """

    def __init__(self, names: Sequence[str], params: Tree, paths: Mapping[str, str] | None):
        entries = entries_of_params(params)
        self.shapes = {entry.path or "": np.shape(entry.value) for entry in entries}
        self.complex = {entry.path or "" for entry in entries if np.iscomplexobj(entry.value)}
        self.names = list(names)
        if unknown := sorted(set(paths or ()) - set(self.names)):
            raise ValueError(f"paths names {unknown[0]!r}, which is not among names")
        self.paths = [self._path(name, paths or {}) for name in self.names]
        for path in self.paths:
            if self.paths.count(path) > 1:
                several = [name for name, p in zip(self.names, self.paths, strict=True) if p == path]
                raise ValueError(f"names {several} are all of the leaf {path!r}; name each parameter of torch once")

    def _path(self, name: str, paths: Mapping[str, str]) -> str:
        if name in paths:
            if paths[name] not in self.shapes:
                raise ValueError(f"paths[{name!r}] is {paths[name]!r}, but the params have no such leaf")
            return paths[name]
        slashed = name.replace(".", "/")
        stem, _, last = slashed.rpartition("/")
        others = [f"{stem}/{flax}".lstrip("/") for flax in FLAX] if last == "weight" else []
        found = [path for path in (name, slashed, *others) if path in self.shapes]
        if not found:
            near = ", ".join(list(self.shapes)[:6])
            raise ValueError(
                f"the params have no leaf for torch's {name!r}; pass paths={{{name!r}: ...}}, one of {near}"
            )
        return found[0]

    def axes(self, i: int, ndim: int) -> tuple[int, ...]:
        """Returns the order in which the axes of torch's parameter become those of the leaf: of a kernel reversed."""
        kernel = self.paths[i].rpartition("/")[2] == "kernel" and self.names[i].rpartition(".")[2] == "weight"
        return (*range(2, ndim), 1, 0) if kernel and ndim > 1 else tuple(range(ndim))

    def to_leaf(self, i: int, x: np.ndarray, what: str) -> np.ndarray:
        """Returns an array of torch in the layout of the leaf. Raises ValueError if it then has another shape."""
        path, y = self.paths[i], np.transpose(x, self.axes(i, x.ndim))
        if y.shape != self.shapes[path]:
            raise ValueError(
                f"{what} of torch's {self.names[i]!r} has shape {x.shape}, which does not give {self.shapes[path]} "
                f"of the leaf {path!r}; a weight becomes a leaf called kernel with its axes reversed, else as it is"
            )
        return y

    def from_leaf(self, i: int, x: np.ndarray) -> np.ndarray:
        """Returns an array of the leaf's shape in the layout of torch."""
        return np.transpose(x, np.argsort(self.axes(i, x.ndim)))

    def dimension_numbers(self) -> PathRules | None:
        """Returns path rules for the matrices that are (outputs, inputs) as in torch; None if there are none."""
        as_torch = [p for i, p in enumerate(self.paths) if len(self.shapes[p]) == 2 and self.axes(i, 2) == (0, 1)]
        return PathRules({f"/{path}": MuonDimensionNumbers(1, 0) for path in as_torch}) if as_torch else None
