"""shard: the state, and the work on it, split over an axis of a mesh of devices (ZeRO-1)."""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import core
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ...core.checks import Static
from ...core.leaves import Tree, is_nothing, paths
from ...core.model_trees import names as leaf_names
from ...core.paths import PathRules
from ...core.ranges import Convert, Count
from ...core.sharding import reshard
from ...core.transformation import GradientTransformation, Transformation, transformation
from ...placement.like import placed_like
from ...placement.mesh import AnyMesh, axis_type, mesh_of, spec_of, whole_spec
from ...placement.shardings import is_numeric, of_arrays, state_shardings, state_types, without_tracers
from ...placement.split import split_spec

AUTO, WHOLE = "auto", "whole"


def _axes(name: str, x: Any) -> str | tuple[str, ...]:
    """Returns one mesh axis as a string and several as a tuple."""
    found = (x,) if isinstance(x, str) else tuple(x) if isinstance(x, tuple | list) else ()
    if not found or not all(isinstance(axis, str) and axis for axis in found) or len(set(found)) < len(found):
        raise TypeError(f"{name} must be the name of a mesh axis, or a tuple of different names, got {x!r}")
    return found[0] if len(found) == 1 else found


def _rules(name: str, x: Any) -> PathRules:
    rules = x if isinstance(x, PathRules) else PathRules(x) if isinstance(x, dict) else None
    if rules is None:
        raise TypeError(f"{name} must be a dict from path patterns to axes, got {x!r}")
    for pattern, axis in rules.rules:
        if axis not in (AUTO, WHOLE) and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise TypeError(
                f'{name}[{pattern!r}] must be the axis of the leaf to split, "whole" or "auto", got {axis!r}'
            )
    return rules


