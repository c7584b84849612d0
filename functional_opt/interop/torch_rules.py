"""The rules of torch's optimizers: which chain gives the same numbers, and which slots are which."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.transformation import GradientTransformation
from ..optimizers.adadelta import scale_by_adadelta
from ..optimizers.adagrad import scale_by_rss
from ..optimizers.adam import scale_by_adam
from ..optimizers.adamax import scale_by_adamax
from ..optimizers.amsgrad import scale_by_amsgrad
from ..optimizers.nadam import scale_by_nadam
from ..optimizers.radam import scale_by_radam
from ..optimizers.rmsprop import scale_by_rms, scale_by_stddev
from ..optimizers.rprop import scale_by_rprop
from ..schedules import averaging_decay, inverse_time_decay
from ..transforms.combining.chain import chain
from ..transforms.matrices.orthogonalize import orthogonalize, scale_by_shape
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ..transforms.scaling.moments import trace
from ..transforms.wrapping.evaluate import params_ema

Group = dict[str, Any]
"""A param group of torch: its hyperparameters, with numbers as Python's. See `LAYOUT` for Muon's."""
Slots = dict[str, Any]
"""What torch keeps for a parameter."""
Links = Sequence[GradientTransformation]

LAYOUT = "weight_dimension_numbers"
"""A key that torch's groups do not have: the dimension numbers of the leaves, for the rules of matrices."""


def _numbers(group: Group) -> Group:
    """Returns the numbers in which groups may differ, by their names here."""
    names = {"learning_rate": "lr", "weight_decay": "weight_decay", "eps": "eps"}
    return {name: group.get(theirs, 0) for name, theirs in names.items()}


class TorchRule(NamedTuple):
    """How an optimizer of torch is written here.

    `links(group)`: the links between the weight decay and the learning rate. `slots`: torch's names of what a state
    keeps, by the field here. `options`: those that the functions here read. `decoupled`: whether weight decay comes
    after the links. `numbers(group)`: the arguments of links in which groups may differ. `last(rate, group)`: the
    links from the learning rate on. `read(slots, group)`: the slots of a parameter of torch as they are here;
    `derived(group, step)`: those that follow from the number of steps.
    """

    links: Callable[[Group], Links]
    slots: dict[str, str]
    options: str
    decoupled: Callable[[Group], bool] = lambda group: False
    numbers: Callable[[Group], Group] = _numbers
    last: Callable[[Any, Group], Links] = lambda rate, group: [scale_by_learning_rate(rate)]
    read: Callable[[Slots, Group], Slots] = lambda slots, group: slots
    derived: Callable[[Group, float], Slots] = lambda group, step: {}


def chain_of(name: str, group: Group, decays: bool = True) -> GradientTransformation:
    """Returns the chain with the numbers of torch's optimizer of that name and its param group.

    Args:
        name, group: the optimizer and the group.
        decays: whether it has a link for weight decay.

    Raises ValueError, with the reason, for an optimizer or an option without one.

    >>> chain_of("AdamW", {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01})
    chain(scale_by_adam(b2=0.99), add_decayed_weights(weight_decay=0.01), scale_by_learning_rate(0.1))
    """
    rule = rule_of(name)
    first: list[Any] = [scale(-1.0)] if group.get("maximize") else []
    numbers = rule.numbers(group)
    decay = [add_decayed_weights(numbers["weight_decay"])] if decays else []
    links = [*rule.links(group), *decay] if rule.decoupled(group) else [*decay, *rule.links(group)]
    return chain(*first, *links, *rule.last(numbers["learning_rate"], group))


def rule_of(name: str) -> TorchRule:
    """Returns the rule of an optimizer by its name. Raises ValueError, with the reason, if it has none."""
    if name not in RULES:
        reason = REASONS.get(name, f"those that have one are {', '.join(RULES)}")
        raise ValueError(f"torch's {name} has no exact counterpart here that is known: {reason}")
    return RULES[name]


def _sgd(group: Group) -> Links:
    dampening = group.get("dampening", 0)
    weigh = [scale(1 - dampening)] if dampening else []
    return [*weigh, trace(group.get("momentum", 0), bool(group.get("nesterov")))]


def _adam(group: Group) -> Links:
    (b1, b2), eps = group["betas"], group["eps"]
    if group.get("amsgrad"):
        return [scale_by_amsgrad(b1, b2, eps, max_before_correction=True)]
    return [scale_by_adam(b1, b2, eps)]


def _is_decoupled(group: Group) -> bool:
    return bool(group.get("decoupled_weight_decay"))


def _rmsprop(group: Group) -> Links:
    rule = scale_by_stddev if group.get("centered") else scale_by_rms
    return [rule(group["alpha"], group["eps"], eps_in_sqrt=False), trace(group.get("momentum", 0))]


def _adagrad_numbers(group: Group) -> Group:
    numbers, decay = _numbers(group), group.get("lr_decay")
    return numbers | {"learning_rate": inverse_time_decay(group["lr"], 1, decay)} if decay else numbers


def _adagrad(group: Group) -> Links:
    return [scale_by_rss(group.get("initial_accumulator_value", 0), group["eps"], eps_in_sqrt=False)]


def _nadam(group: Group) -> Links:
    b1, b2 = group["betas"]
    return [scale_by_nadam(b1, b2, group["eps"], group["momentum_decay"])]


def _radam(group: Group) -> Links:
    b1, b2 = group["betas"]
    return [scale_by_radam(b1, b2, group["eps"], eps_hat=True)]


def _adamax(group: Group) -> Links:
    b1, b2 = group["betas"]
    return [scale_by_adamax(b1, b2, group["eps"])]


