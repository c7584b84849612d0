"""A case of the conformance table, and the pieces that cases are built of."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import functional_opt as fo
from functional_opt.core.checks import as_given
from functional_opt.core.leaves import is_nothing
from functional_opt.core.transformation import Transformation
from functional_opt.schedules import linear_schedule

from ..helpers import make_params


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
    def takes_other_params(self) -> bool:
        """Whether the arguments fit params of any paths and shapes, not only those of the table."""
        return not self.name.startswith(("groups", "qk_clip", "normuon-blocks"))

    @property
    def pace(self) -> float:
        """How far params are to move for an update of 1: what is not an optimizer would take them past zero."""
        return 1.0 if self.reference else 0.01

    @property
    def numbers(self) -> dict[str, float]:
        """The arguments of `vary` and their values, by default those of the signature."""
        own = inspect.signature(self.make).parameters
        return {
            name: as_given(self.args[name] if name in self.args else own[name].default) for name in self.vary.split()
        }


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


@fo.transformation
class with_a_loss(fo.GradientTransformation):
    """Gives a transformation a loss at every step, half the squared norm of its gradients and 1."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        loss = 1 + 0.5 * fo.global_norm(updates) ** 2
        return self.inner.update(updates, state, params, **(extra | {"value": loss}))


@fo.transformation
class with_an_objective(fo.GradientTransformation):
    """Gives a line search half the squared norm of the params to lower, in the direction of minus the gradients."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        def f(w):
            return 0.5 * fo.global_norm(w) ** 2

        own = {"value": f(params), "grad": params, "value_fn": f}
        return self.inner.update(jax.tree.map(lambda u: -u, updates), state, params, **(extra | own))


@fo.transformation
class with_a_parabola(fo.GradientTransformation):
    """Gives a line search a loss that is 0 at the params, has the gradients there, and the Hessian 2·I."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        updates_flat = jax.tree.leaves(updates, is_leaf=is_nothing)

        def f(w):
            return sum((term(*xs) for xs in zip(*map(there, (updates, w, params)), strict=True)), jnp.zeros([]))

        def there(tree):
            pairs = zip(updates_flat, jax.tree.leaves(tree, is_leaf=is_nothing), strict=True)
            return [x for g, x in pairs if g is not None]

        def term(g, w, start):
            g, d = (jnp.asarray(x, jnp.promote_types(jnp.result_type(x), "float32")) for x in (g, w - start))
            return jnp.sum((g.conj() * d + d.conj() * d).real)

        own = {"value": 0.0, "grad": updates, "value_fn": f}
        return self.inner.update(updates, state, params, **(extra | own))


def matrices(tree: Any) -> Any:
    """A mask: True for every leaf with two axes."""
    return jax.tree.map(lambda x: np.ndim(x) > 1, tree)


def by_rank(tree: Any) -> Any:
    """Labels: "matrix" or "vector"."""
    return jax.tree.map(lambda x: "matrix" if np.ndim(x) > 1 else "vector", tree)


def halving(count: Any) -> Any:
    """A schedule that is a plain function."""
    return 0.5**count


def halved(updates: Any, params: Any) -> Any:
    """For `stateless`, on whole trees."""
    return jax.tree.map(lambda g: -0.5 * g, updates)


def halved_leaf(g: Any, w: Any) -> Any:
    """For `stateless_with_tree_map`."""
    return -0.5 * g


def late(step: Any) -> Any:
    """For what runs at some steps only: all but every third."""
    return step % 3 > 0


def selective(o: Any, rate: float, mask: Any) -> Any:
    if o is optax and callable(mask):
        mask = mask(make_params())
    return o.selective_transform(o.adam(rate), freeze_mask=mask)


def monitors(decay: float) -> Any:
    return fo.monitor({"norm": fo.global_norm, "mean": fo.measure_with_ema(fo.global_norm, decay)})


def injected(o: Any, **numbers: Any) -> Any:
    """Numbers in the state, and a schedule for what otherwise has none."""
    return o.inject_hyperparams(o.adam)(b2=moving_decay, **numbers)


def moving_decay(count: Any) -> Any:
    return 0.9 + 0.01 * halving(count)


def looking_ahead(o: Any, rate: float, slow: float, k: int = 4, **options: Any) -> Any:
    """Optax keeps the slow params with the params; here they go into the state."""
    if o is fo:
        return fo.lookahead(fo.adam(rate), k, slow, **options)
    inner = optax.lookahead(optax.adam(rate), k, slow, **options)

    def init(params):
        return inner.init(optax.LookaheadParams.init_synced(params)), params

    def update(updates, state, params=None):
        both_params = optax.LookaheadParams(params, state[1])
        updates, inner_state = inner.update(updates, state[0], both_params)
        return updates.fast, (inner_state, optax.apply_updates(state[1], updates.slow))

    return optax.GradientTransformation(init, update)


def split(o: Any, d: float) -> Any:
    return (o if o is fo else o.contrib).split_real_and_imaginary(o.trace(d))


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


def dozat(learning_rate: float, b1=0.9, b2=0.999, eps=1e-7, schedule_decay=0.004) -> Any:
    return fo.chain(fo.scale_by_nadam(b1, b2, eps, schedule_decay), fo.scale_by_learning_rate(learning_rate))


def muon_matrices(o: Any, **args: Any) -> Any:
    if o is fo:
        return fo.chain(fo.masked(fo.scale_by_muon(**args), matrices), fo.scale(0.02))
    last_two = functools.partial(jax.tree.map, lambda _: optax.contrib.MuonDimensionNumbers())
    rule = optax.contrib.scale_by_muon(**args, weight_dimension_numbers=last_two)
    return optax.chain(optax.masked(rule, matrices), optax.scale(0.02))


def averaged(o: Any, learning_rate: float, **args: Any) -> Any:
    wrap = fo.schedule_free if o is fo else optax.contrib.schedule_free
    return wrap(o.sgd(learning_rate), learning_rate, **args)
