"""imperative: the transformation of an optimizer whose code assigns to variables."""

from typing import Any

import jax

from ...core.checks import Static
from ...core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count
from ..variables import recording
from ..variables.variable import Variable
from .by_variable import ByVariable, State
from ..optimizers.views import SlotView


@transformation
class imperative(GradientTransformation):
    """Runs the code of an optimizer that assigns to its variables; `hyper` holds its hyperparameters by name.

    The state is a dict: `count`, `slots` by name and variable, and `weights`, the optimizer's own variables.
    """

    optimizer: Static[Any]
    constants: Static[tuple]  # the optimizer's plain attributes, which the code may read
    hyper: dict[str, Any]

    def init(self, params):
        slots = self.optimizer._make_slots(params)
        return {"count": zero_count(), "slots": slots, "weights": [w._value for w in self.optimizer._own_weights]}

    def update(self, updates, state, params: Any = None, **extra):
        needs_params(params, self)
        opt = self.optimizer
        variables = {key: v for key, v in opt._variables.items() if params.get(key) is not None}
        hyper = {name: v for name, v in opt._hyper.items() if isinstance(v, Variable)}
        before = opt._state, opt._traced_hyper

        def run():
            opt._apply_all([(updates[key], v) for key, v in variables.items() if updates[key] is not None])
            new = {key: v._value for key, v in variables.items()}
            weights = [w._value for w in opt._own_weights]
            return new, jax.tree.map(lambda x: x, opt._state.inner["slots"]), weights

        inner = {"count": state["count"], "slots": jax.tree.map(lambda x: x, state["slots"]), "weights": []}
        opt._state, opt._traced_hyper = State(inner, state["count"], ByVariable(), ByVariable()), self.hyper
        inputs = {id(v): (v, params[key]) for key, v in variables.items()}
        inputs |= {id(v): (v, x) for v, x in zip(opt._own_weights, state["weights"], strict=True)}
        inputs |= {id(v): (v, self.hyper[name]) for name, v in hyper.items()}
        inputs[id(opt._iterations)] = opt._iterations, state["count"]
        try:
            done = recording.call(run, *zip(*inputs.values(), strict=True))
        finally:
            opt._state, opt._traced_hyper = before
        if lost := [v.name for i, (v, _) in done.written.items() if i not in inputs and not isinstance(v, SlotView)]:
            raise RuntimeError(f"{type(opt).__name__} assigns to {lost}, which it has not made with add_weight")
        new, slots, weights = done.out
        moved = {key: new[key] - params[key] for key in variables}
        return ByVariable((key, moved.get(key)) for key in updates), {
            "count": increment(state["count"]),
            "slots": slots,
            "weights": weights,
        }
