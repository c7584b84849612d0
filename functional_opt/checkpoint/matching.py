"""Finds, for each array of a new state, the arrays of an old one with the same meaning: rule, slot and path."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from .entries import Entry
from .meanings import CONVERSIONS, COUNTS, STEPS, Conversion


class Source(NamedTuple):
    """Where a new array comes from: `i`, the place of an old entry, or None with the reason in `why`.

    `conversion` is None if the old array is taken as it is. `merged`: the places of others that it stands for, too.
    """

    i: int | None
    why: str
    conversion: Conversion | None = None
    merged: tuple[int, ...] = ()


def node_of(entry: Entry) -> str:
    """Returns the place of the state that has the entry's field."""
    parts = entry.slot.split("/")
    at = len(parts) - 1 - parts[::-1].index(entry.field) if entry.field in parts else len(parts) - 1
    return "/".join(parts[:at])


def sources_of(old: list[Entry], new: list[Entry]) -> list[Source]:
    """Returns the source of each new entry. Arrays of a param come first; what a state keeps once follows them."""
    return _Matching(old, new).sources()


class _Matching:
    def __init__(self, old: list[Entry], new: list[Entry]):
        self.old, self.new = old, new
        self.places = {side: self._by_meaning(xs) for side, xs in (("old", old), ("new", new))}
        self.paths = {entry.path for entry in old if entry.path is not None}
        self.donors: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)  # of each new state: old ones, rules

    @staticmethod
    def _by_meaning(entries: list[Entry]) -> dict[tuple, list[int]]:
        found = defaultdict(list)
        for i, entry in enumerate(entries):
            found[_meaning(entry)].append(i)
        return found

    def sources(self) -> list[Source]:
        found = [self._of_param(i) if entry.path is not None else None for i, entry in enumerate(self.new)]
        return [x if x is not None else self._kept_once(i) for i, x in enumerate(found)]

    def _of_param(self, i: int) -> Source:
        entry = self.new[i]
        same = self._paired(i, self.places["old"].get(_meaning(entry), []))
        if isinstance(same, str):
            return Source(None, same)
        if same is not None:
            self.donors[node_of(entry)][node_of(self.old[same]), entry.rule] = None
            return Source(same, "")
        for rule, conversion in self._conversions(entry):
            there = self.places["old"].get((rule, conversion.field, conversion.field, entry.path, entry.part), [])
            if len(there) == 1:
                self.donors[node_of(entry)][node_of(self.old[there[0]]), rule] = None
                return Source(there[0], conversion.why, conversion)
        shared = "" if entry.kind in ("params", "exact") else "; it starts with the others' count of steps"
        return Source(None, "new" if entry.path in self.paths else f"the old state has no such param{shared}")

    def _conversions(self, entry: Entry) -> list[tuple[str, Conversion]]:
        tables = ((old, table) for (old, new), table in CONVERSIONS.items() if new == entry.rule)
        return [(rule, table[entry.field]) for rule, table in tables if entry.field in table]

    def _paired(self, i: int, there: list[int]) -> int | str | None:
        """Returns the old entry that a new one continues; None if there is none, or why it is not clear."""
        entry, here = self.new[i], self.places["new"][_meaning(self.new[i])]
        if not there:
            return None
        if len(there) == len(here):
            return there[here.index(i)]
        at_place = [j for j in there if self.old[j].slot == entry.slot]
        if at_place:
            return at_place[0]
        slots = ", ".join(self.old[j].slot for j in there)
        return f"which of {len(here)} slots continues {slots} is not clear"

    def _kept_once(self, i: int) -> Source:
        entry = self.new[i]
        donors = self.donors.get(node_of(entry), {})
        there = self.places["old"].get(_meaning(entry), [])
        if donors:
            there = [j for j in there if (node_of(self.old[j]), entry.rule) in donors]
        conversion = None
        for rule, other in self._conversions(entry) if donors and not there else ():
            found = self.places["old"].get((rule, other.field, other.field, None, entry.part), [])
            if found := [j for j in found if (node_of(self.old[j]), rule) in donors]:
                there, conversion = found, other
        if there and (len(there) == 1 or self._alike(there)):
            return Source(there[0], "", conversion, tuple(there))
        if there and entry.kind == "counter":
            largest = max(there, key=lambda j: int(np.max(self.old[j].value)))
            counts = ", ".join(str(int(np.max(self.old[j].value))) for j in there)
            return Source(largest, "", Conversion(entry.field, f"the largest of the counts {counts}"), tuple(there))
        if there:
            paired = self._paired(i, there)
            return Source(paired, "") if isinstance(paired, int) else Source(None, paired or "new")
        steps = [
            j for j, x in enumerate(self.old) if x.path is None and x.field in COUNTS and x.kind in ("counter", "")
        ]
        if (entry.rule, entry.field) in STEPS and steps:
            if self._alike(steps):
                why = f"the steps done, from {self.old[steps[0]].slot}"
                return Source(steps[0], "", Conversion(entry.field, why))
            return Source(None, "the counts of the old state differ")
        return Source(None, "new")

    def _alike(self, places: list[int]) -> bool:
        first, *rest = (np.asarray(self.old[j].value) for j in places)
        return all(x.shape == first.shape and np.array_equal(x, first) for x in rest)


def _meaning(entry: Entry) -> tuple:
    """Returns what an entry means, wherever it stands; the end of the slot tells one tree of several from another."""
    node = node_of(entry)
    end = entry.slot[len(node) :].strip("/")
    return entry.rule, entry.field, end, entry.path, entry.part
