"""Splits the axes of arrays over more axes of a mesh."""

import math
from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

from .mesh import axis_names, entry_of


def split_spec(
    shape: Sequence[int], spec: PartitionSpec, names: Sequence[str], sizes: Mapping[str, int], axis: int | None = None
) -> PartitionSpec | None:
    """Returns the spec with one array axis split over more mesh axes too, or None if they divide no array axis.

    Of the mesh axes, those that the spec has already are left as they are. The array axis is the first one that is
    not split yet, or else the first one that can be split further.

    Args:
        shape, spec: of the array; the spec has an entry for each axis.
        names: mesh axes.
        sizes: of all mesh axes.
        axis: the array axis to split, if it is given.

    >>> tuple(split_spec((3, 8), PartitionSpec(None, "model"), ["data"], {"data": 4, "model": 2}))
    (None, ('model', 'data'))
    """
    used = {name for entry in spec for name in axis_names(entry)}
    more = tuple(name for name in names if name not in used)
    if not more:
        return spec
    n = math.prod(sizes[name] for name in more)

    def fits(i: int) -> bool:
        return shape[i] > 0 and shape[i] % (n * math.prod(sizes[name] for name in axis_names(spec[i]))) == 0

    places = sorted(range(len(shape)), key=lambda i: (bool(axis_names(spec[i])), i)) if axis is None else [axis]
    place = next((i for i in places if fits(i)), None)
    if place is None:
        return None
    return PartitionSpec(*spec[:place], entry_of((*axis_names(spec[place]), *more)), *spec[place + 1 :])