@transformation
class shard(GradientTransformation):
    """Splits the state of a transformation, and the work on it, over an axis of the mesh that the params lie on.

    This is ZeRO's first stage. A slot is placed as its leaf is, and one of its axes is split over the mesh axis as
    well: the first one that is not split yet and that its devices divide. Each device updates its part of the slots;
    the updates are then gathered, and come out placed as the params are. The numbers are those of `inner`.

    `init` makes each device's part there, in `jax.jit` too. On automatic axes jit does not say how params are split
    over other axes; give it `out_shardings=state_shardings(tx, params)`, and the state is split over these as well.

    Args:
        inner: the transformation.
        axis: the name of the mesh axis, or a tuple of names. A leaf that is split over one of them already is not
            split over it again.
        min_size: the least number of elements of a leaf, or of another array of the state, to split.
        memory_kind: "pinned_host" keeps what is split in the memory of the host, and moves it to the device and back
            at each step.
        rules: by path pattern, the axis of a leaf to split, "whole" for a leaf not to split, or "auto". Other leaves
            are "auto".

    Raises ValueError without a mesh, for a mesh without the axis, for a rule that its devices do not divide, and
    inside a `shard_map` over the axis. `describe` and `explain` say which leaves cannot be split.

    Rajbhandari et al. 2020, arXiv:1910.02054; Xu et al. 2020, arXiv:2004.13336.

    >>> from functional_opt import adam
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> with jax.set_mesh(mesh):
    ...     params = {"w": jnp.ones((64, 32))}
    ...     state = shard(adam(1e-3)).init(params)
    >>> tuple(state[0].mu["w"].sharding.spec)
    ('data', None)
    """

    inner: Transformation
    axis: Static[Annotated[Any, Convert(_axes, "name of a mesh axis")]] = "data"
    min_size: Static[Count] = 1024
    memory_kind: Static[Literal["pinned_host"] | None] = None
    rules: Static[Annotated[Any, Convert(_rules, "path rules")] | None] = None

    def init(self, params):
        leaves = jax.tree.leaves(params)
        if not any(map(is_numeric, leaves)):
            return self.inner.init(params)
        mesh = self._mesh(params)
        traced = [x for x in leaves if isinstance(x, core.Tracer)]
        if not traced:
            return _made(self.inner.init, params, state_shardings(self, params, mesh))
        if self._is_explicit(params):
            return self._typed(params, mesh)
        unknown = [whole_spec(x) for x in leaves]
        types = state_types(lambda p: without_tracers(self)._typed(p, mesh), params, mesh, unknown)
        return jax.tree.map(functools.partial(_constrained, mesh, traced[0]), self.inner.init(params), types)

    def update(self, updates, state, params=None, **extra):
        if all(is_nothing(x) for x in jax.tree.leaves(updates)):
            return self.inner.update(updates, state, params, **extra)
        self._refuse_manual(updates)
        here = jax.tree.map(lambda x: _moved(x, jax.memory.Space.Device), state) if self.memory_kind else state
        run = self._explicitly if self._is_explicit(updates) else self._automatically
        updates, new = run(updates, here, params, **extra)
        if self.memory_kind:
            new = jax.tree.map(lambda x, old: _moved(x, jax.typeof(old).memory_space), new, state)
        return updates, new

    def doubts(self, params):
        leaves, mesh = jax.tree.leaves(params, is_leaf=is_nothing), mesh_of(params)
        if mesh is None:
            return [""] * len(leaves)
        split = self._split_specs(params, mesh, [spec_of(x) for x in jax.tree.leaves(params)])
        found = iter(zip(jax.tree.leaves(params), split, strict=True))
        doubts = []
        for x in leaves:
            spec = None if is_nothing(x) else next(found)[1]
            shape = getattr(x, "shape", ())
            whole = not is_nothing(x) and spec is None and math.prod(shape) >= self.min_size
            says = f"no axis of PATH, of shape {shape}, can be split over {self._devices(mesh)} devices"
            doubts.append(f"{says}: its state lies whole on each of them" if whole else "")
        return doubts

    # Auto: the compiler knows where arrays lie

    def _automatically(self, updates: Tree, state: Any, params: Tree, **extra: Any) -> tuple[Tree, Any]:
        like = updates if params is None else params
        new, after = self.inner.update(updates, self._as_worked_on(state, like), params, **extra)
        leaves, treedef = jax.tree.flatten(new, is_leaf=is_nothing)
        new = treedef.unflatten(map(_like, leaves, treedef.flatten_up_to(like)))
        return new, jax.tree.map(_like, after, state)

    def _as_worked_on(self, state: Any, like: Tree) -> Any:
        """Returns the state with arrays whole that are only stored split, since `inner` mixes their elements."""
        mesh = mesh_of(like)
        if mesh is None:
            return state
        unknown = [whole_spec(x) for x in jax.tree.leaves(like)]
        init = without_tracers(self.inner).init
        types = state_types(lambda p: init(self._split(p, p, mesh)), like, mesh, unknown)

        def leaf(x: Any, own: Any) -> Any:
            whole = not any(own.sharding.spec) and self._is_split(x)
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec())) if whole else x

        return jax.tree.map(leaf, state, types)

    # Explicit: types know

    def _typed(self, params: Tree, mesh: AnyMesh) -> Any:
        state = self.inner.init(self._split(params, params, mesh))
        whole = [path for path, rule in zip(paths(params), self._rules(params), strict=True) if rule == WHOLE]

        def stored(path: Any, x: Any) -> Any:
            if not self._is_split(x) or any(map(jax.tree_util.keystr(path).endswith, whole)):
                return x
            spec = split_spec(x.shape, spec_of(x), self._names, mesh.shape)
            x = x if spec is None else _resharded(x, spec)
            return _moved(x, jax.memory.Space.Host) if self.memory_kind else x

        return jax.tree_util.tree_map_with_path(stored, state)

    def _explicitly(self, updates: Tree, state: Any, params: Tree, **extra: Any) -> tuple[Tree, Any]:
        like = updates if params is None else params
        mesh, treedef = self._mesh(like), jax.tree.structure(updates, is_leaf=is_nothing)
        whole = [spec_of(x) for x in treedef.flatten_up_to(like)]

        def given(x: Any) -> Any:
            """Returns a tree like the params split as they are, and a function of the params for split ones."""
            if jax.tree.structure(x, is_leaf=is_nothing) == treedef:
                return self._split(x, like, mesh)
            return (lambda p, *args, **kwargs: x(restored(p), *args, **kwargs)) if callable(x) else x

        def restored(tree: Tree) -> Tree:
            return treedef.unflatten(map(_resharded, treedef.flatten_up_to(tree), whole))

        parts = self._split(like, like, mesh)
        own = jax.eval_shape(without_tracers(self.inner).init, parts)
        inner = jax.tree.map(lambda x, to: _resharded(x, spec_of(to)), state, own)
        extra = {name: given(x) for name, x in extra.items()}
        new, after = self.inner.update(
            self._split(updates, like, mesh), inner, None if params is None else parts, **extra
        )
        return restored(new), jax.tree.map(lambda x, to: _resharded(x, spec_of(to)), after, state)

    # Specs

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.axis,) if isinstance(self.axis, str) else self.axis

    def _is_explicit(self, tree: Tree) -> bool:
        return any(axis_type(tree, name) == AxisType.Explicit for name in self._names)

    def _mesh(self, params: Tree) -> AnyMesh:
        mesh = mesh_of(params)
        if mesh is None:
            raise ValueError(
                f"shard(axis={self.axis!r}) needs a mesh: place the params on one (jax.device_put with a "
                "NamedSharding), or call it under jax.set_mesh(mesh)"
            )
        for name in self._names:
            if name not in mesh.shape:
                raise ValueError(f"shard: the mesh has no axis {name!r}; its axes are {', '.join(mesh.shape)}")
        self._refuse_manual(params)
        return mesh

    def _refuse_manual(self, tree: Tree) -> None:
        for name in self._names:
            if axis_type(tree, name) == AxisType.Manual:
                raise ValueError(f"shard(axis={self.axis!r}) cannot be used in a shard_map over {name!r}")

    def _devices(self, mesh: AnyMesh) -> int:
        """Returns the number of parts that a leaf is split into."""
        return math.prod(mesh.shape[name] for name in self._names)

    def _split(self, tree: Tree, like: Tree, mesh: AnyMesh) -> Tree:
        """Returns the leaves split into the parts that are worked on, as the placement of `like` allows."""
        leaves, treedef = jax.tree.flatten(like)
        specs = self._split_specs(like, mesh, [spec_of(x) for x in leaves])
        split = [
            x if s is None else _resharded(x, s) for x, s in zip(treedef.flatten_up_to(tree), specs, strict=True)
        ]
        return treedef.unflatten(split)

    def _split_specs(self, params: Tree, mesh: AnyMesh, specs: list[PartitionSpec]) -> list[PartitionSpec | None]:
        """Returns the spec of each leaf's part; None for a leaf that stays as it is."""
        places = zip(jax.tree.leaves(params), specs, self._rules(params), strict=True)
        return [self._split_spec(i, params, x, spec, rule, mesh) for i, (x, spec, rule) in enumerate(places)]

    def _rules(self, params: Tree) -> list[Any]:
        leaves = jax.tree.leaves(params)
        if self.rules is None:
            return [AUTO] * len(leaves)
        treedef = jax.tree.structure(params)
        return treedef.flatten_up_to(self.rules.resolve(params, AUTO))

    def _split_spec(self, i: int, params: Tree, x: Any, spec: Any, rule: Any, mesh: AnyMesh) -> PartitionSpec | None:
        shape = getattr(x, "shape", ())  # a leaf may also be a number, or a function of a model
        if rule == WHOLE or rule == AUTO and math.prod(shape) < self.min_size:
            return None
        if rule == AUTO:
            return split_spec(shape, spec, self._names, mesh.shape)
        axis = range(len(shape))[rule] if -len(shape) <= rule < len(shape) else None
        found = None if axis is None else split_spec(shape, spec, self._names, mesh.shape, axis)
        if found is None:
            where = f"axis {rule} of {leaf_names(params)[i]}, of shape {shape},"
            raise ValueError(f"rules: {where} cannot be split over {self._devices(mesh)} devices")
        return found

    def _is_split(self, x: Any) -> bool:
        """Returns whether an array of the state is large enough to be split."""
        return jnp.size(x) >= self.min_size and jnp.issubdtype(x.dtype, jnp.number)


