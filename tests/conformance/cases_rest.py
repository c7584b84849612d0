"""Cases, as in `cases.py`, of what stands outside of the other modules."""

from typing import Any

from .case import both, case


def accumulated(o: Any, rate: float) -> Any:
    of = o.experimental.aggregating
    return of.process(o.identity(), of.accumulate_avg_updates(3), o.adam(rate))


OPTIMIZERS = []

TRANSFORMATIONS = [
    case("adam-process", *both(accumulated), None, "rate", rate=0.1),
]
