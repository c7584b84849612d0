"""Cases, as in `cases.py`, of optimizers that find their own step size, of AdEMAMix, ADOPT and private gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import functional_opt as fo
from functional_opt.core.transformation import Transformation

from . import references_free as ref
from .case import both, case, rates

THEIRS = optax.contrib


@fo.transformation
class knows_the_loss(fo.GradientTransformation):
    """Passes on half the square of the params as the loss."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        squares = [jnp.sum(jnp.abs(w.astype("float32") if w.dtype.itemsize < 4 else w) ** 2) for w in leaves(params)]
        extra["value"] = 0.5 * sum(squares, jnp.zeros([]))
        return self.inner.update(updates, state, params, **extra)


@fo.transformation
class one_example(fo.GradientTransformation):
    """Makes of every gradient that of a batch of one example."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        updates = jax.tree.map(lambda g: jnp.asarray(g)[None], updates)
        return self.inner.update(updates, state, params, **extra)


def leaves(tree: Any) -> list:
    return [jnp.asarray(x) for x in jax.tree.leaves(tree)]


def within(outer: Any, make: Any) -> Any:
    """A constructor of transformations that stand in another one."""

    @functools.wraps(make)
    def build(*args: Any, **kwargs: Any) -> Any:
        return outer(make(*args, **kwargs))

    return build


def told(make: Any) -> Any:
    return within(knows_the_loss, make)


def alone(make: Any) -> Any:
    return within(one_example, make)


def mechanic(learning_rate: float, **args: Any) -> Any:
    return fo.mechanize(fo.sgd(learning_rate), **args)


def slowly(o: Any, learning_rate: float, **args: Any) -> Any:
    rule = (fo if o is fo else THEIRS).reduce_on_plateau(**args)
    return knows_the_loss(o.chain(o.scale(-learning_rate), rule))


KEEP_THEIR_START = ("prodigy", "dog", "dowg", "distance", "cocob", "mechanize")
PRODIGY = "learning_rate eps estim_lr0 estim_lr_coef weight_decay"
DADAPT = "learning_rate eps estim_lr0 weight_decay"
START = {"estim_lr0": 0.05}
DECAY = {"weight_decay": 0.1}
MOVED, GIVEN = {"init_step": ("distance", 0.5), "eps": 0.1}, {"init_step": ("learning_rate", 0.1)}
NEAR = {"init_estim_sq_dist": 0.1, "eps": 0.1, "weight_decay": 0.01}
MOMO, MOMO_ADAM = "learning_rate beta lower_bound weight_decay", "learning_rate b1 b2 eps lower_bound weight_decay"
BOUND = {"learning_rate": 0.1, "lower_bound": 0.1, "adapt_lower_bound": True}
TUNED = {"learning_rate": 0.1, "s_init": 0.1, "eps": 1e-8, "weight_decay": 0.01}
MIX = "learning_rate b1 b2 b3 alpha eps eps_root weight_decay"
FAST = {"learning_rate": 0.02, "b3": 0.9, "eps": 0.1, "eps_root": 0.01}
SIMPLE = "learning_rate b1 b2 alpha eps eps_root weight_decay"
ADDED = {"learning_rate": 0.01, "b1": 0.8, "alpha": 2.0, "eps": 0.1, "eps_root": 0.01}
ADOPT = "learning_rate b1 b2 eps"
PLAIN = {"learning_rate": 0.02, "eps": 0.3, "b2": 0.9, "use_clipping": False}
CLIP = {"l2_norm_clip": 1.0, "noise_multiplier": 0.0}
HEAVY = {"learning_rate": 0.02, "seed": 0, "momentum": 0.9, "nesterov": True}
BELOW = {"learning_rate": 1.0, "factor": 0.5, "patience": 2, "rtol": 0.01}
MEANS = {"accumulation_size": 3, "cooldown": 2, "min_scale": 0.2}
PRIVATE = alone(fo.differentially_private_aggregate), alone(THEIRS.differentially_private_aggregate)
SCHEDULED = both(lambda o: (fo if o is fo else THEIRS).scale_by_ademamix(b3=rates(o), alpha=rates(o)))
BY_DISTANCE = (fo.scale_by_distance_over_gradients,)  # Optax gives scalars the shape (1,)
SUMS = fo.scale_by_simplified_ademamix, THEIRS.scale_by_simplified_ademamix
LATE = fo.simplified_ademamix, THEIRS.simplified_ademamix, ref.simplified_ademamix
MANY = fo.ademamix, THEIRS.ademamix, ref.ademamix

OPTIMIZERS = [
    case("prodigy", fo.prodigy, THEIRS.prodigy, ref.prodigy, PRODIGY, **START),
    case("prodigy-decay", fo.prodigy, THEIRS.prodigy, ref.prodigy, "beta3", beta3=0.9, eps=0.1, **START, **DECAY),
    case("prodigy-warm", fo.prodigy, THEIRS.prodigy, ref.prodigy, PRODIGY, safeguard_warmup=True, **START),
    case("dog", fo.dog, THEIRS.dog, ref.dog, "learning_rate eps", init_step=("heuristic", 0.1)),
    case("dog-distance", fo.dog, THEIRS.dog, ref.dog, "learning_rate eps weight_decay", **MOVED, **DECAY),
    case("dog-rate", fo.dog, THEIRS.dog, ref.dog, "eps", learning_rate=0.5, **GIVEN),
    case("dowg", fo.dowg, THEIRS.dowg, ref.dowg, "learning_rate eps"),
    case("dowg-start", fo.dowg, THEIRS.dowg, ref.dowg, "eps weight_decay", **NEAR),
    case("dadapt_adamw", fo.dadapt_adamw, THEIRS.dadapt_adamw, ref.dadapt_adamw, DADAPT, **START),
    case("dadapt_adamw-decay", fo.dadapt_adamw, THEIRS.dadapt_adamw, ref.dadapt_adamw, DADAPT, **START, **DECAY),
    case("momo", told(fo.momo), told(THEIRS.momo), ref.momo, MOMO, learning_rate=0.1),
    case("momo-decay", told(fo.momo), None, ref.momo, MOMO, learning_rate=0.1, **DECAY),
    case("momo_adam", told(fo.momo_adam), told(THEIRS.momo_adam), ref.momo_adam, MOMO_ADAM, learning_rate=0.05),
    case("momo_adam-decay", told(fo.momo_adam), None, ref.momo_adam, MOMO_ADAM, **DECAY),
    case("cocob", fo.cocob, THEIRS.cocob, ref.cocob, "learning_rate alpha eps weight_decay"),
    case("cocob-decay", fo.cocob, THEIRS.cocob, ref.cocob, "learning_rate alpha", alpha=10.0, **DECAY),
    case("mechanize", mechanic, None, ref.mechanize, "s_init eps weight_decay", **TUNED),
    case("ademamix", *MANY, MIX, learning_rate=0.05),
    case("ademamix-fast", *MANY, MIX, **FAST, **DECAY),
    case("simplified_ademamix", *LATE, SIMPLE, learning_rate=0.01, b1=0.9),
    case("simplified_ademamix-alpha", *LATE, SIMPLE, **ADDED, **DECAY),
    case("adopt", fo.adopt, THEIRS.adopt, ref.adopt, ADOPT, learning_rate=0.1),
    case("adopt-nesterov", fo.adopt, THEIRS.adopt, ref.adopt, ADOPT, learning_rate=0.1, nesterov=True),
    case("adopt-plain", fo.adopt, THEIRS.adopt, ref.adopt, ADOPT, **PLAIN),
    case("dpsgd", alone(fo.dpsgd), None, ref.dpsgd, "l2_norm_clip", learning_rate=0.1, seed=0, **CLIP),
    case("dpsgd-momentum", alone(fo.dpsgd), None, ref.dpsgd, "momentum", **HEAVY, **CLIP),
]

TRANSFORMATIONS = [
    case("momo-bound", told(fo.momo), told(THEIRS.momo), None, MOMO, **BOUND),
    case("momo_adam-bound", told(fo.momo_adam), told(THEIRS.momo_adam), None, MOMO_ADAM, eps=0.1, **BOUND),
    case("scale_by_dog", fo.scale_by_dog, None, None, "size eps", size=0.1),
    case("scale_by_dowg", fo.scale_by_dowg, None, None, "eps"),
    case("scale_by_distance_over_gradients", *BY_DISTANCE, None, None, "reps_rel eps global_scale", reps_rel=0.1),
    case("scale_by_cocob", fo.scale_by_cocob, THEIRS.scale_by_cocob, None, "alpha eps"),
    case("scale_by_ademamix", fo.scale_by_ademamix, THEIRS.scale_by_ademamix, None, "b1 b2 b3 alpha eps eps_root"),
    case("scale_by_ademamix-schedule", *SCHEDULED),
    case("scale_by_ademamix-bf16", fo.scale_by_ademamix, None, None, "b1 b2", state_dtype="bfloat16"),
    case("scale_by_simplified_ademamix", *SUMS, None, "b1 b2 alpha eps eps_root"),
    case("scale_by_adopt", fo.scale_by_adopt, THEIRS.scale_by_adopt, None, "b1 b2 eps"),
    case("reduce_on_plateau", *both(slowly), None, "learning_rate factor rtol", **BELOW),
    case("reduce_on_plateau-mean", *both(slowly), None, "factor", **BELOW, **MEANS),
    case("differentially_private_aggregate", *PRIVATE, None, "l2_norm_clip", key=0, **CLIP),
]
