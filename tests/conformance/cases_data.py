"""Cases of what is made of other transformations by editing them: `groups`, `with_metrics`."""

from typing import Any

import optax

import functional_opt as fo

from .case import both, case


def grouped(rate: float, decay: float) -> Any:
    return fo.groups(fo.adamw(rate, weight_decay=0.5), {"scale": {"weight_decay": decay, "b1": 0.5}, "*/kernel": {}})


def grouped_peer(rate: float, decay: float) -> Any:
    both = {"scale": optax.adamw(rate, b1=0.5, weight_decay=decay), "rest": optax.adamw(rate, weight_decay=0.5)}
    return optax.partition(both, {"dense": "rest", "scale": "scale"})


def slower(norm: float, factor: float) -> Any:
    """A clip by the norm of all gradients but the frozen, a kernel that is slower, a scale that is frozen."""
    tx = fo.chain(fo.clip_by_global_norm(norm), fo.sgd(0.1, momentum=0.9))
    return fo.groups(tx, {"scale": "frozen", "*/kernel": {"learning_rate_factor": factor, "decay": 0.5}})


def watched(o: Any, rate: float, norm: float) -> Any:
    tx = o.chain(o.clip_by_global_norm(norm), o.adam(rate))
    return fo.with_metrics(tx) if o is fo else tx


NUMBERS = {"rate": 0.1, "decay": 0.1}

OPTIMIZERS: list[Any] = []

TRANSFORMATIONS = [
    case("groups", grouped, grouped_peer, None, "rate decay", **NUMBERS),
    case("groups-frozen", slower, None, None, "norm factor", norm=1.0, factor=0.5),
    case("with_metrics", *both(watched), None, "rate norm", rate=0.1, norm=1.0),
]