def _made(init: Callable, params: Tree, shardings: Tree) -> Any:
    """Returns the state made by `init`, each part of it on its device."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
        return jax.tree.map(jax.device_put, init(params), shardings)
    run, arrays = of_arrays(init, params)
    return jax.jit(run, out_shardings=shardings)(arrays)


def _like(x: Any, like: Any) -> Any:
    return x if is_nothing(x) else placed_like(jnp.asarray(x), like)


def _resharded(x: Any, spec: PartitionSpec) -> Any:
    return x if is_nothing(x) else reshard(x, spec)


def _moved(x: Any, space: Any) -> Any:
    """Returns an array in a memory space of JAX: the device's or the host's."""
    return x if is_nothing(x) or jax.typeof(x).memory_space == space else jax.device_put(x, space)


def _constrained(mesh: AnyMesh, param: Any, x: Any, aval: Any) -> Any:
    """Returns an array split as its type would be on explicit axes; its other axes lie as the compiler wants."""
    spec = [PartitionSpec.UNCONSTRAINED if entry is None else entry for entry in aval.sharding.spec]
    if any(entry is not PartitionSpec.UNCONSTRAINED for entry in spec):
        x, _ = jax.lax.optimization_barrier((x, param))  # jit only knows the devices of arguments that are used
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
    return _moved(x, aval.memory_space)
