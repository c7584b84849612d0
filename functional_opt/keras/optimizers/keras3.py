"""Methods that Keras 3 added to optimizers."""

import re
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..variables.foreign import all_ours
from ..variables.variable import Variable
from .hyper import present
from ..engine.step import decayed, resolve_schedules
from .training import Training


class Keras3Methods(Training):
    """Keras 3's methods to apply gradients, and to read, average, save and load variables."""

    loss_scale_factor: float | None
    _undecayed: list[tuple[dict[int, Variable], list[str]]]

    @property
    def _decays(self) -> bool:
        """True if the learning rate is divided by 1 + decay · iterations."""
        raise NotImplementedError

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Applies gradients, in Keras 3's form: gradients and variables are separate lists.

        Args:
            grads: one for each variable; None leaves a variable unchanged.
            trainable_variables: the variables; those given to `build` if None.

        Raises ValueError if the numbers of gradients and variables differ.
        """
        variables = list(self._variables.values() if trainable_variables is None else trainable_variables)
        grads = list(grads)
        if len(grads) != len(variables):
            raise ValueError(f"there are {len(grads)} gradients for {len(variables)} variables")
        self.apply_gradients(zip(grads, variables, strict=True))

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Applies gradients as a pure function, for use in `jax.jit`. Returns new values of both kinds of variables.

        Args:
            optimizer_variables: values in the order of `variables`.
            grads: one for each variable given to `build`, in that order; None leaves a variable unchanged.
            trainable_variables: the values of these variables.

        Raises ValueError if the optimizer is not built, or if a list has the wrong length.
        """
        own, variables = self.variables, list(self._variables.values())
        if not self.built:
            raise ValueError("the optimizer is not built; call optimizer.build(variables) first")
        for name, given, known in (
            ("optimizer_variables", optimizer_variables, own),
            ("grads", grads, variables),
            ("trainable_variables", trainable_variables, variables),
        ):
            if len(given) != len(known):
                raise ValueError(f"{name} must have {len(known)} arrays, got {len(given)}")
        before = self._snapshot()
        self._detach()
        try:
            for v, x in zip(own, optimizer_variables, strict=True):
                v._value = jnp.asarray(x)
            grads = self._gradients(list(zip(grads, variables, strict=True)), variables)
            numbers = self._ready(variables)
            values = self._by_variable(variables, [jnp.asarray(x) for x in trainable_variables])
            values, state, clock = self._plan(variables)(
                numbers, values, self._state, self._clock(), values, self._by_variable(variables, grads)
            )
            self._store(state, clock)
            return self._listed(variables, values), [v._value for v in own]
        finally:
            self._restore(before)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Sequence[str] | None = None) -> None:
        """Excludes variables from `weight_decay`: those in `var_list`, and those whose path a pattern is found in."""
        variables = all_ours(var_list or ())
        self._undecayed.append(({id(v): v for v in variables}, list(var_names or ())))

    def __getstate__(self) -> dict[str, Any]:
        """Refers to variables that do not decay by their paths, which an optimizer made from a pickle still knows."""
        undecayed = [
            ({}, [*names, *(f"^{re.escape(v.path)}$" for v in variables.values())])
            for variables, names in self._undecayed
        ]
        return super().__getstate__() | {"_undecayed": undecayed}

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Replaces the variables' values by their running means, if `use_ema` keeps any."""
        for v in all_ours(var_list):
            key = self._keys.get(id(v))
            if self._state is not None and key in self._state.average:
                v.assign(self._state.average[key])

    def averaged_params(self, var_list: Iterable[Any] | None = None) -> list[jax.Array]:
        """Returns the values to evaluate with: the running means if `use_ema` keeps any, else the present values.

        None means all variables.
        """
        given = list(self._variables.values()) if var_list is None else all_ours(var_list)
        means = self._state.average if self._state is not None else {}
        return [means.get(self._keys.get(id(v)), v._value) for v in given]

    def scale_loss(self, loss: Any) -> Any:
        """Multiplies the loss by `loss_scale_factor`, if set. Gradients are divided by it in the step.

        Only needed for gradients computed elsewhere: `minimize`, `compute_gradients` and `make_train_step` do it.
        """
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    def _loss_scale(self, numbers: Any, state: Any) -> Any:
        """Returns the loss scale among the inputs of a step."""
        return numbers.loss_scale

    def current_learning_rate(self) -> Any:
        """Returns the rate of the next step: a float32 array of shape (), whatever `learning_rate` is."""
        rate = present(self._hyper["learning_rate"])
        rate = decayed(rate, present(self._hyper["decay"])) if self._decays else rate
        return resolve_schedules(self._iterations.value, rate)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Writes the values of `variables` to a dict-like store, under the keys "0", "1" ..."""
        for i, v in enumerate(self.variables):
            store[str(i)] = v.numpy()

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Loads what `save_own_variables` wrote. Raises ValueError, and changes nothing, if it does not fit."""
        self.set_weights([np.asarray(store[str(i)]) for i in range(len(store))])
