"""The mesh that a tree of arrays lies on, and the specs of its leaves."""

from typing import Any

import jax
from jax import core
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ..core.leaves import Tree, paths

AnyMesh = Mesh | AbstractMesh


def sharding_of(x: Any) -> NamedSharding | None:
    """Returns the sharding of a leaf on a mesh: that in its type while it is traced, else its own.

    Types have the mesh, but the spec of its explicit axes only.
    """
    sharding: Any = jax.typeof(x).sharding if isinstance(x, core.Tracer) else getattr(x, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and not sharding.mesh.empty else None


def mesh_of(tree: Tree) -> AnyMesh | None:
    """Returns the mesh that the leaves lie on, else that of `jax.set_mesh`, else None.

    Raises ValueError, naming two leaves, if they lie on meshes of different axes.
    """
    found: dict[Any, tuple[str, AnyMesh]] = {}
    for path, x in zip(paths(tree), jax.tree.leaves(tree), strict=True):
        if (sharding := sharding_of(x)) is not None:
            found.setdefault(tuple(sharding.mesh.shape.items()), (path, sharding.mesh))
    if len(found) > 1:
        (one, a), (other, b) = [*found.values()][:2]
        raise ValueError(
            f"params{one} lies on a mesh of {dict(a.shape)}, and params{other} on one of {dict(b.shape)}: place all "
            "params on the same mesh"
        )
    if found:
        return next(iter(found.values()))[1]
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def axis_type(tree: Tree, axis: str) -> AxisType | None:
    """Returns the type of a mesh axis in the types of the leaves: None if no leaf's type has a mesh with it."""
    for x in jax.tree.leaves(tree):
        sharding = sharding_of(x)
        if sharding is not None and axis in sharding.mesh.shape:
            return sharding.mesh.axis_types[sharding.mesh.axis_names.index(axis)]
    return None


def spec_of(x: Any) -> PartitionSpec:
    """Returns the spec of a leaf with an entry for each axis; all None for a leaf that lies on no mesh."""
    sharding = sharding_of(x)
    return whole_spec(x) if sharding is None else full_spec(sharding.spec, len(x.shape))


def whole_spec(x: Any) -> PartitionSpec:
    """Returns the spec of a leaf that is not split; it may also be a number, or a function of a model."""
    return PartitionSpec(*[None] * len(getattr(x, "shape", ())))


def full_spec(spec: PartitionSpec, ndim: int) -> PartitionSpec:
    """Returns a spec with an entry for each axis. Jit takes specs of other lengths for different ones."""
    return PartitionSpec(*spec, *[None] * (ndim - len(spec)))


def short_spec(spec: PartitionSpec) -> PartitionSpec:
    """Returns a spec without entries for the last axes that are not split."""
    entries = [*spec]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def axis_names(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes in one entry of a spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def entry_of(names: tuple[str, ...]) -> Any:
    """Returns mesh axes as one entry of a spec, as types have it; the inverse of `axis_names`."""
    return names if len(names) > 1 else names[0] if names else None


def all_explicit(mesh: AnyMesh) -> AbstractMesh:
    """Returns an abstract mesh of the same axes on which types carry specs."""
    sizes, names = tuple(mesh.shape.values()), tuple(mesh.shape)
    return AbstractMesh(sizes, names, axis_types=(AxisType.Explicit,) * len(names))
