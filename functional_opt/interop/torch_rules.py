"""The rules of torch's optimizers: which chain gives the same numbers, and which slots are which."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..core.transformation import GradientTransformation
from ..optimizers.adadelta import scale_by_adadelta
from ..optimizers.adagrad import scale_by_rss
from ..optimizers.adam import scale_by_adam
from ..optimizers.adamax import scale_by_adamax
from ..optimizers.amsgrad import scale_by_amsgrad
from ..optimizers.nadam import scale_by_nadam
from ..optimizers.rmsprop import scale_by_rms, scale_by_stddev
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ..transforms.scaling.moments import trace

Group = dict[str, Any]
"""A param group of torch: its hyperparameters, with numbers as Python's."""


class TorchRule(NamedTuple):
    """`links(group)`: the links between the weight decay and the learning rate. `slots`: torch's names of what a
    state keeps, by the field here. `decoupled`: whether weight decay comes after the links."""

    links: Callable[[Group], Sequence[GradientTransformation]]
    slots: dict[str, str]
    decoupled: Callable[[Group], bool] = lambda group: False


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
    decay = [add_decayed_weights(group.get("weight_decay", 0))] if decays else []
    links = [*rule.links(group), *decay] if rule.decoupled(group) else [*decay, *rule.links(group)]
    return chain(*first, *links, scale_by_learning_rate(group["lr"]))


def rule_of(name: str) -> TorchRule:
    """Returns the rule of an optimizer by its name. Raises ValueError, with the reason, if it has none."""
    if name not in RULES:
        reason = REASONS.get(name, f"those that have one are {', '.join(RULES)}")
        raise ValueError(f"torch's {name} has no exact counterpart here that is known: {reason}")
    return RULES[name]


def _refuse(group: Group, name: str, neutral: Any, reason: str) -> None:
    if group.get(name, neutral) != neutral:
        raise ValueError(f"torch's option {name}={group[name]!r} has no exact counterpart here: {reason}")


def _sgd(group: Group) -> Sequence[GradientTransformation]:
    dampening = group.get("dampening", 0)
    weigh = [scale(1 - dampening)] if dampening else []
    return [*weigh, trace(group.get("momentum", 0), bool(group.get("nesterov")))]


def _adam(group: Group) -> Sequence[GradientTransformation]:
    (b1, b2), eps = group["betas"], group["eps"]
    if group.get("amsgrad"):
        return [scale_by_amsgrad(b1, b2, eps, max_before_correction=True)]
    return [scale_by_adam(b1, b2, eps)]


def _rmsprop(group: Group) -> Sequence[GradientTransformation]:
    rule = scale_by_stddev if group.get("centered") else scale_by_rms
    return [rule(group["alpha"], group["eps"], eps_in_sqrt=False), trace(group.get("momentum", 0))]


def _adagrad(group: Group) -> Sequence[GradientTransformation]:
    _refuse(group, "lr_decay", 0, "the rate falls with the steps; use a schedule and from_torch without lr_decay")
    return [scale_by_rss(group.get("initial_accumulator_value", 0), group["eps"], eps_in_sqrt=False)]


def _nadam(group: Group) -> Sequence[GradientTransformation]:
    b1, b2 = group["betas"]
    return [scale_by_nadam(b1, b2, group["eps"], group["momentum_decay"])]


def _adamax(group: Group) -> Sequence[GradientTransformation]:
    b1, b2 = group["betas"]
    return [scale_by_adamax(b1, b2, group["eps"])]


ADAM = {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}
RULES: dict[str, TorchRule] = {
    "SGD": TorchRule(_sgd, {"trace": "momentum_buffer"}),
    "Adam": TorchRule(_adam, ADAM, lambda group: bool(group.get("decoupled_weight_decay"))),
    "AdamW": TorchRule(_adam, ADAM, lambda group: True),
    "NAdam": TorchRule(
        _nadam, ADAM | {"momentum_product": "mu_product"}, lambda group: bool(group.get("decoupled_weight_decay"))
    ),
    "Adamax": TorchRule(_adamax, {"count": "step", "mu": "exp_avg", "nu": "exp_inf"}),
    "Adagrad": TorchRule(_adagrad, {"sum_of_squares": "sum"}),
    "Adadelta": TorchRule(
        lambda group: [scale_by_adadelta(group["rho"], group["eps"])], {"e_g": "square_avg", "e_x": "acc_delta"}
    ),
    "RMSprop": TorchRule(_rmsprop, {"nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"}),
}
REASONS = {
    "RAdam": "torch adds eps before the correction of the bias, and radam after it",
    "SparseAdam": "it moves only the rows that have gradients",
}
"""Why some optimizers of torch have no rule. Others (Rprop, ASGD, LBFGS, Muon) have not been compared yet."""
