"""MultiOptimizer: different optimizers for different variables."""

import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from ...config.words import short
from ..engine.several import SeveralEngine, divided
from ..variables.foreign import unwrap
from ..variables.variable import Variable
from .configs import as_arguments, class_of, within
from .optimizer import Optimizer
from .overrides import DIFFERENTIATES, overrides
from .serialization import deserialize, serialize
from .wrapper import Wrapper, refuse_loss_scale, required_entry


class OptimizerMap(MutableMapping):
    """Maps patterns of variable paths to optimizers, with a default for all other paths.

    Args:
        default_optimizer: for variables that no pattern matches.
        optimizer_map: optimizers by path, or by regular expression, which must match the whole path.

    Raises TypeError for a value that is not an optimizer, ValueError for a pattern that is already in the map, or on
    looking up a path that several patterns match.

    >>> from functional_opt.keras.optimizers import SGD, Adam
    >>> optimizers = OptimizerMap(SGD(), {"encoder/.*": Adam()})
    >>> type(optimizers["encoder/kernel"]).__name__, type(optimizers["head/kernel"]).__name__
    ('Adam', 'SGD')
    """

    def __init__(self, default_optimizer: Optimizer, optimizer_map: dict[str, Optimizer] | None = None):
        self.default_optimizer = _optimizer("default_optimizer", default_optimizer)
        self._by_pattern: dict[str, Optimizer] = {}
        if not isinstance(optimizer_map, dict | None):
            raise TypeError(f"optimizer_map must be a dictionary. Received: {optimizer_map!r}")
        for pattern, optimizer in (optimizer_map or {}).items():
            self[pattern] = optimizer

    def __call__(self, variable: Any) -> Optimizer:
        return self[variable.path]

    def __getitem__(self, path: str) -> Optimizer:
        if path in self._by_pattern:
            return self._by_pattern[path]
        matching = [p for p in self._by_pattern if re.fullmatch(p, path)]
        if len(matching) > 1:
            raise ValueError(f"Multiple optimizers assigned to variable {path}: {matching} match")
        return self._by_pattern[matching[0]] if matching else self.default_optimizer

    def __setitem__(self, pattern: str, optimizer: Optimizer) -> None:
        if pattern in self._by_pattern:
            raise ValueError(f"{pattern!r} already exists in the OptimizerMap; delete it first")
        self._by_pattern[pattern] = _optimizer(f"the optimizer of {pattern!r}", optimizer)

    def __delitem__(self, pattern: str) -> None:
        del self._by_pattern[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_pattern)

    def __len__(self) -> int:
        return len(self._by_pattern)

    def optimizers(self) -> list[Optimizer]:
        """Returns each optimizer once, in the order of the patterns. The default one is last if no pattern has it."""
        found = [*self._by_pattern.values(), self.default_optimizer]
        return list({id(o): o for o in found}.values())

    def get_config(self) -> dict[str, Any]:
        return {
            "default_optimizer": serialize(self.default_optimizer),
            "optimizer_map": {pattern: serialize(o) for pattern, o in self._by_pattern.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, type] | None = None) -> "OptimizerMap":
        config = as_arguments(cls, config, "default_optimizer", "optimizer_map")
        if not isinstance(config["optimizer_map"], dict):
            raise TypeError(
                f"optimizer_map must be a dict from patterns to configs, got {short(config['optimizer_map'])}"
            )
        by_pattern = {}
        for pattern, inner in config["optimizer_map"].items():
            with within(f"optimizer_map[{short(pattern)}]"):
                by_pattern[pattern] = deserialize(inner, custom_objects)
        with within("default_optimizer"):
            return cls(deserialize(config["default_optimizer"], custom_objects), by_pattern)


