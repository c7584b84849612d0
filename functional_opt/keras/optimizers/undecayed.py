"""Undecayed: the variables that `weight_decay` leaves alone."""

import re
from collections.abc import Sequence
from typing import Any

from ..variables.variable import Variable


class Undecayed:
    """Variables and patterns of paths, as `exclude_from_weight_decay` was given them."""

    def __init__(self):
        self._given: list[tuple[dict[int, Variable], list[str]]] = []

    def add(self, variables: Sequence[Variable], patterns: Sequence[str]) -> None:
        self._given.append(({id(v): v for v in variables}, list(patterns)))

    def __contains__(self, v: Variable) -> bool:
        return any(
            id(v) in ids or any(re.search(pattern, v.path) for pattern in patterns) for ids, patterns in self._given
        )

    def add_to(self, optimizer: Any) -> None:
        """Excludes the same from the weight decay of another optimizer."""
        for variables, patterns in self._given:
            optimizer.exclude_from_weight_decay(list(variables.values()), patterns)

    def by_path(self) -> "Undecayed":
        """Returns the same with paths in the place of variables, for copies, which have other variables."""
        copy = Undecayed()
        for variables, patterns in self._given:
            copy.add([], [*patterns, *(f"^{re.escape(v.path)}$" for v in variables.values())])
        return copy
