"""sparkline: a schedule as a line of text, for `explain` and `describe`."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.schedule import Schedule

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 32
LONGEST = 2**20
"""The last step at which a schedule is looked at, to find where it ends."""
ENDLESS = 10_000
"""The number of steps shown of a schedule that has no end."""


def values_at(schedule: Any, counts: np.ndarray) -> np.ndarray:
    """Returns the values of a schedule, or of a function of one count, at many counts."""
    each = schedule if isinstance(schedule, Schedule) else jax.vmap(schedule)
    with contextlib.suppress(Exception):  # a plain function inside a schedule may branch on the shape of the count
        found = np.asarray(each(jnp.asarray(counts, jnp.int32)), np.float64)
        if found.shape == counts.shape:
            return found
    return np.array([float(schedule(jnp.asarray(n, jnp.int32))) for n in counts])


def end_of(schedule: Any) -> int:
    """Returns the step from which on a schedule is constant; `ENDLESS` if it changes up to step 2²⁰.

    >>> from functional_opt import cosine_decay_schedule, inverse_sqrt_schedule
    >>> end_of(cosine_decay_schedule(1e-3, 1234)), end_of(inverse_sqrt_schedule(1e-3, 100))
    (1234, 10000)
    """
    counts = np.unique(np.geomspace(1, LONGEST, 400).astype(int))
    values = values_at(schedule, counts)
    differ = np.flatnonzero(~np.isclose(values, values[-1], rtol=1e-5, atol=0.0))
    if differ.size == 0:
        return 1
    if differ[-1] >= len(counts) - 2:
        return ENDLESS
    low, high = counts[differ[-1]], counts[differ[-1] + 1]
    while high - low > 1:
        middle = (low + high) // 2
        still = np.isclose(values_at(schedule, np.array([middle]))[0], values[-1], rtol=1e-5, atol=0.0)
        low, high = (low, middle) if still else (middle, high)
    return int(high)


def sparkline(schedule: Any, steps: int | None = None, width: int = WIDTH) -> str:
    """Returns the course of a schedule as bars, then its first, largest and last value and the number of steps.

    Args:
        schedule: a schedule, or a function of the count.
        steps: the number of steps to show; by default up to where the schedule ends.
        width: the number of bars.

    >>> from functional_opt import warmup_cosine_decay_schedule
    >>> sparkline(warmup_cosine_decay_schedule(0.0, 1e-3, 20, 100), width=10)
    '▁▅██▇▅▄▂▁▁ 0 → 0.001 → 0 in 100 steps'
    """
    steps = end_of(schedule) if steps is None else steps
    counts = np.unique(np.linspace(0, steps, max(width, 2)).round().astype(int))
    values = values_at(schedule, counts)
    low, high = min(values.min(), 0.0), values.max()
    levels = np.zeros(len(values)) if high <= low else (values - low) / (high - low) * (len(BARS) - 1)
    bars = "".join(BARS[round(level)] if np.isfinite(level) else "?" for level in levels)
    peak = values_at(schedule, np.unique(np.linspace(0, steps, 1000).round().astype(int))).max()
    told = [values[0], peak, values[-1]] if peak > max(values[0], values[-1]) else [values[0], values[-1]]
    return f"{bars} {' → '.join(f'{x:.3g}' for x in told)} in {steps:,} steps"


def schedules_of(link: Any) -> Iterator[tuple[str, Schedule]]:
    """Yields the schedules among the arguments of a transformation, by name."""
    for field in dataclasses.fields(link) if dataclasses.is_dataclass(link) else ():
        if isinstance(x := getattr(link, field.name), Schedule):
            yield field.name, x


def lines_of(link: Any, steps: int | None = None) -> list[str]:
    """Returns a line for each schedule among the arguments of a transformation; none for one that cannot be read."""
    found = []
    for name, schedule in schedules_of(link):
        with contextlib.suppress(Exception):  # a function that needs more than a count, or a traced number
            found.append(f"{name} {sparkline(schedule, steps)}")
    return found
