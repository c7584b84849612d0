"""Which slots of one rule mean the same as those of another, and how to convert them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

ADAM, AMSGRAD, LION, MUON, NORMUON, TRACE = (
    *("ScaleByAdamState", "ScaleByAmsgradState", "ScaleByLionState", "MuonState", "ScaleByNorMuonState"),
    "TraceState",
)
STEPS = {
    ("ScaleByScheduleState", "count"),
    ("WrappedScheduleState", "count"),
    ("MultiStepsState", "gradient_step"),
    (LION, "count"),
    (MUON, "count"),
}
"""Counts of steps that go on with the steps done, even if the old state has none of their rule."""
COUNTS = {"count", "step_count", "gradient_step"}
"""The fields that count the steps done."""


class Conversion(NamedTuple):
    """`field`: of the old rule. `why`: in words. `times`: the new value over the old one, given the decay of the
    `trace` on the old or the new `side`; None if the values are equal."""

    field: str
    why: str
    times: Callable[[Any], Any] | None = None
    side: Literal["old", "new"] = "old"


MEAN = Conversion("mu", "the mean of the gradients goes on, with another decay")
MEAN_OF_SUM = Conversion("trace", "the sum of the gradients times 1 - decay", lambda decay: 1 - decay)
SUM_OF_MEAN = Conversion("mu", "the mean of the gradients divided by 1 - decay", lambda decay: 1 / (1 - decay), "new")
COUNT = Conversion("count", "the steps done")
MOMENTS = {"mu": MEAN, "nu": Conversion("nu", "the mean of the squares goes on"), "count": COUNT}

CONVERSIONS: dict[tuple[str, str], dict[str, Conversion]] = {
    (ADAM, AMSGRAD): MOMENTS,
    (AMSGRAD, ADAM): MOMENTS,
    (ADAM, LION): {"mu": MEAN, "count": COUNT},
    (AMSGRAD, LION): {"mu": MEAN, "count": COUNT},
    (ADAM, MUON): {"mu": MEAN, "count": COUNT},
    (LION, MUON): {"mu": MEAN, "count": COUNT},
    (MUON, LION): {"mu": MEAN, "count": COUNT},
    (NORMUON, MUON): {"mu": MEAN, "count": COUNT},
    (TRACE, LION): {"mu": MEAN_OF_SUM},
    (LION, TRACE): {"trace": SUM_OF_MEAN},
    (TRACE, MUON): {"mu": MEAN_OF_SUM},
    (MUON, TRACE): {"trace": SUM_OF_MEAN},
}
"""By the old and the new rule: the fields of the new one. A pair is here only if what it lacks may start afresh."""

FRESH = {
    "ParamsEmaState": "the average starts from the params",
    "LookaheadState": "the slow params start from the params",
    "ScheduleFreeState": "starts from the params",
    "MasterWeightsState": "starts from the params",
}
"""Why what a rule starts with fits the middle of training."""
