"""TF1's optimizers, from tf.compat.v1.train. Constructors match TF1's exactly, so they have no annotations.

Later versions of TensorFlow keep OptimizerV2's classes in `keras.optimizers.legacy`, so they are here too.
"""

from collections.abc import Callable, Iterable
from typing import Any

from ...core.ranges import Range
from ...optimizers.adagrad import scale_by_rss
from ...optimizers.rmsprop import scale_by_rms, scale_by_stddev
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ...transforms.scaling.moments import trace
from .adadelta import Adadelta
from .adagrad import Adagrad
from .adam import Adam
from .adamax import Adamax as Adamax
from .arguments import check
from .ftrl import Ftrl
from .graph_mode import GATE_OP
from .nadam import Nadam as Nadam
from .optimizer import Optimizer
from .rmsprop import RMSprop
from .sgd import SGD


class TF1(Optimizer):
    """Base of TF1's optimizers. It comes before a Keras class in the bases, and uses its hyperparameters.

    Args:
        learning_rate: a number, a schedule, or a callable; the attribute can be reassigned.
        use_locking: accepted but without effect here: an update is atomic, done completely or not at all.
        name: the optimizer's name, not empty; slots are called `variable/name`, `variable/name_1` ..., as in TF1.
        args, kwargs: as in the Keras class. TF1 has none of the arguments common to all Keras optimizers.

    Differs from TF1 in that `get_slot` raises KeyError for a slot that does not exist, and in having a config.
    """

    renamed: dict[str, str] = {}
    """Maps the names of arguments in the Keras class to their names here."""
    _decays = property(lambda self: False)  # the learning rate does not decay: `decay` has another meaning in TF1

    def __init__(self, *args: Any, use_locking: bool, name: str, **kwargs: Any):
        if not name:
            raise ValueError("Must specify the optimizer name")
        super().__init__(*args, name=name, **kwargs)
        self.use_locking = use_locking
        del self._hyper["decay"]

    def get_config(self) -> dict[str, Any]:
        """Returns the config for `from_config`, under the names of the constructor's arguments."""
        config = super().get_config() | {"use_locking": self.use_locking}
        return {self.renamed.get(name, name): x for name, x in config.items()}

    def minimize(
        self,
        loss: Callable[[], Any],
        global_step: Any = None,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Any = None,
    ):
        """Takes one step, as `Optimizer.minimize`, with TF1's order of arguments."""
        how = _how(gate_gradients, aggregation_method, colocate_gradients_with_ops)
        return super().minimize(loss, var_list, grad_loss, name, global_step=global_step, **how)

    def compute_gradients(
        self,
        loss: Callable[[], Any],
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Any = None,
    ):
        """Returns the gradients, as `Optimizer.compute_gradients`, with TF1's order of arguments."""
        how = _how(gate_gradients, aggregation_method, colocate_gradients_with_ops)
        return super().compute_gradients(loss, var_list, grad_loss, **how)

    def apply_gradients(self, grads_and_vars: Iterable[tuple], global_step: Any = None, name: str | None = None):
        """Updates the variables, as `Optimizer.apply_gradients`, with TF1's order of arguments.

        Also raises ValueError for an empty list.
        """
        if not (pairs := list(grads_and_vars)):
            raise ValueError("No variables provided.")
        return super().apply_gradients(pairs, name, global_step=global_step)

    def get_name(self) -> str:
        """Returns the name, as `name` does."""
        return self._name

    def _slot_label(self, key, slot_name):
        return f"{key}/{self._suffix(slot_name)}"

    def _suffix(self, slot_name: str) -> str:
        n = [*self.get_slot_names(), slot_name].index(slot_name)
        return f"{self._name}_{n}" if n else self._name


def _how(gate: int, aggregation: int | None, colocate: bool) -> dict[str, Any]:
    """Returns the keyword arguments of `Optimizer.compute_gradients` for these settings."""
    return {"gate_gradients": gate, "aggregation_method": aggregation, "colocate_gradients_with_ops": colocate}


class GradientDescentOptimizer(TF1):
    """p ← p − learning_rate · g: Keras's `SGD` without momentum. Arguments as in `TF1`.

    >>> from functional_opt.keras import Variable
    >>> v = Variable(1.0)
    >>> _ = GradientDescentOptimizer(0.1).apply_gradients([(2.0, v)])
    >>> round(float(v), 3)
    0.8
    """

    row_mode = "touched"

    def __init__(self, learning_rate, use_locking=False, name="GradientDescent"):
        super().__init__(learning_rate=learning_rate, use_locking=use_locking, name=name)

    def transform(self, hyper):
        return scale_by_learning_rate(hyper.learning_rate)


