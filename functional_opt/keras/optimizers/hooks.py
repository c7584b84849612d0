"""Methods that an optimizer of the user's own overrides or calls: OptimizerV2's and Keras 3's protected ones.

Code that assigns to variables runs once, while the step is traced, with tracers in the variables, the slots, the
iteration and the hyperparameters. The values that it assigns become the result, so it is compiled like any step.
"""

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from ...core.transformation import GradientTransformation
from ...transforms.combining.chain import chain
from ..engine.by_variable import BySlot, ByVariable
from ..engine.engine import SingleEngine
from ..engine.imperative import imperative, python_state
from ..engine.replicas import AGGREGATIONS, SYNCHRONIZATIONS, Weight, mode
from ..engine.rows import RowMode
from ..engine.rule import apply_rule
from ..engine.step import resolve_schedules
from ..engine.views import SlotView
from ..variables.foreign import as_variable
from ..variables.indexed_slices import IndexedSlices
from ..variables.initializers import initial
from ..variables.variable import Variable
from .hyper import Hyperparameters
from .overrides import RULES, overrides


class SubclassHooks(Hyperparameters):
    """The protected methods of OptimizerV2 and of Keras 3, with the rule of the class as what they do by default."""

    _HAS_AGGREGATE_GRAD = True
    _use_locking = True  # a step is done completely or not at all

    row_mode: RowMode = "all"
    """The way sparse gradients are applied: see `rows`."""

    _engine: Any
    _name: str
    axis_name: Any
    _own_weights: list[Variable]  # made by `add_weight`
    _extra_weights: list[Variable]  # own weights or other variables that are listed in `weights`
    _making: BySlot | None  # not None while slots are made

    def _start_hooks(self) -> None:
        self._own_weights, self._extra_weights, self._making = [], [], None

    def transform(self, hyper: Any) -> GradientTransformation:
        """Returns the transformation for these hyperparameters: `hyper.learning_rate` is an array or a schedule."""
        raise NotImplementedError(
            f"{type(self).__name__} must override transform(hyper), or _resource_apply_dense, or update_step"
        )

    @property
    def _is_custom(self) -> bool:
        """True if the user's code takes the place of the rule, or wraps it."""
        return bool(overrides(type(self), *RULES))

    @property
    def _runs_traced(self) -> bool:
        """True in the user's code while a step is traced. `_iterations` is the number of updates there."""
        return self._traced_hyper._value is not None

    @property
    def _has_rule(self) -> bool:
        return type(self).transform is not SubclassHooks.transform

    # OptimizerV2

    def _create_hypers(self) -> None:
        """Does nothing: hyperparameters exist from the start."""

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        """Makes the slots of the rule. Override it to call `add_slot` for each variable."""
        if self._making is None:
            self._engine.prepare([as_variable(v) for v in var_list])

    def _create_all_weights(self, var_list: Sequence[Variable]) -> None:
        """Makes hyperparameters and slots."""
        self._create_hypers()
        self._engine.prepare([as_variable(v) for v in var_list])

    def _prepare(self, var_list: Sequence[Variable]) -> dict:
        """Returns values computed once per step: calls `_prepare_local` for each dtype. May be extended."""
        apply_state: dict = {(v.device, v.dtype): {} for v in map(as_variable, var_list)}
        for device, dtype in apply_state:
            self._prepare_local(device, dtype, apply_state)
        return apply_state

    def _prepare_local(self, var_device: str, var_dtype: Any, apply_state: dict) -> None:
        """Puts values computed once per dtype into `apply_state[var_device, var_dtype]`. May be extended.

        The rule of a built-in class takes its learning rate from "lr_t" there.
        """
        if "learning_rate" in self._hyper:
            apply_state[var_device, var_dtype]["lr_t"] = self._decayed_lr(var_dtype)

    def _fallback_apply_state(self, var_device: str, var_dtype: Any) -> dict[str, Any]:
        apply_state = {(var_device, var_dtype): {}}
        self._prepare_local(var_device, var_dtype, apply_state)
        return apply_state[var_device, var_dtype]

    def _decayed_lr(self, var_dtype: Any) -> jax.Array:
        """Returns the learning rate of this step in a dtype, with `decay` and schedules applied."""
        traced = self._traced_hyper._value
        if "learning_rate" not in self._hyper:
            raise AttributeError(
                f"{type(self).__name__} has no learning rate: give it to the base class, as "
                "super().__init__(name, learning_rate=rate), or make it with self._set_hyper('learning_rate', rate)"
            )
        rate = self.current_learning_rate() if traced is None else traced["learning_rate"]
        return jnp.asarray(rate, var_dtype)

    def current_learning_rate(self) -> Any:
        raise NotImplementedError

    def _call_if_callable(self, param: Any) -> Any:
        """Returns what a callable returns, and anything else as it is."""
        return param() if callable(param) else param

    def _valid_dtypes(self) -> set:
        """Returns the dtypes of variables that can be trained."""
        return {jnp.dtype(name) for name in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")}

    def _resource_apply_dense(self, grad: Any, var: Variable, apply_state: dict | None = None) -> None:
        """Applies the rule of the class to one variable. Override it for another rule, which may call this one."""
        self._apply_rule(grad, var, _rate(apply_state, var))

    def _resource_apply_sparse(self, grad: Any, var: Variable, indices: Any, apply_state: dict | None = None) -> None:
        """Applies the rule of the class to rows of a variable, in the class's row mode."""
        self._apply_rule(IndexedSlices(grad, indices, as_variable(var).shape), var, _rate(apply_state, var))

    def _resource_apply_sparse_duplicate_indices(self, grad: Any, handle: Variable, indices: Any, **kwargs: Any):
        """Sums rows with the same index, then applies them. Override it to apply the rows without summing.

        The list keeps its length: entries left over have the index `len(handle)`, which assignments drop.
        """
        rows, values = IndexedSlices(grad, indices).summed(len(handle))
        return self._resource_apply_sparse(values, handle, rows, **kwargs)

    def _resource_scatter_add(self, x: Variable, i: Any, v: Any) -> Variable:
        return x.scatter_add(IndexedSlices(v, i))

    def _resource_scatter_update(self, x: Variable, i: Any, v: Any) -> Variable:
        return x.scatter_update(IndexedSlices(v, i))

    # Keras 3

    def update_step(self, gradient: Any, variable: Variable, learning_rate: Any) -> None:
        """Applies the rule of the class to one variable, at a learning rate."""
        self._apply_rule(gradient, variable, learning_rate)

    def add_variable(
        self,
        shape: tuple[int, ...],
        initializer: Any = "zeros",
        dtype: Any = None,
        aggregation: Any = "none",
        layout: None = None,
        name: str = "variable",
    ) -> Weight:
        """Makes a variable as `add_weight` does, in Keras 3's form, and adds it to `variables`."""
        weight = self.add_weight(name, shape, dtype, initializer, aggregation=aggregation)
        self._extra_weights.append(weight)
        return weight

    def add_variable_from_reference(
        self, reference_variable: Variable, name: str = "variable", initializer: Any = "zeros"
    ) -> Variable:
        """Returns a slot as `add_slot` does, in Keras 3's form."""
        return self.add_slot(reference_variable, name, initializer)

    def _get_variable_index(self, variable: Variable) -> int:
        return [id(v) for v in self._engine.known()].index(id(as_variable(variable)))

    def assign(self, variable: Variable, value: Any) -> None:
        variable.assign(value)

    def assign_add(self, variable: Variable, value: Any) -> None:
        variable.assign_add(value)

    def assign_sub(self, variable: Variable, value: Any) -> None:
        variable.assign_sub(value)

    # Slots and weights

    def add_slot(
        self, var: Variable, slot_name: str, initializer: Any = "zeros", shape: tuple[int, ...] | None = None
    ) -> Variable:
        """Returns a slot of a variable, and makes it if it does not exist.

        A slot is in `weights` and is saved with them. A step leaves it as it is, unless the optimizer's code assigns
        to it.

        Args:
            initializer: "zeros", "ones", an array, or a function of `(shape, dtype)`.
            shape: the shape of the slot; that of the variable if None.

        Raises ValueError for the name of a slot that the rule itself keeps.
        """
        engine, variable = self._single_engine(), as_variable(var)
        if self._making is None and not engine.is_known(variable):
            engine.store.joins = True  # several calls in a row make the slots of one group
            try:
                engine.prepare([variable])
            finally:
                engine.store.joins = False
        key = engine.store.keys[id(variable)]
        if any(slot_name in group for group in self._rule_slots()):
            raise ValueError(f"{slot_name!r} is a slot that {type(self).__name__} keeps itself; choose another name")
        of_shape = variable.shape if shape is None else tuple(shape)
        tables = self._added_slots()
        if key not in tables.get(slot_name, ()):
            x = initial(initializer, of_shape, variable.dtype)
            if self._making is not None:
                self._making.setdefault(slot_name, ByVariable())[key] = x
            else:
                store = engine.store
                table = ByVariable(tables.get(slot_name, {}) | {key: x})
                store.state = store.existing.with_added(BySlot(tables | {slot_name: table}))
        return self._slot(key, slot_name)

    def _slot(self, key: str, slot_name: str) -> SlotView:
        """Returns the view of a slot made by `add_slot`."""
        raise NotImplementedError

    def _rule_slots(self) -> tuple[dict[str, Any], ...]:
        """Returns the slots of the rule, in groups."""
        raise NotImplementedError

    def _added_slots(self) -> BySlot:
        """Returns the slots made by `add_slot`, by name and variable."""
        if self._making is not None:
            return self._making
        state = self._single_engine().store.state
        return BySlot() if state is None else state.added

    def _slots_for(self, params: ByVariable) -> BySlot:
        """Returns all slots that the user's code makes."""
        store = self._single_engine().store
        self._making = BySlot((name, ByVariable(table)) for name, table in self._added_slots().items())
        try:
            self._create_slots([store.variables[key] for key in params])
            return self._making
        finally:
            self._making = None

    def add_weight(
        self,
        name: str,
        shape: tuple[int, ...] = (),
        dtype: Any = None,
        initializer: Any = "zeros",
        trainable: bool | None = None,
        synchronization: Any = "auto",
        aggregation: Any = "none",
    ) -> Weight:
        """Makes a variable that belongs to the optimizer and that its code may assign to.

        It is not in `weights`, nor in the result of `stateless_apply`, unless it is appended to `self._weights`.

        Args:
            shape, dtype: of the variable; a dtype of None means float32.
            initializer: as in `add_slot`.
            trainable: whether `minimize` trains it if no `var_list` is given; None means False.
            synchronization: "auto", "none", "on_write" or "on_read": see `Weight`.
            aggregation: "none", "sum", "mean" or "only_first_replica": how to combine what replicas assign.

        Raises ValueError for an unknown mode, and for a trainable variable with synchronization "on_read".
        """
        synchronization = mode(synchronization, SYNCHRONIZATIONS, "synchronization")
        aggregation = mode(aggregation, AGGREGATIONS, "aggregation")
        if synchronization == "on_read" and trainable:
            raise ValueError(
                "Synchronization value can be set to VariableSynchronization.ON_READ only for non-trainable "
                "variables. You have specified trainable=True and synchronization=VariableSynchronization.ON_READ."
            )
        weight = Weight(
            initial(initializer, tuple(shape), jnp.float32 if dtype is None else dtype),
            trainable=bool(trainable),
            name=f"{self._name}/{name}",
            axis_name=self.axis_name,
            synchronization=synchronization,
            aggregation=aggregation,
        )
        self._own_weights.append(weight)
        return weight

    # Running the rule

    def _single_engine(self) -> SingleEngine:
        if not isinstance(self._engine, SingleEngine):
            raise TypeError(f"{type(self).__name__} has no rule of its own; use its inner optimizers")
        return self._engine

    def _rule(self, rate: Any = None) -> GradientTransformation:
        """Returns the transformation of the class, with the present hyperparameters and possibly another rate."""

        others = {} if rate is None else {"learning_rate": rate}
        return self._made_of_hyper(lambda hyper: self.transform(SimpleNamespace(**hyper)), "rule", **others)

    def _imperative(self, hyper: dict[str, Any]) -> imperative:
        """Returns the transformation that runs the user's code."""
        rule = self.transform(SimpleNamespace(**hyper)) if self._has_rule else chain()
        return imperative(self, self._constants(), hyper, rule)

    def _constants(self) -> tuple:
        """Returns the attributes that the user's code may read and that are no inputs of a step."""
        known = self._known_attributes()
        return python_state({name: x for name, x in vars(self).items() if name not in known})

    def _known_attributes(self) -> frozenset[str]:
        """Returns the names of the attributes that all optimizers have."""
        raise NotImplementedError

    def _apply_rule(self, grad: Any, var: Variable, rate: Any) -> None:
        engine, variable = self._single_engine(), as_variable(var)
        if not self._has_rule:
            self.transform(None)  # says what to override
        if not engine.is_known(variable):
            engine.prepare([variable])
        iterations = self._iterations._value
        count = self._updates_done(iterations)
        tx = resolve_schedules(count, self._rule(rate), variable.dtype == jnp.float64)
        apply_rule(tx, engine.store, variable, grad, self.row_mode, iterations, count)

    def _apply_all(self, pairs: Sequence[tuple[Any, Variable]]) -> None:
        """Runs the user's code for each variable, while the step is traced."""
        if overrides(type(self), "update_step"):
            for g, v in pairs:
                self.update_step(_dense(g, v), v, self._decayed_lr(v.dtype))
            return
        apply_state = self._prepare([v for _, v in pairs])
        by_row = self._has_rule or overrides(type(self), "_resource_apply_sparse")
        for g, v in pairs:
            if isinstance(g, IndexedSlices) and by_row:
                more = _takes(self._resource_apply_sparse, apply_state)
                self._resource_apply_sparse_duplicate_indices(g.values, v, g.indices, **more)
            else:
                self._resource_apply_dense(_dense(g, v), v, **_takes(self._resource_apply_dense, apply_state))


def _rate(apply_state: dict | None, var: Variable) -> Any:
    var = as_variable(var)
    return (apply_state or {}).get((var.device, var.dtype), {}).get("lr_t")


def _takes(fn: Callable, apply_state: dict) -> dict[str, Any]:
    """Returns `apply_state` as a keyword argument if the function takes it."""
    parameters = inspect.signature(fn).parameters.values()
    taken = any(p.name == "apply_state" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"apply_state": apply_state} if taken else {}


def _dense(g: Any, v: Variable) -> Any:
    return g.dense(v.shape) if isinstance(g, IndexedSlices) else g
