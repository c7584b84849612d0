"""One table: every public optimizer and transformation, its arguments, its peer in Optax and its reference.

A new optimizer is one line in `OPTIMIZERS` and one function in `references.py`; a new transformation is
one line in `TRANSFORMATIONS`.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
import pytest

import functional_opt as fo
from functional_opt.base import Transformation
from functional_opt.schedules import linear_schedule

from . import references as ref


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """`make(**args)` is the transformation, `peer(**args)` Optax's, `reference(w, grads, **args)` the paper's.

    `name` is the public name, followed by a dash and what is special where there are several. `vary` names
    the arguments that are leaves of the transformation: changing them must not compile again.
    """

    name: str
    make: Callable[..., Any]
    peer: Callable[..., Any] | None
    reference: Callable[..., Any] | None
    vary: str
    args: dict[str, Any]

    def __repr__(self):
        return self.name

    def tx(self, **changes: Any) -> Any:
        return self.make(**(self.args | changes))

    @property
    def pace(self) -> float:
        """How far params are to move for an update of 1: what is not an optimizer would take them past zero."""
        return 1.0 if self.reference else 0.01

    @property
    def numbers(self) -> dict[str, float]:
        """The arguments of `vary` and their values, by default those of the signature."""
        own = inspect.signature(self.make).parameters
        return {name: self.args[name] if name in self.args else own[name].default for name in self.vary.split()}


@fo.transformation
class on_one_device(fo.GradientTransformation):
    """Binds the axis "device" around a transformation that wants one."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        bound = jax.vmap(
            lambda u: self.inner.update(u, state, params, **extra),
            in_axes=None,
            out_axes=None,
            axis_name="device",
            axis_size=1,
        )
        return bound(updates)


def matrices(tree: Any) -> Any:
    """A mask: True for every leaf with two axes."""
    return jax.tree.map(lambda x: np.ndim(x) > 1, tree)


def by_rank(tree: Any) -> Any:
    """Labels: "matrix" or "vector"."""
    return jax.tree.map(lambda x: "matrix" if np.ndim(x) > 1 else "vector", tree)


def halving(count: Any) -> Any:
    """A schedule that is a plain function."""
    return 0.5**count


def case(name: str, make: Any, peer: Any = None, reference: Any = None, vary: str = "", **args: Any) -> Case:
    return Case(name, make, peer, reference, vary, args)


def both(build: Callable[..., Any]) -> tuple[Any, Any]:
    """The same code with our names and with Optax's, for transformations that hold others."""
    return functools.partial(build, fo), functools.partial(build, optax)


def rates(o: Any) -> Any:
    return (linear_schedule if o is fo else optax.linear_schedule)(0.2, 0.1, 20)


def groups(o: Any, decay: float) -> dict[str, Any]:
    return {"matrix": o.trace(decay), "vector": o.chain(o.clip(0.5), o.scale(-0.1))}


def multi_steps(o: Any, every_k: int, learning_rate: float) -> Any:
    return o.MultiSteps(o.adam(learning_rate), every_k).gradient_transformation()


ADAM, AMSGRAD, LION = (
    "learning_rate b1 b2 eps eps_root",
    "learning_rate b1 b2 eps",
    "learning_rate b1 b2 weight_decay",
)
RMS, RSS = "decay eps initial_scale", "initial_accumulator_value eps"
UNCORRECTED = {"bias_correction_mu": False, "bias_correction_nu": False}
HEAVY = {"momentum": 0.9, "nesterov": True}
CORRECTED = {"eps": 0.1, "bias_correction": True}
AS_KERAS = {"max_before_correction": True, "eps_hat": True}
DECAY = {"weight_decay": 0.1}

# name, constructor, Optax's, the reference, the arguments that are leaves, the arguments
OPTIMIZERS = [
    case("sgd", fo.sgd, optax.sgd, ref.sgd, "learning_rate", learning_rate=0.1),
    case("sgd-momentum", fo.sgd, optax.sgd, ref.sgd, "learning_rate momentum", learning_rate=0.02, momentum=0.9),
    case("sgd-nesterov", fo.sgd, optax.sgd, ref.sgd, "momentum", learning_rate=0.02, **HEAVY),
    case("adam", fo.adam, optax.adam, ref.adam, ADAM, learning_rate=0.1),
    case("adam-eps", fo.adam, optax.adam, ref.adam, ADAM, learning_rate=0.1, b2=0.9, eps=0.1, eps_root=0.01),
    case("adam-nesterov", fo.adam, optax.adam, ref.adam, ADAM, learning_rate=0.1, nesterov=True),
    case("adam-eps_hat", fo.adam, None, ref.adam_eps_hat, ADAM, learning_rate=0.1, eps=0.01, eps_hat=True),
    case("adamw", fo.adamw, optax.adamw, ref.adamw, "learning_rate", learning_rate=0.1),
    case("adamw-decay", fo.adamw, optax.adamw, ref.adamw, "weight_decay", learning_rate=0.1, weight_decay=0.1),
    case("amsgrad", fo.amsgrad, optax.amsgrad, ref.amsgrad, AMSGRAD, learning_rate=0.1, b2=0.9),
    case("amsgrad-raw", fo.amsgrad, optax.amsgrad, ref.amsgrad, AMSGRAD, learning_rate=0.1, eps=0.1, **UNCORRECTED),
    case("rmsprop", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05),
    case("rmsprop-eps", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05, eps=0.1, eps_in_sqrt=False),
    case("rmsprop-centered", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.02, eps=0.1, centered=True),
    case("rmsprop-momentum", fo.rmsprop, optax.rmsprop, ref.rmsprop, "momentum", learning_rate=0.01, **HEAVY),
    case("rmsprop-corrected", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05, bias_correction=True),
    case("rmsprop-start", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05, initial_scale=1.0),
    case("adagrad", fo.adagrad, optax.adagrad, ref.adagrad, RSS, learning_rate=0.5),
    case("adagrad-eps", fo.adagrad, optax.adagrad, ref.adagrad, RSS, learning_rate=0.5, eps=0.1),
    case("lion", fo.lion, optax.lion, ref.lion, LION, learning_rate=0.02, weight_decay=0.01),
]

