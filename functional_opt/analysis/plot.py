"""plot: draws schedules, the learning rates of a chain, and metrics."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.checks import checked
from ..core.leaves import Tree
from ..core.ranges import PositiveInt
from ..core.transformation import GradientTransformation
from ..transforms.combining.nesting import walk
from ..transforms.combining.select import set_to_zero
from ..transforms.scaling.learning_rate import scale, scale_by_schedule
from .routes import Route, describe
from .sparkline import end_of, values_at

POINTS = 500
"""The number of steps at which a schedule is drawn, if it has more."""


@checked
def plot(
    x: Any,
    steps: PositiveInt | None = None,
    params: Tree = None,
    *,
    ax: Any = None,
    label: str | None = None,
    log: bool = False,
) -> Any:
    """Draws a schedule, the learning rates of a transformation over the steps, or metrics of a run.

    Args:
        x: a schedule or another function of the count; a transformation, whose learning rates are drawn; or metrics:
            a dict of arrays with one value a step, such as `metrics` returns of states that a `jax.lax.scan` stacked.
            Arrays of metrics may have more axes before that of the steps, as after `jax.vmap`: a line for each run.
        steps: the number of steps to draw. By default, schedules are drawn to where they end and metrics as they are.
        params: with a transformation, draws one line for each group of leaves: the product of all rates and factors
            on their way. Without params there is a line for each rate.
        ax: matplotlib's Axes to draw into. By default one in a new figure; for metrics, one for each kind.
        label: the name of the line, of a schedule only.
        log: whether the vertical axis is logarithmic.

    Returns the Axes; an array of them for metrics without `ax`. Raises ImportError without matplotlib, TypeError for
    anything else than a function, a transformation or a dict, and ValueError for a transformation without a rate.

    >>> import jax.numpy as jnp, matplotlib
    >>> matplotlib.use("agg")
    >>> from functional_opt import adamw, cosine_decay_schedule, groups
    >>> tx = groups(adamw(cosine_decay_schedule(1e-3, 100)), {"embed/*": {"learning_rate_factor": 0.1}})
    >>> ax = plot(tx, params={"embed": {"w": jnp.ones((9, 4))}, "head": jnp.ones(4)})
    >>> {line.get_label(): float(line.get_ydata()[0].round(6)) for line in ax.get_lines()}
    {'embed/*': 0.0001, 'the rest': 0.001}
    """
    if isinstance(x, Mapping):
        return _metrics(x, steps, ax, log)
    if isinstance(x, GradientTransformation):
        lines = _rates(x) if params is None else _rates_by_group(x, params)
        if not lines:
            raise ValueError(f"plot: {type(x).__name__} has no learning rate to draw")
    elif callable(x) and not isinstance(x, type):
        lines = {label or "": [x]}
    else:
        raise TypeError(f"x must be a schedule, a transformation or a dict of metrics, got {x!r}")
    if steps is None:
        steps = max([end_of(f) for factors in lines.values() for f in factors if callable(f)], default=1)
    counts = np.unique(np.linspace(0, steps, min(steps, POINTS) + 1).round().astype(int))
    ax = _axes(1)[0] if ax is None else ax
    for name, factors in lines.items():
        values = [values_at(f, counts) if callable(f) else np.full(len(counts), float(f)) for f in factors]
        ax.plot(counts, np.prod(values, axis=0), label=name)
    ax.set_xlabel("step")
    if isinstance(x, GradientTransformation):
        ax.set_ylabel("learning rate")
    return _finished(ax, log)


def _axes(n: int) -> np.ndarray:
    try:
        import matplotlib.pyplot as plt
    except ImportError as e:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from e
    _, axes = plt.subplots(n, 1, figsize=(6.4, 1.2 + 2.4 * n), sharex=True, squeeze=False, layout="constrained")
    return axes[:, 0]


def _finished(ax: Any, log: bool) -> Any:
    if log:
        ax.set_yscale("log")
    if any(not line.get_label().startswith("_") for line in ax.get_lines()):
        ax.legend()
    ax.grid(alpha=0.3)
    return ax


def _rate(link: Any) -> Any:
    """Returns the learning rate or factor of a link; None if it has none."""
    if isinstance(link, scale):
        return np.abs(link.step_size)
    if isinstance(link, scale_by_schedule):
        return link.step_size_fn
    if isinstance(link, set_to_zero):
        return 0.0
    return getattr(link, "learning_rate", None)


def _rates(tx: GradientTransformation) -> dict[str, list]:
    """Returns the learning rates of all links, with the labels on the way to each as its name."""
    found: list[tuple[str, Any]] = []
    for _, labels, link, _ in walk(tx):
        rate = getattr(link, "learning_rate", getattr(link, "step_size_fn", None))
        inner = {repr(getattr(other, "learning_rate", None)) for _, _, other, _ in list(walk(link))[1:]}
        if rate is not None and repr(rate) not in inner:  # a wrapper and its optimizer have one rate
            found.append(("/".join(map(str, labels)), rate))
    times = Counter(name for name, _ in found)
    return {name if times[name] == 1 else f"{name} {i}".strip(): [rate] for i, (name, rate) in enumerate(found)}


def _rates_by_group(tx: GradientTransformation, params: Tree) -> dict[str, list]:
    """Returns the rates and factors of each group of leaves; groups with the same ones are one."""
    groups: dict[str, tuple[list, list[Route]]] = {}
    for route in describe(tx, params).routes:
        rates = [rate for link in route.links if (rate := _rate(link)) is not None]
        groups.setdefault(repr(rates), (rates, []))[1].append(route)
    groups = {key: group for key, group in groups.items() if group[0]}
    return {_name(routes, len(groups)): rates for rates, routes in groups.values()}


def _name(routes: list[Route], groups: int) -> str:
    labels = dict.fromkeys(", ".join(route.labels) for route in routes)
    if groups == 1:
        return ""
    return " or ".join(name for name in labels if name) or ", ".join(route.path for route in routes[:3])


def _metrics(x: Mapping[str, Any], steps: int | None, ax: Any, log: bool) -> Any:
    """Draws metrics, those of one kind such as norms into one Axes."""
    arrays = {name: np.asarray(value, np.float64) for name, value in x.items()}
    counts = arrays.pop("step", None) if len(arrays) > 1 else None
    for name, value in arrays.items():
        if value.ndim == 0:
            raise ValueError(f"x[{name!r}] is one number; plot needs one a step, as jax.lax.scan stacks them")
    kinds: dict[str, list[str]] = {}
    for name in arrays:
        kinds.setdefault("norm" if name.endswith("_norm") else name.split("/")[0], []).append(name)
    axes = np.array([ax] * len(kinds)) if ax is not None else _axes(len(kinds))
    for here, (kind, names) in zip(axes, kinds.items(), strict=True):
        for name in names:
            for i, line in enumerate(arrays[name].reshape(-1, arrays[name].shape[-1])):
                at = np.arange(len(line)) if counts is None else counts.reshape(-1, counts.shape[-1])[0]
                shown = name if len(names) > 1 or ax is not None else ""
                here.plot(at[:steps], line[:steps], label=shown if i == 0 and shown else "_")
        here.set_ylabel(kind)
        _finished(here, log)
    axes[-1].set_xlabel("step")
    return axes if ax is None else ax