class MultiOptimizer(Wrapper):
    """Updates different variables with different optimizers, all in one step.

    An optimizer takes no step if none of its variables has a gradient.

    Args:
        optimizer_map: an `OptimizerMap`, or a function that takes a variable and returns its optimizer. It is called
            once for each variable.
        loss_scale_factor: as in `Optimizer`, for all optimizers.
        name, axis_name: as in `Optimizer`.

    It has no `learning_rate`: each of `optimizers` has one. Raises TypeError for a value that is not an optimizer.

    >>> from functional_opt import keras
    >>> kernel, bias = keras.Variable(1.0, name="kernel"), keras.Variable(1.0, name="bias")
    >>> opt = MultiOptimizer(lambda v: keras.optimizers.SGD(0.25 if v is bias else 0.5))
    >>> _ = opt.minimize(lambda: kernel + bias, [kernel, bias])
    >>> float(kernel), float(bias)
    (0.5, 0.75)
    """

    def __init__(
        self,
        optimizer_map: OptimizerMap | Callable[[Any], Optimizer],
        loss_scale_factor: float | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        if not callable(optimizer_map):
            raise TypeError(f"optimizer_map must be an OptimizerMap or a function, got {optimizer_map!r}")
        self._optimizer_map = optimizer_map
        self._parts = optimizer_map.optimizers() if isinstance(optimizer_map, OptimizerMap) else []
        self._where: dict[int, tuple[int, Variable]] = {}  # the part of each variable, by id; it keeps the variable
        self._left: dict[str, int] = {}  # the same by path, for the variables of a pickled optimizer
        super().__init__(name, loss_scale_factor=loss_scale_factor, **kwargs)

    def _new_engine(self):
        return SeveralEngine(self._own_count(), self._engines, self._part_of, self._scale)

    def _engines(self) -> list[Any]:
        return [part._engine for part in self._parts]

    def _scale(self) -> float | None:
        return self.loss_scale_factor

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimizers; if `optimizer_map` is a function, those that it has returned so far."""
        return list(self._parts)

    def __getattr__(self, name):
        if name in ("learning_rate", "lr"):
            raise AttributeError(
                "Learning rate cannot be accessed on a MultiOptimizer. Access the learning rate on the individual "
                "sub-optimizers instead: multi_optimizer.optimizers"
            )
        return super().__getattr__(name)

    def _part_of(self, variable: Variable) -> int:
        where = self._where[id(variable)][0] if id(variable) in self._where else self._left.get(variable.path)
        if where is None:
            optimizer = _optimizer(f"the optimizer of {variable.path}", self._optimizer_map(unwrap(variable)))
            known = [id(part) for part in self._parts]
            if id(optimizer) not in known:
                self._parts.append(optimizer)
                self._undecayed.add_to(optimizer)
                known.append(id(optimizer))
            where = known.index(id(optimizer))
            self._where[id(variable)] = where, variable
        return where

    def __deepcopy__(self, memo):
        twin = super().__deepcopy__(memo)
        twin._left = self._by_path()
        return twin

    def __getstate__(self):
        return super().__getstate__() | {"_left": self._by_path()}

    def _without_ids(self):
        return super()._without_ids() | {"_where": {}}

    def _by_path(self) -> dict[str, int]:
        return self._left | {v.path: self._where[id(v)][0] for v in self._engine.known() if id(v) in self._where}

    def _take_step(self, grads, variables):
        if not self._runs_code:
            return super()._take_step(grads, variables)
        if self.loss_scale_factor is not None:
            grads = [None if g is None else divided(g, self.loss_scale_factor) for g in grads]
        for part, own, gs in self._each(variables, grads):
            if any(g is not None for g in gs):
                part.apply_gradients(list(zip(gs, own, strict=True)))
        self._iterations.assign_add(1)
        return None

    # Configs

    def get_config(self):
        if not isinstance(self._optimizer_map, OptimizerMap):
            raise NotImplementedError("a MultiOptimizer has a config only if it was made from an OptimizerMap")
        return {
            "optimizer_map": serialize(self._optimizer_map),
            "loss_scale_factor": self.loss_scale_factor,
            "name": self._name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        inner, rest = required_entry(cls, "optimizer_map", config)
        with within("optimizer_map"):
            _, _, config = class_of(inner, {}, "an OptimizerMap")
            inner = OptimizerMap.from_config(config, custom_objects)
        return cls(inner, **rest)


def _optimizer(argument: str, x: Any) -> Optimizer:
    if not isinstance(x, Optimizer):
        raise TypeError(f"{argument} must be an Optimizer, got {x!r}")
    refuse_loss_scale(argument, x)
    if unused := overrides(type(x), *DIFFERENTIATES, "_transform_loss"):
        raise TypeError(
            f"{argument}, a {type(x).__name__}, overrides {unused[0]}, which a MultiOptimizer cannot call: it "
            "differentiates one loss for all. Override apply_gradients instead, or change the loss"
        )
    return x
