"""Names of arrays that people read: `encoder/kernel` for a param, `encoder/kernel#mu` and `#count` for slots."""

from collections import Counter, defaultdict

from .entries import Entry


def names_of(entries: list[Entry]) -> list[str]:
    """Returns a name for each entry, which depends on neither their order nor containers.

    A name has only the slot's field. Where two slots would get the same name, it has the slot's place in the state.

    >>> from functional_opt import adam, chain, ema, trace
    >>> from .entries import entries_of_state
    >>> params = {"w": 0.0}
    >>> names_of(entries_of_state(adam(0.1).init(params), params))
    ['#count', 'w#mu', 'w#nu']
    >>> names_of(entries_of_state(chain(trace(0.9), ema(0.9), trace(0.5)).init(params), params))
    ['w#0/trace', '#count', 'w#ema', 'w#2/trace']
    """
    short = [_name(entry, entry.field) for entry in entries]
    times = Counter(short)
    names = [
        name if times[name] == 1 else _name(entry, entry.slot) for name, entry in zip(short, entries, strict=True)
    ]
    alike = defaultdict(list)
    for i, name in enumerate(names):
        alike[name].append(i)
    for name, places in alike.items():
        for n, i in enumerate(sorted(places, key=lambda i: [x or "" for x in entries[i].key])[1:], 2):
            while (numbered := f"{name}~{n}") in alike:
                n += 1
            names[i] = numbered
    return names


def _name(entry: Entry, slot: str) -> str:
    if not entry.slot:
        return entry.path or ""
    return f"{entry.path or ''}#{slot}{entry.part and '/' + entry.part}"
