"""state_shardings: where the state of an optimizer lies when its params lie on a mesh."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax import core
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ..core.checks import checked
from ..core.leaves import Tree
from ..core.transformation import Transformation
from .mesh import AnyMesh, all_explicit, mesh_of, short_spec, spec_of


@checked
def state_shardings(tx: Transformation, params: Tree, mesh: Mesh | AbstractMesh | None = None) -> Tree:
    """Returns the shardings of the state of these params, in the structure of the state.

    A slot is split as its leaf is along the axes that it shares with it: `mu` along all, a row statistic of Adafactor
    along the rows, the memory of L-BFGS along all after its own. Matrices that have owners, such as Shampoo's, are
    split over all devices. Counts, keys and what else mixes the elements of a leaf lie whole on every device, unless
    `shard` splits them. Nothing is computed.

    Use it for the first state, `jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)`, since jit would
    put a state of zeros whole on every device, and to restore a checkpoint onto another mesh.

    Args:
        tx: any transformation.
        params: arrays on a mesh, or `jax.ShapeDtypeStruct`s with a sharding. A leaf that lies on no mesh counts as
            replicated.
        mesh: the mesh of the result. If None, that of the params, or else that of `jax.set_mesh`.

    Raises ValueError if there is no mesh, or if the params lie on different ones or on another one than `mesh`.

    Differs from Optax's `tree_map_params`, which gives each slot the sharding of its leaf, whatever its shape.

    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> w = jax.ShapeDtypeStruct((4, 2), "float32", sharding=NamedSharding(mesh, P(None, "data")))
    >>> from functional_opt import sm3
    >>> [tuple(s.spec) for s in jax.tree.leaves(state_shardings(sm3(0.1), {"w": w})[0].mu)]
    [(None,), ('data',)]
    """
    own = mesh_of(params)
    mesh = cast(Any, own) if mesh is None else mesh
    if mesh is None:
        raise ValueError(
            "state_shardings needs a mesh: place the params on one (jax.device_put with a NamedSharding), pass "
            "mesh=, or call it under jax.set_mesh(mesh)"
        )
    if own is not None and any(mesh.shape.get(name) != n for name, n in own.shape.items()):
        raise ValueError(
            f"mesh has the axes {dict(mesh.shape)}, but the params lie on a mesh of {dict(own.shape)}; place the "
            "params on that mesh first"
        )
    traced = any(isinstance(x, core.Tracer) for x in jax.tree.leaves(params))
    if traced and AxisType.Explicit not in mesh.axis_types:
        raise ValueError("state_shardings cannot see where params lie while they are traced: call it outside of jit")
    if isinstance(mesh, AbstractMesh) and not traced:
        current = jax.sharding.get_mesh()
        mesh = current if not current.empty and current.shape == mesh.shape else mesh

    full = AxisType.Explicit in mesh.axis_types

    def sharding(aval: Any) -> NamedSharding:
        host = aval.memory_space == jax.memory.Space.Host
        spec = aval.sharding.spec if full else short_spec(aval.sharding.spec)  # as the results of jit have them
        return NamedSharding(mesh, spec, memory_kind="pinned_host" if host else None)

    return jax.tree.map(sharding, state_types(tx.init, params, mesh, [spec_of(x) for x in jax.tree.leaves(params)]))


def state_types(init: Callable[[Tree], Any], params: Tree, mesh: AnyMesh, specs: Sequence[PartitionSpec]) -> Tree:
    """Returns the types of what `init` makes of params with these specs, as if all axes of the mesh were explicit.

    JAX derives the spec of every slot from those of the params while it traces `init`. Leaves that are not arrays are
    passed to `init` as they are.
    """
    typed = all_explicit(mesh)
    run, arrays = of_arrays(init, params)
    specs = [spec for x, spec in zip(jax.tree.leaves(params), specs, strict=True) if is_numeric(x)]
    shapes = [
        jax.ShapeDtypeStruct(np.shape(x), jax.numpy.result_type(x), sharding=NamedSharding(typed, spec))
        for x, spec in zip(arrays, specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(typed):
        jaxpr, state = jax.make_jaxpr(run, return_shape=True)(shapes)
    return jax.tree.unflatten(jax.tree.structure(state), jaxpr.out_avals)


def is_numeric(x: Any) -> bool:
    """Returns whether a leaf is an array, a shape or a number, not a function of a model and the like."""
    return hasattr(x, "dtype") or isinstance(x, int | float | complex)


def of_arrays(init: Callable[[Tree], Any], params: Tree) -> tuple[Callable[[list], Any], list]:
    """Returns `init` as a function of the numeric leaves of the params, to be traced, and these leaves."""
    leaves, treedef = jax.tree.flatten(params)

    def run(arrays: list) -> Any:
        given = iter(arrays)
        return init(treedef.unflatten([next(given) if is_numeric(x) else x for x in leaves]))

    return run, [x for x in leaves if is_numeric(x)]


def without_tracers(tx: Any) -> Any:
    """Returns a transformation with zeros for numbers that are traced, which `init` only fills arrays with."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, core.Tracer) else x, tx)