class MomentumOptimizer(TF1, SGD):
    """p ← p − learning_rate · a with a ← momentum·a + g; with use_nesterov p ← p − learning_rate · (g + momentum·a).

    Args:
        learning_rate, use_locking, name: as in `TF1`.
        momentum: in [0, 1]; it has a slot even at 0.
        use_nesterov: whether to look one step ahead; the attribute is called nesterov.

    Slots: momentum. Polyak 1964; Sutskever et al. 2013, ICML. Differs from Keras's `SGD`, whose slot includes the
    learning rate: here a new rate takes effect at once, there only as the slot decays.

    >>> from functional_opt.keras import Variable
    >>> v, opt = Variable(1.0, name="v"), MomentumOptimizer(0.1, 0.9)
    >>> _ = opt.apply_gradients([(2.0, v)])
    >>> round(float(v), 3), opt.get_slot(v, "momentum")
    (0.8, Variable('v/Momentum', shape=(), dtype=float32, value=2.))
    """

    renamed = {"nesterov": "use_nesterov"}

    def __init__(self, learning_rate, momentum, use_locking=False, name="Momentum", use_nesterov=False):
        super().__init__(learning_rate, momentum, use_nesterov, use_locking=use_locking, name=name)

    def transform(self, hyper):
        return chain(trace(hyper.momentum, self.nesterov), scale_by_learning_rate(hyper.learning_rate))


class AdagradOptimizer(TF1, Adagrad):
    """p ← p − learning_rate · g / √acc with acc ← acc + g². Differs from Keras's `Adagrad` in having no epsilon.

    Args:
        learning_rate, use_locking, name: as in `TF1`.
        initial_accumulator_value: the initial value of acc, > 0.

    Slots: accumulator. Duchi, Hazan & Singer 2011, JMLR 12.

    >>> from functional_opt.keras import Variable
    >>> v = Variable(1.0)
    >>> _ = AdagradOptimizer(0.1, initial_accumulator_value=5.0).apply_gradients([(2.0, v)])
    >>> round(float(v), 4)
    0.9333
    """

    settings = ("initial_accumulator_value",)
    ranges = {**Adagrad.ranges, "initial_accumulator_value": Range("(0, inf)")}

    def __init__(self, learning_rate, initial_accumulator_value=0.1, use_locking=False, name="Adagrad"):
        Range("(0, inf)").check("initial_accumulator_value", initial_accumulator_value)
        super().__init__(learning_rate, initial_accumulator_value, use_locking=use_locking, name=name)

    def transform(self, hyper):
        rule = scale_by_rss(self.initial_accumulator_value, eps=0.0)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))


class AdadeltaOptimizer(TF1, Adadelta):
    """p ← p − learning_rate · u, u = √(accum_update + ε) / √(accum + ε) · g: running means of u² and g².

    Args:
        learning_rate, use_locking, name: as in `TF1`; the paper uses a rate of 1.0.
        rho: decay of the means, in [0, 1).
        epsilon: ε > 0.

    Slots: accum, accum_update. Zeiler 2012, arXiv:1212.5701. Like Keras's `Adadelta`, but for slots and ε's default.

    >>> from functional_opt.keras import Variable
    >>> v = Variable(1.0)
    >>> _ = AdadeltaOptimizer(1.0, rho=0.0, epsilon=1.0).apply_gradients([(2.0, v)])
    >>> round(float(v), 4)
    0.1056
    """

    slots = ({"accum": "e_g"}, {"accum_update": "e_x"})

    def __init__(self, learning_rate=0.001, rho=0.95, epsilon=1e-8, use_locking=False, name="Adadelta"):
        Range("(0, inf)").check("epsilon", epsilon)
        super().__init__(learning_rate, rho, epsilon, use_locking=use_locking, name=name)


