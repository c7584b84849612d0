"""Cases, as in `cases.py`, of the optimizers of `contrib` and what they are built of."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import functional_opt as fo
from functional_opt.core.transformation import Transformation

from . import references_contrib as ref
from .case import both, case

THEIRS = optax.contrib
MADGRAD = "learning_rate momentum eps"
ACPROP = "learning_rate b1 b2 eps eps_root"
DECAY = {"weight_decay": 0.1}
LOOSE = {"learning_rate": 0.05, "eps": 0.1, "eps_root": 0.01, "weight_decay": 0.1}

LOW = {"rank": 1, "update_proj_gap": 7, "scale": 0.5}
UPHILL = {"learning_rate": 0.1, "rho": 0.05}
SOPHIA = "learning_rate b1 b2 eps gamma clip_threshold update_interval weight_decay"


@fo.transformation
class squares(fo.GradientTransformation):
    """|g|², for the diagonal of a Hessian."""

    def init(self, params):
        return fo.EmptyState()

    def update(self, updates, state, params=None, **extra):
        return jax.tree.map(lambda g: g * g.conj(), updates), state


@fo.transformation
class with_half_square(fo.GradientTransformation):
    """Gives a transformation the `obj_fn` that it wants: half the square of the distance from 0."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        return self.inner.update(updates, state, params, **{**extra, "obj_fn": half_square})


@fo.transformation
class times_gradient(fo.GradientTransformation):
    """Multiplies what does not come from the gradient by it."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        factors, state = self.inner.update(updates, state, params, **extra)
        return jax.tree.map(jnp.multiply, updates, factors), state


def half_square(params: Any) -> Any:
    return sum((jnp.sum((w * w.conj()).real) / 2 for w in jax.tree.leaves(params)), jnp.zeros([]))


def loose(tx: Any, **args: Any) -> Any:
    return {"hessian_diagonal_fn": tx, "gamma": 1.0, "eps": 0.1, "update_interval": 3} | args


def with_b1(b1: float) -> Any:
    return with_half_square(fo.scale_by_sophia(b1))


def estimator() -> Any:
    return times_gradient(with_half_square(fo.hutchinson_estimator_diag_hessian()))


def uphill(o: Any, learning_rate: float, rho: float, **options: Any) -> Any:
    wrap = fo.sam if o is fo else THEIRS.sam
    return wrap(o.sgd(learning_rate), o.sgd(rho, momentum=0.9), **options)


OPTIMIZERS = [
    case("madgrad", fo.madgrad, THEIRS.madgrad, ref.madgrad, MADGRAD, learning_rate=0.05),
    case("madgrad-decay", fo.madgrad, THEIRS.madgrad, ref.madgrad, MADGRAD, learning_rate=0.02, **DECAY),
    case("acprop", fo.acprop, THEIRS.acprop, ref.acprop, ACPROP, learning_rate=0.02),
    case("acprop-eps", fo.acprop, THEIRS.acprop, ref.acprop, ACPROP, **LOOSE),
    case("sophia", fo.sophia, THEIRS.sophia, ref.sophia, SOPHIA, learning_rate=0.02, hessian_diagonal_fn=squares()),
    case("sophia-loose", fo.sophia, THEIRS.sophia, ref.sophia, SOPHIA, learning_rate=0.05, **loose(squares())),
    case("sam", *both(uphill), ref.sam, "learning_rate rho", reset_state=False, **UPHILL),
    case("sam-twice", *both(uphill), ref.sam, "learning_rate rho", sync_period=3, **UPHILL),
    case("galore", fo.galore, THEIRS.galore, ref.galore, "learning_rate scale", learning_rate=0.05),
    case("galore-low", fo.galore, THEIRS.galore, ref.galore, "weight_decay", learning_rate=0.05, **LOW),
]

TRANSFORMATIONS = [
    case("scale_by_galore", fo.scale_by_galore, THEIRS.scale_by_galore, None, "update_proj_gap scale", **LOW),
    case("scale_by_madgrad", fo.scale_by_madgrad, THEIRS.scale_by_madgrad, None, MADGRAD, learning_rate=0.05),
    case("scale_by_acprop", fo.scale_by_acprop, THEIRS.scale_by_acprop, None, "b1 b2 eps eps_root"),
    case("scale_by_sophia", with_b1, None, None, "b1", b1=0.9),
    case("scale_by_sophia-unclipped", fo.scale_by_sophia, clip_threshold=None, **loose(squares())),
    case("hutchinson_estimator_diag_hessian", estimator),
]