def _rprop_numbers(group: Group) -> Group:
    """torch brings the first step sizes into their bounds at the first step."""
    low, high = group["step_sizes"]
    return _numbers(group) | {"learning_rate": min(max(group["lr"], low), high)}


def _rprop(group: Group) -> Links:
    return [scale_by_rprop(_rprop_numbers(group)["learning_rate"], *group["etas"], *group["step_sizes"])]


def _rprop_slots(slots: Slots, group: Group) -> Slots:
    """torch keeps the last g, and 0 after a change of sign; here it is the last step. Both read its sign only."""
    return slots | {"prev": np.sign(slots["prev"]) * slots["step_size"]} if "prev" in slots else slots


def _asgd_numbers(group: Group) -> Group:
    rate = inverse_time_decay(group["lr"], 1, group["lambd"] * group["lr"], exponent=group["alpha"])
    decay = group["weight_decay"] + group["lambd"]
    return {"learning_rate": rate, "weight_decay": decay, "eps": 0}


def _asgd_last(rate: Any, group: Group) -> Links:
    if group["t0"] < 0 or group["t0"] % 1:
        raise ValueError(f"torch's option t0={group['t0']!r} has no counterpart here: it must be a whole number ≥ 0")
    mean = params_ema(averaging_decay(int(group["t0"]) + 1), debias=False)
    return [scale_by_learning_rate(rate), mean]


def _asgd_derived(group: Group, step: float) -> Slots:
    eta = group["lr"] / (1 + group["lambd"] * group["lr"] * step) ** group["alpha"]
    return {"eta": eta, "mu": 1 / max(1, step - group["t0"])}


def _asgd_slots(slots: Slots, group: Group) -> Slots:
    for name, x in _asgd_derived(group, float(slots.get("step", 0))).items():
        if name in slots and not np.isclose(slots[name], x, rtol=1e-5):
            raise ValueError(
                f"torch's ASGD has {name}={float(slots[name]):.6g}, but its options give {x:.6g} at this step: an "
                "option changed after the last step. Take a step with torch first"
            )
    return slots


def _muon(group: Group) -> Links:
    beta, style = group["momentum"], group["adjust_lr_fn"]
    if style not in (None, "original", "match_rms_adamw"):
        raise ValueError(f"torch's option adjust_lr_fn={style!r} has no exact counterpart here that is known")
    return [
        scale(1 - beta),
        trace(beta, bool(group["nesterov"])),
        orthogonalize(tuple(group["ns_coefficients"]), group["ns_steps"], group["eps"], eps_is_floor=True),
        scale_by_shape(0.2) if style == "match_rms_adamw" else scale_by_shape(None, group.get(LAYOUT)),
    ]


ADAM = {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}
DECAYED = "lr weight_decay maximize "
RULES: dict[str, TorchRule] = {
    "SGD": TorchRule(_sgd, {"trace": "momentum_buffer"}, DECAYED + "momentum dampening nesterov"),
    "Adam": TorchRule(_adam, ADAM, DECAYED + "betas eps amsgrad decoupled_weight_decay", _is_decoupled),
    "AdamW": TorchRule(_adam, ADAM, DECAYED + "betas eps amsgrad decoupled_weight_decay", lambda group: True),
    "NAdam": TorchRule(
        _nadam,
        ADAM | {"momentum_product": "mu_product"},
        DECAYED + "betas eps momentum_decay decoupled_weight_decay",
        _is_decoupled,
    ),
    "RAdam": TorchRule(_radam, ADAM, DECAYED + "betas eps decoupled_weight_decay", _is_decoupled),
    "Adamax": TorchRule(_adamax, {"count": "step", "mu": "exp_avg", "nu": "exp_inf"}, DECAYED + "betas eps"),
    "Adagrad": TorchRule(
        _adagrad,
        {"count": "step", "sum_of_squares": "sum"},
        DECAYED + "lr_decay initial_accumulator_value eps",
        numbers=_adagrad_numbers,
    ),
    "Adadelta": TorchRule(
        lambda group: [scale_by_adadelta(group["rho"], group["eps"])],
        {"e_g": "square_avg", "e_x": "acc_delta"},
        DECAYED + "rho eps",
    ),
    "RMSprop": TorchRule(
        _rmsprop,
        {"nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"},
        DECAYED + "alpha eps momentum centered",
    ),
    "Rprop": TorchRule(
        _rprop,
        {"step_sizes": "step_size", "prev_updates": "prev"},
        "lr maximize etas step_sizes",
        numbers=_rprop_numbers,
        last=lambda rate, group: [scale(-1.0)],
        read=_rprop_slots,
    ),
    "ASGD": TorchRule(
        lambda group: [],
        {"count": "step", "ema": "ax"},
        DECAYED + "lambd alpha t0",
        numbers=_asgd_numbers,
        last=_asgd_last,
        read=_asgd_slots,
        derived=_asgd_derived,
    ),
    "Muon": TorchRule(
        _muon,
        {"trace": "momentum_buffer"},
        "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn",
        lambda group: True,
    ),
}
REASONS = {
    "LBFGS": (
        "one step there is up to max_iter iterations with stops of their own, of which the first is scaled by the "
        "1-norm of the gradient, and a line search follows other rules. Start lbfgs at torch's params; it gathers "
        "curvature again in its first memory_size steps"
    ),
    "SparseAdam": "it moves only the rows that have gradients",
    "Adafactor": "it bounds its second moments from below by eps, which scale_by_factored_rms adds to them",
}
"""Why some optimizers of torch have no rule."""
