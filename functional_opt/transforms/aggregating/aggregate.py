"""aggregate: means or sums of gradients over devices."""

from typing import Literal

import jax

from ...core.checks import Static
from ...core.leaves import Tree, map_leaves, map_with_path
from ...core.sharding import varying_axes
from ...core.transformation import EmptyState, GradientTransformation, transformation


@transformation
class aggregate(GradientTransformation):
    """Averages or sums the updates over a named axis: u = Σᵢ gᵢ / n or Σᵢ gᵢ.

    For use inside `jax.shard_map`, `jax.pmap` or `jax.vmap(axis_name=...)`, where each device has its own
    gradient. Under jit's automatic sharding gradients are global already. 16-bit leaves are added in float32. Place
    it before anything that is not linear, such as clipping.

    Args:
        axis_name: the axis, or a tuple of them.
        op: "mean" or "sum".

    Raises ValueError if the axis is not bound, or if `jax.shard_map` has summed the gradients already, which is its
    default for params that are the same on all devices.

    >>> tx = aggregate("device")
    >>> step = lambda g: tx.update(g, tx.init(g))[0]
    >>> jax.vmap(step, axis_name="device")(jax.numpy.array([1.0, 3.0])).tolist()
    [2.0, 2.0]
    """

    axis_name: Static[str | tuple[str, ...]]
    op: Static[Literal["mean", "sum"]] = "mean"

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        reduce = jax.lax.pmean if self.op == "mean" else jax.lax.psum
        try:
            self._refuse_sums(updates)
            return map_leaves(lambda g: reduce(g, self.axis_name), updates, params=params), state
        except NameError as e:
            raise ValueError(
                f"aggregate: no axis {self.axis_name!r} is bound here; call update inside "
                f"jax.shard_map or jax.vmap(..., axis_name={self.axis_name!r})"
            ) from e

    def _refuse_sums(self, updates: Tree) -> None:
        """Raises ValueError for updates that are the same on all devices, because `shard_map` has summed them."""
        axes = (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name
        tracked = {axis for axis in axes if axis in varying_axes(jax.lax.axis_index(axis))}

        def check(path, g):
            if missing := tracked - varying_axes(g):
                axis = sorted(missing)[0]
                raise ValueError(
                    f"aggregate: updates{path()} is the same on all devices of axis {axis!r}: jax.shard_map sums the "
                    "gradient of replicated params by itself. Leave aggregate out, or differentiate by params "
                    f"that vary: jax.lax.pcast(params, {axis!r}, to='varying')"
                )

        map_with_path(check, updates)
