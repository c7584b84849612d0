"""Cases, as in `cases.py`, of optimizers that precondition the axes of a leaf with matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import functional_opt as fo
from functional_opt.core.leaves import is_nothing
from functional_opt.core.transformation import Transformation

from . import references_matrix as ref
from .case import case

SOAP = {"max_precond_dim": 3, "precondition_frequency": 3}  # of longer axes the basis would be arbitrary in part
BLOCKS = {"block_size": 2, "eps": 0.01, "preconditioner_every": 3, "start_preconditioning_step": 2}
SHAMPOO = "learning_rate eps momentum weight_decay graft_eps"
SUMS = {"beta2": None, "grafting": "none", "eps": 0.1}
KRON = "learning_rate b1 weight_decay precond_lr precond_init_scale max_update_rms"
OFTEN = {"preconditioner_update_probability": 0.7, "weight_decay": 0.01}

KL = "learning_rate b1 b2 eps weight_decay initial_eigenvalue max_scale"


@fo.transformation
class with_partners(fo.GradientTransformation):
    """Makes every leaf the factor A, (..., r), of a pair whose B, (r, r + 1), has no gradient and turns by itself."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(self._pairs(params, 0))

    def update(self, updates, state, params=None, **extra):
        t = getattr(state[0], "count", 0) if isinstance(state, tuple) and state else 0
        grads = {"lora_a": map_all(as_factor, updates), "lora_b": map_all(lambda g: None, updates)}
        new, state = self.inner.update(grads, state, self._pairs(params, t), **extra)
        back = functools.partial(jax.tree.map, lambda g, u: None if u is None else u.reshape(jnp.shape(g)))
        return back(updates, new["lora_a"], is_leaf=is_nothing), state

    def _pairs(self, params, t):
        def partner(w):
            dtype = jnp.finfo(jnp.promote_types(jnp.result_type(w), "float32")).dtype
            return ref.partner(jnp.shape(as_factor(w))[-1], jnp.asarray(t, dtype), jnp)

        return {"lora_a": map_all(as_factor, params), "lora_b": map_all(partner, params)}


def map_all(fn, tree):
    """Of shapes alone, too, and with None for what has no gradient."""

    def leaf(x):
        return None if x is None else jax.eval_shape(fn, x) if isinstance(x, jax.ShapeDtypeStruct) else fn(x)

    return jax.tree.map(leaf, tree, is_leaf=is_nothing)


def as_factor(w):
    return w if is_nothing(w) or jnp.ndim(w) > 1 else jnp.expand_dims(w, (*range(1 - jnp.ndim(w)), -1))


def lora_rite(learning_rate, b1, b2, eps, weight_decay, escape=False):
    """Without clipping, which joins all leaves."""
    endless = {"clip_norm": 1e9, "skip_rms": 1e9}
    return with_partners(fo.lora_rite(learning_rate, b1, b2, eps, weight_decay, escape=escape, **endless))


def rite(**rule):
    return with_partners(fo.chain(fo.scale_by_lora_rite(**rule)))


RITE = {"learning_rate": 0.05, "b1": 0.9, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.01}
RULE = {"b1": 0.9, "b2": 0.95, "eps": 1e-6, "clip_norm": 1.0, "skip_rms": 5.0}

OPTIMIZERS: list[Any] = [
    case("lora_rite", lora_rite, None, ref.lora_rite, "learning_rate b1 b2 eps weight_decay", **RITE),
    case("lora_rite-escape", lora_rite, None, ref.lora_rite, "learning_rate b1 eps", escape=True, **RITE),
    case("soap", fo.soap, None, ref.soap, "learning_rate b1 b2 eps weight_decay", learning_rate=0.1, **SOAP),
    case("shampoo", fo.shampoo, None, ref.shampoo, SHAMPOO, learning_rate=0.01, weight_decay=0.01, **BLOCKS),
    case("kl_shampoo", fo.kl_shampoo, None, ref.kl_shampoo, KL, learning_rate=0.1, **SOAP),
    case("kl_soap", fo.kl_soap, None, ref.kl_soap, KL, learning_rate=0.1, **SOAP),
    case("psgd_kron", fo.psgd_kron, None, ref.psgd_kron, KRON, learning_rate=0.02, **OFTEN),
]

TRANSFORMATIONS: list[Any] = [
    case("scale_by_lora_rite", rite, None, None, "b1 b2 eps clip_norm", **RULE),
    case("scale_by_soap", fo.scale_by_soap, None, None, "b1 b2 eps", **SOAP),
    case("scale_by_shampoo", fo.scale_by_shampoo, None, None, "eps", **SUMS),
    case("scale_by_kl_shampoo", fo.scale_by_kl_shampoo, None, None, "b1 b2 eps", **SOAP),
    case("scale_by_kl_soap", fo.scale_by_kl_soap, None, None, "b1 b2 eps", **SOAP),
    case("scale_by_psgd_kron", fo.scale_by_psgd_kron, None, None, "b1 precond_lr", max_size_triangular=3),
]
