"""Wrapper: an optimizer that delegates to others, each with its own variables."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..engine.engine import zero_iterations
from ..variables.foreign import all_ours
from ..variables.variable import Variable
from .configs import as_arguments
from .optimizer import Optimizer
from .overrides import STAGES, overrides
from .weights import WrapperViews


class Wrapper(Optimizer):
    """Base of optimizers that wrap others. The inner optimizers keep the slots; each one gets its variables.

    A subclass returns from `_part_of` the index in `_parts` that a variable belongs to. If an inner optimizer runs
    code of the user's, the step calls its `apply_gradients`; else all steps are one.
    """

    default_dialect = "keras3"
    _parts: list[Optimizer]

    def __init__(self, name: str | None, **kwargs: Any):
        super().__init__(name, **kwargs)
        self._views = WrapperViews(self)
        self._rate = Variable(0.0, trainable=False, name=f"{self._name}/learning_rate")  # Keras has it, unused

    def _part_of(self, variable: Variable) -> int:
        raise NotImplementedError

    def _own_count(self) -> Variable:
        """Returns a new count of the wrapper's own steps, which Keras keeps besides those of the inner optimizers."""
        return zero_iterations(f"{self._name}/iteration")

    def transform(self, hyper):
        raise TypeError(f"{type(self).__name__} has no transformation of its own; use those of its inner optimizers")

    def _each(self, variables: Sequence[Variable], *more: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Yields each part with its variables and the items that belong to them."""
        where = [self._part_of(v) for v in variables]
        for i, part in enumerate(self._parts):
            yield part, *([x for x, at in zip(xs, where, strict=True) if at == i] for xs in (variables, *more))

    @property
    def _runs_code(self) -> bool:
        methods = "apply_gradients", "apply", *STAGES
        return any(part._runs_code or overrides(type(part), *methods) for part in self._parts)

    def _build_once(self, variables):
        for part, own in self._each(variables):
            part._build_once(own)

    def _gradients(self, pairs, variables, aggregate=True):
        for v in variables:
            self._part_of(v)  # which may add a part
        grads = super()._gradients(pairs, variables, aggregate)
        if self._runs_code:
            return grads
        aggregate = aggregate and self.axis_name is None and self.gradient_aggregator is None  # else it has been done
        found: dict[int, list] = {}
        for part, own, gs in self._each(variables, grads):
            if any(g is not None for g in gs):
                gs = part._gradients(list(zip(gs, own, strict=True)), own, aggregate)
            for g, v in zip(gs, own, strict=True):
                found.setdefault(id(v), []).append(g)
        return [found[id(v)].pop(0) for v in variables]

    def _counters(self):
        return [self._count, self._rate]

    @property
    def _count(self) -> Variable:
        return self._iterations

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        super().exclude_from_weight_decay(var_list, var_names)  # for parts that come later
        for part in self._parts:
            part.exclude_from_weight_decay(var_list, var_names)

    def averaged_params(self, var_list=None):
        given = self._engine.known() if var_list is None else all_ours(var_list)
        return [self._parts[self._part_of(v)].averaged_params([v])[0] for v in given]


def refuse_loss_scale(argument: str, optimizer: Optimizer) -> None:
    """Raises ValueError if an inner optimizer has a loss scale: it would divide the gradients again."""
    if optimizer.loss_scale_factor is not None or isinstance(optimizer.__dict__.get("dynamic_scale"), Variable):
        raise ValueError(f"{argument} has a loss scale of its own; set one on the outermost optimizer only")


def required_entry(cls: type, key: str, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns an entry of a config, and the other entries. Raises what `as_arguments` does."""
    config = as_arguments(cls, config, key)
    return config[key], {k: x for k, x in config.items() if k != key}