class AdamOptimizer(TF1, Adam):
    """p ← p − learning_rate · √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε), m and v running means of g and g².

    Args:
        learning_rate, use_locking, name: as in `TF1`.
        beta1, beta2: decay of the means, in [0, 1); the attributes are called beta_1 and beta_2.
        epsilon: ε ≥ 0, which is Kingma & Ba's ε̂.

    Slots: m, v. Kingma & Ba 2014, arXiv:1412.6980. Like Keras's `Adam`, but for ε's default; 0 stays 0.

    >>> from functional_opt.keras import Variable
    >>> v, opt = Variable(1.0, name="v"), AdamOptimizer(0.1)
    >>> _ = opt.apply_gradients([(2.0, v)])
    >>> round(float(v), 3), [w.name for w in opt.variables()]
    (0.9, ['Adam/iter:0', 'v/Adam:0', 'v/Adam_1:0'])
    """

    settings = ("epsilon",)
    renamed = {"beta_1": "beta1", "beta_2": "beta2"}

    def __init__(self, learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8, use_locking=False, name="Adam"):
        check(Range("[0, 1)"), beta1=beta1, beta2=beta2)
        super().__init__(learning_rate, beta1, beta2, use_locking=use_locking, name=name)
        self.epsilon = Range("[0, inf)").check("epsilon", epsilon)


class RMSPropOptimizer(TF1, RMSprop):
    """p ← p − mom, mom ← momentum·mom + learning_rate · g / √(rms − mg² + ε): running means of g² and (centered) g.

    Args:
        learning_rate, use_locking, name: as in `TF1`.
        decay: decay of the means, in [0, 1); the attribute is called rho.
        momentum: in [0, 1]; it has a slot even at 0.
        epsilon: ε ≥ 0.
        centered: whether mg is subtracted.

    Slots: rms, which starts at 1; mg (if centered); momentum. Hinton 2012, lecture 6e; Graves 2013, arXiv:1308.0850.
    Differs from Keras's `RMSprop`, where rms starts at 0, and where the place of ε and the treatment of sparse rows
    depend on whether momentum is used.

    >>> from functional_opt.keras import Variable
    >>> v = Variable(1.0)
    >>> _ = RMSPropOptimizer(0.1, decay=0.5).apply_gradients([(1.0, v)])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"rms": "nu"}, {"mg": "mu"}, {"momentum": "trace"})
    renamed = {"rho": "decay"}

    def __init__(
        self, learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, use_locking=False, centered=False, name="RMSProp"
    ):
        check(Range("[0, 1)"), decay=decay)
        super().__init__(learning_rate, decay, momentum, centered=centered, use_locking=use_locking, name=name)
        self.epsilon = Range("[0, inf)").check("epsilon", epsilon)
        self.row_mode = "touched"

    def transform(self, hyper):
        rule = scale_by_stddev if self.centered else scale_by_rms
        direction = rule(hyper.rho, self.epsilon, initial_scale=1.0)
        ascend = scale_by_learning_rate(hyper.learning_rate, flip_sign=False)
        return chain(direction, ascend, trace(hyper.momentum), scale(-1.0))


class FtrlOptimizer(TF1, Ftrl):
    """Follow the regularized leader: Keras's `Ftrl` with TF1's names. See `ftrl` for the rule.

    Args:
        learning_rate, use_locking, name: as in `TF1`.
        accum_name, linear_name: the suffixes in the names of a variable's slots; `name` and `name_1` if None.
        beta: as in `Ftrl`; None means 0.
        learning_rate_power, initial_accumulator_value and the strengths: as in `Ftrl`.

    Slots: accum, linear, whatever accum_name and linear_name are. McMahan et al. 2013, KDD.

    >>> from functional_opt.keras import Variable
    >>> v = Variable(0.0)
    >>> _ = FtrlOptimizer(0.1, l1_regularization_strength=5.0).apply_gradients([(-2.0, v)])
    >>> float(v)
    0.0
    """

    slots = ({"accum": "accumulator", "linear": "linear"},)
    settings = (*Ftrl.settings, "accum_name", "linear_name")

    def __init__(
        self,
        learning_rate,
        learning_rate_power=-0.5,
        initial_accumulator_value=0.1,
        l1_regularization_strength=0.0,
        l2_regularization_strength=0.0,
        use_locking=False,
        name="Ftrl",
        accum_name=None,
        linear_name=None,
        l2_shrinkage_regularization_strength=0.0,
        beta=None,
    ):
        rate = learning_rate, learning_rate_power, initial_accumulator_value
        penalties = l1_regularization_strength, l2_regularization_strength
        more = {
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
            "beta": 0.0 if beta is None else beta,
        }
        super().__init__(*rate, *penalties, **more, use_locking=use_locking, name=name)
        self.accum_name, self.linear_name = accum_name, linear_name

    def _suffix(self, slot_name):
        given = {"accum": self.accum_name, "linear": self.linear_name}.get(slot_name)
        return given or super()._suffix(slot_name)
