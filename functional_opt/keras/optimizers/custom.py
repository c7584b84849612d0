"""Optimizers written as code that assigns: OptimizerV2's `_resource_apply_dense` and Keras 3's `update_step`.

Such code is run once, while the step is traced, with tracers in the variables, the slots, the iteration and
the hyperparameters; what it assigns becomes the result. So it is compiled like everything else.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from ...base import GradientTransformation, increment, needs_params, transformation, zero_count
from ...value import Static
from .. import tracing
from ..indexed_slices import IndexedSlices
from ..variable import Variable
from .by_variable import ByVariable, State
from .hyper import Hyperparameters
from .keras3 import Keras3Methods

DEVICE = "/device:0"
"""What stands for a variable's device in the keys of `apply_state`."""


@transformation
class imperative(GradientTransformation):
    """The transformation of an optimizer that assigns to its variables; `hyper` are its hyperparameters by name.

    The state is a dict: `count`, and `slots` by name and variable.
    """

    optimizer: Static[Any]
    hyper: dict[str, Any]

    def init(self, params):
        return {"count": zero_count(), "slots": self.optimizer._make_slots(params)}

    def update(self, updates, state, params: Any = None, **extra):
        needs_params(params, self)
        opt = self.optimizer
        variables = {key: v for key, v in opt._variables.items() if params.get(key) is not None}
        before, hyper = opt._state, opt._traced_hyper

        def run():
            opt._apply_all([(updates[key], v) for key, v in variables.items() if updates[key] is not None])
            new = {key: v._value for key, v in variables.items()}
            return new, jax.tree.map(lambda x: x, opt._state.inner["slots"])

        inner = {"count": state["count"], "slots": jax.tree.map(lambda x: x, state["slots"])}
        opt._state, opt._traced_hyper = State(inner, state["count"], ByVariable(), ByVariable()), self.hyper
        try:
            inputs = [*(params[key] for key in variables), state["count"]]
            (new, slots), _, _ = tracing.call(run, [*variables.values(), opt._iterations], inputs)
        finally:
            opt._state, opt._traced_hyper = before, hyper
        moved = {key: new[key] - params[key] for key in variables}
        return ByVariable((key, moved.get(key)) for key in updates), {
            "count": increment(state["count"]),
            "slots": slots,
        }


class Custom(Keras3Methods, Hyperparameters):
    """What an optimizer that assigns to its variables may override, and what it calls."""

    _traced_hyper: dict[str, Any] | None = None
    _making: dict[str, ByVariable] | None = None
    _resource_apply_dense: Any  # these three are there only where a subclass has them
    _resource_apply_sparse: Any
    update_step: Any

    @property
    def _is_custom(self) -> bool:
        return hasattr(self, "_resource_apply_dense") or hasattr(self, "update_step")

    # OptimizerV2

    def _create_slots(self, var_list: list[Variable]) -> None:
        """To be overridden: `add_slot` for each variable."""

    def _prepare_local(self, var_device: str, var_dtype: Any, apply_state: dict) -> None:
        """To be extended: puts into `apply_state[var_device, var_dtype]` what is computed once for a dtype."""
        if "learning_rate" in self._hyper:
            apply_state[var_device, var_dtype]["lr_t"] = self._decayed_lr(var_dtype)

    def _fallback_apply_state(self, var_device: str, var_dtype: Any) -> dict[str, Any]:
        apply_state = {(var_device, var_dtype): {}}
        self._prepare_local(var_device, var_dtype, apply_state)
        return apply_state[var_device, var_dtype]

    def _decayed_lr(self, var_dtype: Any) -> jax.Array:
        """The learning rate of this step, `decay` and schedules included, in a dtype."""
        if self._traced_hyper is not None:
            return jnp.asarray(self._traced_hyper["learning_rate"], var_dtype)
        return jnp.asarray(self.current_learning_rate(), var_dtype)

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        if self._traced_hyper is not None:
            x = self._traced_hyper[name]
            return x if dtype is None else jnp.asarray(x, dtype)
        return super()._get_hyper(name, dtype)

    def add_slot(
        self, var: Variable, slot_name: str, initializer: Any = "zeros", shape: tuple[int, ...] | None = None
    ) -> Variable:
        """A slot of a variable, made if it is not there.

        Args:
            initializer: "zeros", "ones", an array, or a function of `(shape, dtype)`.
            shape: that of the variable if None.

        Raises RuntimeError in an optimizer that assigns to no variables itself.
        """
        if not self._is_custom:
            raise RuntimeError(f"{type(self).__name__} has the slots of its transformation; none can be added")
        key = self._keys[id(var)]
        if self._making is not None:
            slots = self._making
        else:
            slots = self._state.inner["slots"] if self._state else {}
        table = slots.setdefault(slot_name, ByVariable())
        if key not in table:
            shape = var.shape if shape is None else tuple(shape)
            if isinstance(initializer, str):
                table[key] = {"zeros": jnp.zeros, "ones": jnp.ones}[initializer](shape, var.dtype)
            elif callable(initializer):
                table[key] = jnp.asarray(initializer(shape, var.dtype))
            else:
                table[key] = jnp.broadcast_to(jnp.array(initializer, var.dtype), shape)
        return self._slot(lambda state: state.inner["slots"][slot_name], key, slot_name)

    # Keras 3

    @property
    def built(self) -> bool:
        """Whether `build` was called, or a step done."""
        return self._state is not None

    def add_variable_from_reference(
        self, reference_variable: Variable, name: str = "variable", initializer: Any = "zeros"
    ) -> Variable:
        """Keras 3's `add_slot`."""
        return self.add_slot(reference_variable, name, initializer)

    def _get_variable_index(self, variable: Variable) -> int:
        return list(self._variables).index(self._keys[id(variable)])

    def assign(self, variable: Variable, value: Any) -> None:
        variable.assign(value)

    def assign_add(self, variable: Variable, value: Any) -> None:
        variable.assign_add(value)

    def assign_sub(self, variable: Variable, value: Any) -> None:
        variable.assign_sub(value)

    # How they are run

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
        """The user's code for each variable, while the step is traced."""
        if hasattr(self, "update_step"):
            for g, v in pairs:
                self.update_step(_dense(g, v), v, self._decayed_lr(v.dtype))
            return
        apply_state: dict = {}
        for dtype in {v.dtype for _, v in pairs}:
            apply_state[DEVICE, dtype] = {}
            self._prepare_local(DEVICE, dtype, apply_state)
        for g, v in pairs:
            if isinstance(g, IndexedSlices) and hasattr(self, "_resource_apply_sparse"):
                rows, values = g.summed(len(v._value))
                _call(self._resource_apply_sparse, apply_state, values, v, rows)
            else:
                _call(self._resource_apply_dense, apply_state, _dense(g, v), v)


def _call(fn: Any, apply_state: dict, *args: Any) -> None:
    """Passes `apply_state` to a function that takes it."""
    more = {"apply_state": apply_state} if "apply_state" in inspect.signature(fn).parameters else {}
    fn(*args, **more)


def _dense(g: Any, v: Variable) -> Any:
    return g.dense(v.shape) if isinstance(g, IndexedSlices) else g