TRANSFORMATIONS = [
    case("identity", fo.identity, optax.identity),
    case("set_to_zero", fo.set_to_zero, optax.set_to_zero),
    case("scale", fo.scale, optax.scale, None, "step_size", step_size=-0.5),
    case("scale_by_schedule", fo.scale_by_schedule, optax.scale_by_schedule, step_size_fn=halving),
    case("scale_by_learning_rate", fo.scale_by_learning_rate, None, None, "learning_rate", learning_rate=0.1),
    case("scale_by_learning_rate-schedule", *both(lambda o: o.scale_by_learning_rate(rates(o))), None),
    case("scale_by_adam", fo.scale_by_adam, optax.scale_by_adam, None, "b1 b2 eps eps_root"),
    case("scale_by_adam-bf16", fo.scale_by_adam, None, None, "b1 b2", state_dtype="bfloat16"),
    case("scale_by_amsgrad", fo.scale_by_amsgrad, optax.scale_by_amsgrad, None, "b1 b2 eps eps_root"),
    case("scale_by_amsgrad-keras", fo.scale_by_amsgrad, None, None, "b1 b2 eps", **AS_KERAS),
    case("scale_by_lion", fo.scale_by_lion, optax.scale_by_lion, None, "b1 b2"),
    case("scale_by_lion-smooth", fo.scale_by_lion, optax.scale_by_lion, None, "b1 b2 smooth_beta", mode="smooth"),
    case("scale_by_lion-refined", fo.scale_by_lion, optax.scale_by_lion, None, "b1 b2", mode="refined"),
    case("scale_by_rms", fo.scale_by_rms, optax.scale_by_rms, None, "decay eps initial_scale"),
    case("scale_by_rms-corrected", fo.scale_by_rms, optax.scale_by_rms, None, "decay eps", bias_correction=True),
    case("scale_by_stddev", fo.scale_by_stddev, optax.scale_by_stddev, None, "decay eps initial_scale", eps=0.1),
    case("scale_by_stddev-corrected", fo.scale_by_stddev, optax.scale_by_stddev, None, "eps", **CORRECTED),
    case("scale_by_rss", fo.scale_by_rss, optax.scale_by_rss, None, RSS),
    case("scale_by_rss-outside", fo.scale_by_rss, None, None, RSS, eps_in_sqrt=False),
    case("trace", fo.trace, optax.trace, None, "decay", decay=0.9),
    case("trace-nesterov", fo.trace, optax.trace, None, "decay", decay=0.9, nesterov=True),
    case("trace-bf16", fo.trace, None, None, "decay", decay=0.9, accumulator_dtype="bfloat16"),
    case("ema", fo.ema, optax.ema, None, "decay", decay=0.9),
    case("ema-biased", fo.ema, optax.ema, None, "decay", decay=0.9, debias=False),
    case("clip", fo.clip, optax.clip, None, "max_delta", max_delta=0.5),
    case("clip_by_norm", fo.clip_by_norm, None, None, "max_norm", max_norm=1.0),
    case("clip_by_global_norm", fo.clip_by_global_norm, optax.clip_by_global_norm, None, "max_norm", max_norm=1.0),
    case("clip_by_block_rms", fo.clip_by_block_rms, optax.clip_by_block_rms, None, "threshold", threshold=0.5),
    case("adaptive_grad_clip", fo.adaptive_grad_clip, optax.adaptive_grad_clip, None, "clipping eps", clipping=0.1),
    case("adaptive_grad_clip-axis", fo.adaptive_grad_clip, optax.adaptive_grad_clip, clipping=0.1, axis=()),
    case("add_decayed_weights", fo.add_decayed_weights, optax.add_decayed_weights, None, "weight_decay", **DECAY),
    case("add_decayed_weights-masked", *both(lambda o: o.add_decayed_weights(0.1, matrices)), None),
    case("add_decayed_weights-schedule", *both(lambda o: o.add_decayed_weights(rates(o))), None),
    case("masked", *both(lambda o, decay: o.masked(o.trace(decay), matrices)), None, "decay", decay=0.9),
    case("masked-paths", lambda decay: fo.masked(fo.trace(decay), {"**/kernel": True, "**": False}), decay=0.9),
    case("freeze", *both(lambda o: o.freeze(matrices)), None),
    case("partition", *both(lambda o, decay: o.partition(groups(o, decay), by_rank)), None, "decay", decay=0.9),
    case("MultiSteps", *both(multi_steps), None, "every_k learning_rate", every_k=3, learning_rate=0.1),
    case("apply_if_finite", *both(lambda o, rate: o.apply_if_finite(o.adam(rate), 3)), None, "rate", rate=0.1),
    case("chain", *both(lambda o, norm: o.chain(o.clip_by_global_norm(norm), o.adam(0.1))), None, "norm", norm=1.0),
    case("chain-empty", fo.chain),
    case("named_chain", *both(lambda o, d: o.named_chain(("m", o.trace(d)), ("lr", o.scale(0.1)))), None, "d", d=0.9),
    case("aggregate", lambda op: on_one_device(fo.aggregate("device", op)), op="mean"),
]

CASES = OPTIMIZERS + TRANSFORMATIONS
each_case = pytest.mark.parametrize("case", CASES, ids=repr)
each_optimizer = pytest.mark.parametrize("case", OPTIMIZERS, ids=repr)
