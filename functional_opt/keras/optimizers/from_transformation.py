"""FromTransformation: Keras's API over any chain."""

from typing import Any

from ...core.transformation import as_transformation
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import learning_rates, scale_by_learning_rate, with_learning_rate
from ..engine.views import fields
from .optimizer import NO_RATE, Optimizer


class FromTransformation(Optimizer):
    """An optimizer over a gradient transformation of this library or of Optax.

    Args:
        tx: the transformation.
        name: the optimizer's name.
        learning_rate: if given, `scale_by_learning_rate(learning_rate)` becomes the last link. If not, and `tx`
            has exactly one such link, `learning_rate` is the rate of that link; otherwise the attribute does
            not exist.
        kwargs: as in `Optimizer`.

    Slots have the names of the fields of the state. Path rules see the variables' paths.
    Raises ValueError if a learning rate is given and `tx` already has one.

    >>> from functional_opt import keras, lion
    >>> opt = keras.optimizers.Optimizer.from_transformation(lion(0.1, weight_decay=0.0))
    >>> v = keras.Variable(1.0, name="v")
    >>> opt.minimize(lambda: v**2, [v]).numpy(), round(float(v), 3), opt.get_slot_names()
    (array(1, dtype=int32), 0.9, ['mu'])
    """

    def __init__(self, tx: Any, name: str = "Optimizer", learning_rate: Any = None, **kwargs: Any):
        super().__init__(name, learning_rate=NO_RATE if learning_rate is None else learning_rate, **kwargs)
        tx = as_transformation(tx)
        rates = learning_rates(tx)
        if "learning_rate" in self._hyper:
            if rates:
                raise ValueError(f"learning_rate must not be given where tx has one: {tx!r}")
            tx = chain(tx, scale_by_learning_rate(0.0))
        elif len(rates) == 1:
            self._set_hyper("learning_rate", rates[0])
        self._tx = tx

    def __setattr__(self, name, x):
        if name in ("lr", "learning_rate") and "learning_rate" not in self._hyper:
            raise AttributeError(f"learning_rate cannot be assigned: {self._tx!r} has no rate, or several")
        super().__setattr__(name, x)

    def transform(self, hyper):
        return with_learning_rate(self._tx, hyper.learning_rate) if "learning_rate" in self._hyper else self._tx

    def _rule_slots(self):
        return tuple({name: name} for name in fields(self._single_engine().store.state))

    def get_config(self):
        raise NotImplementedError(f"an optimizer made from a transformation has no config; its code is {self._tx!r}")


Optimizer._over_transformation = FromTransformation
