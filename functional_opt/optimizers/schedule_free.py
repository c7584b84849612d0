"""Schedule-free learning: an average of the iterates instead of a decaying learning rate."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import Tree, cast_like, copy_of, map_leaves, widen_params, widen_tree
from ..core.ranges import Count, Decay, DType, NonNegative, Range, Scalar
from ..core.schedule import Rate, rate_at
from ..core.slots import Counter, Number, Params, States
from ..core.transformation import GradientTransformation, Transformation, increment, needs_params, transformation
from ..schedules import warmup_constant_schedule
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.wrapping.evaluate import eval_params, where_kept
from .rmsprop import scale_by_rms
from .sgd import sgd

Weight = Annotated[Scalar, Range("(0, 1]")]


class ScheduleFreeState(NamedTuple):
    """`b1`: as given. `weight_sum`: sum of the averaging weights. `step_count`: steps done, plus 1.

    `max_lr`: the largest learning rate so far. `base_optimizer_state`: the inner state. `z`: the params that the
    inner optimizer updates.
    """

    b1: Number
    weight_sum: Number
    step_count: Counter
    max_lr: Number
    base_optimizer_state: States
    z: Params

    def eval_params(self, params: Tree) -> Tree:
        """Returns the averaged params. See `functional_opt.eval_params`."""
        return where_kept(lambda y, z: (y - (1 - self.b1) * z) / self.b1, params, self.z)


@transformation
class schedule_free(GradientTransformation):
    """Moves z by an optimizer and averages it: x ← (1 − c)·x + c·z; the params are y = b1·x + (1 − b1)·z.

    c = a / Σa, the sum over all steps so far, with a = (largest learning rate so far)^weight_lr_power. Both include
    the current step. c is 0 as long as all learning rates were 0. Gradients are taken at the params y. Evaluate x,
    which `schedule_free_eval_params` returns.

    Args:
        base_optimizer: a gradient transformation that has no momentum.
        learning_rate: the base optimizer's learning rate, which weights the average: a number ≥ 0, a schedule, or a
            function of the count, which starts at 0 as for any optimizer.
        b1: share of x in the params, in (0, 1].
        weight_lr_power: exponent of the weights, ≥ 0; 0 weights all steps equally.
        state_dtype: storage dtype of z. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    Defazio et al. 2024, arXiv:2405.15682.

    >>> from functional_opt import apply_updates
    >>> tx, w = schedule_free(sgd(1.0), 1.0, b1=0.5), jnp.array(1.0)
    >>> state = tx.init(w)
    >>> for _ in range(2):
    ...     u, state = tx.update(jnp.array(1.0), state, w)
    ...     w = apply_updates(w, u)
    >>> w.item(), state.z.item(), schedule_free_eval_params(state, w).item()
    (-0.75, -1.0, -0.5)

    Differs from Optax, which weights a step by the learning rate of the next step. Here, as in the authors' code
    (facebookresearch/schedule_free), a step is weighted by its own. Sums are float32 whatever the params' dtype. z
    starts as a copy of the params, or as zeros if these are only shapes.
    """

    base_optimizer: Transformation
    learning_rate: Rate
    b1: Weight = 0.9
    weight_lr_power: NonNegative = 2.0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return ScheduleFreeState(
            b1=jnp.array(self.b1, float),
            weight_sum=jnp.zeros([]),
            step_count=jnp.ones([], jnp.int32),
            max_lr=jnp.zeros([]),
            base_optimizer_state=self.base_optimizer.init(params),
            z=copy_of(params, self.state_dtype),
        )

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)

        def pure(updates, state, params):
            return self._update(updates, state, params, extra)

        return kernels.step(self, pure, updates, state, params)

    def _update(self, updates, state, params, extra):
        max_lr, total, c, of_u = self._weights(state)
        moves, inner = self.base_optimizer.update(
            widen_tree(updates, "updates"), state.base_optimizer_state, widen_params(params), **extra
        )

        def leaf(u, z, y):
            # b1·x + (1 − b1)·z at the new x and z, minus y, written without x and without terms as large as y
            return c * (z - y) + of_u * u, z + u

        updates, z = map_leaves(leaf, moves, state.z, read=(params,), params=params)
        scalars = {"b1": self.b1, "weight_sum": total, "max_lr": max_lr}
        scalars = {name: cast_like(x, getattr(state, name)) for name, x in scalars.items()}
        return updates, ScheduleFreeState(
            step_count=increment(state.step_count), base_optimizer_state=inner, z=z, **scalars
        )

    def as_kernel(self, state, params):
        links = kernels.operations_of(self.base_optimizer, state.base_optimizer_state, params)
        scalars = kernels.ScheduleFreeScalars(*self._weights(state)[2:])
        return None if links is None else (*links, kernels.KernelOp("schedule_free", scalars, (state.z,)))

    def _weights(self, state):
        """Returns the largest rate, the sum of the weights, this step's share of it, and the weight of z's update."""
        max_lr = jnp.maximum(state.max_lr, rate_at(self.learning_rate, state.step_count - 1))
        weight = max_lr**self.weight_lr_power
        total = state.weight_sum + weight
        c = weight / jnp.where(total == 0, 1.0, total)
        return max_lr, total, c, 1 - self.b1 * (1 - c)


def schedule_free_eval_params(state: Any, params: Tree) -> Tree:
    """Returns the averaged params x, for evaluation and saving, in the dtype of the params.

    Args:
        state: a `ScheduleFreeState`, or any state that contains one, or several for different leaves.
        params: the params being trained.

    Raises ValueError for a state that contains none.
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, ScheduleFreeState))
    found = [x for x in leaves if isinstance(x, ScheduleFreeState)]
    if not found:
        raise ValueError(f"schedule_free_eval_params needs a state with a ScheduleFreeState in it, got {type(state)}")
    return eval_params(found, params)


def _warmed_up(learning_rate: Any, warmup_steps: Any) -> Any:
    return learning_rate if warmup_steps is None else warmup_constant_schedule(0.0, learning_rate, warmup_steps)


@checked
def schedule_free_sgd(
    learning_rate: Rate = 1.0,
    warmup_steps: Count | None = None,
    b1: Weight = 0.9,
    weight_decay: Rate | None = None,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: DType | None = None,
) -> schedule_free:
    """Gradient descent, schedule-free. See `schedule_free`, and `schedule_free_adamw` for the arguments.

    Defazio et al. 2024, arXiv:2405.15682.

    >>> schedule_free_sgd(0.5)
    schedule_free(chain(identity(), scale_by_learning_rate(0.5)), 0.5)
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    base = sgd(rate) if weight_decay is None else chain(add_decayed_weights(weight_decay), sgd(rate))
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)


@checked
def schedule_free_adamw(
    learning_rate: Rate = 0.0025,
    warmup_steps: Count | None = None,
    b1: Weight = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: DType | None = None,
) -> schedule_free:
    """AdamW, schedule-free: z ← z − learning_rate · (g / (√v̂ + eps) + weight_decay · y). See `schedule_free`.

    Args:
        learning_rate: a number ≥ 0; without warm-up also a schedule or a function of the count.
        warmup_steps: number of steps over which the learning rate rises from 0; None for no warm-up.
        b2, eps: as in `scale_by_adam`.
        weight_decay: as in `add_decayed_weights`.

    Defazio et al. 2024, arXiv:2405.15682.

    >>> schedule_free_adamw().base_optimizer.transforms[0]
    scale_by_rms(decay=0.999, eps_in_sqrt=False, bias_correction=True)
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    base = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True, state_dtype=state_dtype),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)
