"""Optimizers whose code assigns to variables: OptimizerV2's `_resource_apply_dense`, Keras 3's `update_step`.

Such code runs once, while the step is traced, with tracers in the variables, the slots, the iteration and the
hyperparameters. The values that it assigns become the result. So it is compiled like everything else.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from ...core.schedule import Schedule
from ..variables.foreign import as_variable
from ..variables.indexed_slices import IndexedSlices
from ..variables.variable import Variable
from ..engine.by_variable import ByVariable
from .hyper import Hyperparameters
from .keras3 import Keras3Methods
from ..engine.replicas import AGGREGATIONS, SYNCHRONIZATIONS, Weight, mode
from .schedules import LearningRateSchedule


class Custom(Keras3Methods, Hyperparameters):
    """Methods that an optimizer which assigns to its variables can override or call."""

    _traced_hyper: dict[str, Any] | None  # not None while the user's code is traced
    _making: dict[str, ByVariable] | None  # not None while slots are made
    _resource_apply_dense: Any  # these three exist only if a subclass defines them
    _resource_apply_sparse: Any
    update_step: Any

    @property
    def _is_custom(self) -> bool:
        return hasattr(self, "_resource_apply_dense") or hasattr(self, "update_step")

    def _start(self) -> None:
        super()._start()
        self._traced_hyper, self._making = None, None

    # OptimizerV2

    def _create_slots(self, var_list: list[Variable]) -> None:
        """Makes the slots. Override it to call `add_slot` for each variable."""

    def _prepare(self, var_list: list[Variable]) -> dict:
        """Returns values computed once per step: calls `_prepare_local` for each dtype. May be extended."""
        apply_state: dict = {(v.device, v.dtype): {} for v in var_list}
        for device, dtype in apply_state:
            self._prepare_local(device, dtype, apply_state)
        return apply_state

    def _prepare_local(self, var_device: str, var_dtype: Any, apply_state: dict) -> None:
        """Puts values computed once per dtype into `apply_state[var_device, var_dtype]`. May be extended."""
        if "learning_rate" in self._hyper:
            apply_state[var_device, var_dtype]["lr_t"] = self._decayed_lr(var_dtype)

    def _fallback_apply_state(self, var_device: str, var_dtype: Any) -> dict[str, Any]:
        apply_state = {(var_device, var_dtype): {}}
        self._prepare_local(var_device, var_dtype, apply_state)
        return apply_state[var_device, var_dtype]

    def _decayed_lr(self, var_dtype: Any) -> jax.Array:
        """Returns the learning rate of this step in a dtype, with `decay` and schedules applied."""
        if self._traced_hyper is not None:
            return jnp.asarray(self._traced_hyper["learning_rate"], var_dtype)
        return jnp.asarray(self.current_learning_rate(), var_dtype)

    def __getattr__(self, name: str) -> Any:
        x = super().__getattr__(name)
        if self.__dict__.get("_traced_hyper") is None or isinstance(x, Variable | Schedule | LearningRateSchedule):
            return x
        return self._get_hyper("learning_rate" if name == "lr" else name)  # for a function, the value it returned

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        if self._traced_hyper is not None:
            x = self._traced_hyper[name]
            return x if dtype is None else jnp.asarray(x, dtype)
        return super()._get_hyper(name, dtype)

    def add_slot(
        self, var: Variable, slot_name: str, initializer: Any = "zeros", shape: tuple[int, ...] | None = None
    ) -> Variable:
        """Returns a slot of a variable, and makes it if it does not exist.

        Args:
            initializer: "zeros", "ones", an array, or a function of `(shape, dtype)`.
            shape: the shape of the slot; that of the variable if None.

        Raises RuntimeError if the optimizer's code assigns to no variables: its slots come from `transform`.
        """
        if not self._is_custom:
            raise RuntimeError(f"{type(self).__name__} has the slots of its transformation; none can be added")
        key = self._keys[id(as_variable(var))]
        if self._making is not None:
            slots = self._making
        else:
            slots = self._state.inner["slots"] if self._state else {}
        table = slots.setdefault(slot_name, ByVariable())
        if key not in table:
            table[key] = _initial(initializer, var.shape if shape is None else tuple(shape), var.dtype)
        return self._slot(lambda state: state.inner["slots"][slot_name], key, slot_name)

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
            _initial(initializer, tuple(shape), jnp.float32 if dtype is None else dtype),
            trainable=bool(trainable),
            name=f"{self._name}/{name}",
            axis_name=self.axis_name,
            synchronization=synchronization,
            aggregation=aggregation,
        )
        self._own_weights.append(weight)
        return weight

    def _resource_scatter_add(self, x: Variable, i: Any, v: Any) -> Variable:
        return x.scatter_add(IndexedSlices(v, i))

    def _resource_scatter_update(self, x: Variable, i: Any, v: Any) -> Variable:
        return x.scatter_update(IndexedSlices(v, i))

    def _resource_apply_sparse_duplicate_indices(self, grad: Any, handle: Variable, indices: Any, **kwargs: Any):
        """Sums rows with the same index, then applies them. Override it to apply the rows without summing.

        The list keeps its length: entries left over have the index `len(handle)`, which assignments drop.
        """
        rows, values = IndexedSlices(grad, indices).summed(len(handle._value))
        return self._resource_apply_sparse(values, handle, rows, **kwargs)

    # Keras 3

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
        self._weights.append(weight)
        return weight

    def add_variable_from_reference(
        self, reference_variable: Variable, name: str = "variable", initializer: Any = "zeros"
    ) -> Variable:
        """Returns a slot as `add_slot` does, in Keras 3's form."""
        return self.add_slot(reference_variable, name, initializer)

    def _get_variable_index(self, variable: Variable) -> int:
        return list(self._variables).index(self._keys[id(variable)])

    def assign(self, variable: Variable, value: Any) -> None:
        variable.assign(value)

    def assign_add(self, variable: Variable, value: Any) -> None:
        variable.assign_add(value)

    def assign_sub(self, variable: Variable, value: Any) -> None:
        variable.assign_sub(value)

    # Running the user's code

    def _groups(self):
        if not self._is_custom:
            return super()._groups()
        names = self._state.inner["slots"] if self._state else ()
        return tuple({name: name} for name in names)

    def _make_slots(self, values: ByVariable) -> dict[str, ByVariable]:
        there = {} if self._state is None else self._state.inner["slots"]
        self._making = {name: ByVariable(table) for name, table in there.items()}
        try:
            self._create_slots([self._variables[key] for key in values])
            return self._making
        finally:
            self._making = None

    def _apply_all(self, pairs: list[tuple[Any, Variable]]) -> None:
        """Runs the user's code for each variable, while the step is traced."""
        if hasattr(self, "update_step"):
            for g, v in pairs:
                self.update_step(_dense(g, v), v, self._decayed_lr(v.dtype))
            return
        apply_state = self._prepare([v for _, v in pairs])
        for g, v in pairs:
            if isinstance(g, IndexedSlices) and hasattr(self, "_resource_apply_sparse"):
                more = _takes(self._resource_apply_sparse, apply_state)
                self._resource_apply_sparse_duplicate_indices(g.values, v, g.indices, **more)
            else:
                self._resource_apply_dense(_dense(g, v), v, **_takes(self._resource_apply_dense, apply_state))

    @property
    def _packs(self) -> bool:
        return super()._packs and not self._is_custom

    def _ready(self, variables):
        numbers = super()._ready(variables)
        if self._is_custom and self._state is not None:
            weights = [w._value for w in self._own_weights]
            self._state = self._state._replace(inner=self._state.inner | {"weights": weights})
        return numbers

    def _store(self, state, clock):
        super()._store(state, clock)
        for w, x in zip(self._own_weights, state.inner["weights"] if self._is_custom else (), strict=False):
            w._value = x


def _initial(initializer: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if isinstance(initializer, str):
        if initializer not in ("zeros", "ones"):
            raise ValueError(f"initializer must be 'zeros', 'ones', an array or a function, got {initializer!r}")
        return jnp.full(shape, float(initializer == "ones"), dtype)
    if callable(initializer):
        return jnp.asarray(initializer(shape, dtype), dtype)
    return jnp.broadcast_to(jnp.array(initializer, dtype), shape)


def _takes(fn: Any, apply_state: dict) -> dict[str, Any]:
    """Returns `apply_state` as a keyword argument if the function takes it."""
    parameters = inspect.signature(fn).parameters.values()
    taken = any(p.name == "apply_state" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"apply_state": apply_state} if taken else {}


def _dense(g: Any, v: Variable) -> Any:
    return g.dense(v.shape) if isinstance(g, IndexedSlices) else g
