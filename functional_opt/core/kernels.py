"""The interface to kernels: how a transformation describes its work, and the calls that a kernel may serve.

The core contains no kernels. `functional_opt.native` installs its own here when the package is imported; until then,
and wherever they do not apply, XLA does the work.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from .leaves import Tree


class StoredSlot(NamedTuple):
    """One leaf of a slot as it is stored.

    data: an array of numbers or of codes.
    kind: its dtype's name, or the format of its codes.
    shape: the shape of the numbers.
    scale: the largest |x| in each block of a row, with the blocks on the last axis; None if `data` holds the numbers.
    """

    data: Any
    kind: str
    shape: tuple[int, ...]
    scale: jax.Array | None = None

    @classmethod
    def plain(cls, x: Any) -> "StoredSlot":
        """Describes an array that holds the numbers themselves."""
        return cls(x, str(getattr(x, "dtype", None)), np.shape(x))


class CodedSlots(NamedTuple):
    """A tree of slots stored as codes; `describe(x, scale)` returns the `StoredSlot` of a leaf and its scale."""

    data: Tree
    scales: Tree
    describe: Callable[[Any, Any], StoredSlot]


class KernelOp(NamedTuple):
    """One elementwise operation on the updates, named as in `native/cpp/rules.h`.

    name: "scale", "clip", "decay", "trace", "nesterov", "adam", "nadam", "radam", "belief", "yogi", "laprop",
        "amsgrad", "adamax", "ademamix", "adan", "adopt", "lion", "rms", "rms_outside", "rss", "rss_outside",
        "adadelta", "schedule_free", "ema", "accumulate" or "gate". What follows a "gate" whose scalar is 0 is left
        out, and the update is 0.
    scalars: the numbers it reads, as float32 arrays or Python numbers, computed by the same expressions as in
        `update`; a NamedTuple such as `AdamScalars` if there are several.
    slots: the trees of the state that it reads and replaces, or `CodedSlots`.
    only: a tree of bools that selects the leaves it applies to; None for all.
    squares: for scaling by the global norm, the function from Σ|g|² of each leaf and the scalar to the factor.
    """

    name: str
    scalars: tuple = ()
    slots: tuple = ()
    only: Any = None
    squares: Callable[[Any, Any], Any] | None = None


class AdamScalars(NamedTuple):
    """The scalars of "adam", "nadam", "belief", "yogi" and "laprop", in the order of `AdamScalars` in
    `native/cpp/rules.h`. m̂ is m_weight·m + g_weight·g, and the correction is 1 − b2ᵗ.

    "radam" has two more after them: whether the step is adaptive, and by what it is rectified.
    """

    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any
    m_weight: Any
    g_weight: Any
    b2_correction: Any
    eps_root: Any
    eps: Any


class AmsgradScalars(NamedTuple):
    """The scalars of "amsgrad"; v is divided by `before` before the maximum is taken, and this by `after`."""

    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any
    b1_correction: Any
    before: Any
    after: Any
    eps_root: Any
    eps: Any


class AdamaxScalars(NamedTuple):
    """The scalars of "adamax"; `inside` and `outside` are what is added to |g| and to the maximum."""

    b1: Any
    one_minus_b1: Any
    b2: Any
    b1_correction: Any
    inside: Any
    outside: Any


class AdemamixScalars(NamedTuple):
    """The scalars of "ademamix"."""

    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any
    b3: Any
    one_minus_b3: Any
    alpha: Any
    b1_correction: Any
    b2_correction: Any
    eps_root: Any
    eps: Any


class AdanScalars(NamedTuple):
    """The scalars of "adan"; `first` is whether there was no gradient before this one."""

    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any
    b3: Any
    one_minus_b3: Any
    b1_correction: Any
    b2_correction: Any
    b3_correction: Any
    eps_root: Any
    eps: Any
    first: Any


class AdoptScalars(NamedTuple):
    """The scalars of "adopt"; `started` is whether v has a gradient in it."""

    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any
    bound: Any
    eps: Any
    started: Any
    nesterov: Any


class LionScalars(NamedTuple):
    """The scalars of "lion", in the order of `LionScalars` in `native/cpp/rules.h`."""

    b1: Any
    one_minus_b1: Any
    b2: Any
    one_minus_b2: Any


class RMSScalars(NamedTuple):
    """The scalars of "rms" and "rms_outside", in the order of `RMSScalars` in `native/cpp/rules.h`.

    The correction is 1 − decayᵗ, or 1 without bias correction.
    """

    decay: Any
    one_minus_decay: Any
    correction: Any
    eps: Any


class AdadeltaScalars(NamedTuple):
    """The scalars of "adadelta"."""

    rho: Any
    one_minus_rho: Any
    eps: Any


class AccumulateScalars(NamedTuple):
    """The scalars of "accumulate": a ← a + (g − a)·weight / total, or with `mean` 0, a ← a + g·weight / total.

    With `take` 0, a stays. The update is share·a; with `close`, the slot starts anew from 0.
    """

    take: Any
    mean: Any
    weight: Any
    total: Any
    share: Any
    close: Any


class EmaScalars(NamedTuple):
    """The scalars of "ema", which leaves the update as it is."""

    decay: Any
    one_minus_decay: Any


class ScheduleFreeScalars(NamedTuple):
    """The scalars of "schedule_free": the weights of z − y and of z's update in that of the params y."""

    toward_z: Any
    u_weight: Any


def operations_of(tx: Any, state: Any, params: Any) -> tuple[KernelOp, ...] | None:
    """Returns `tx.as_kernel(state, params)`; None if the class that defines `update` defines no `as_kernel`."""
    for cls in type(tx).__mro__:
        if "update" in vars(cls):
            return tx.as_kernel(state, params) if "as_kernel" in vars(cls) else None
    return None


def operations_in_turn(transforms: tuple, states: Any, params: Any) -> tuple[KernelOp, ...] | None:
    """Returns the operations of a chain, including those of nested chains; None if a link has none."""
    if not (isinstance(states, tuple) and len(states) == len(transforms)):
        return None
    found: list[KernelOp] = []
    for tx, state in zip(transforms, states, strict=True):
        operations = operations_of(tx, state, params)
        if operations is None:
            return None
        found += operations
    return tuple(found)


Operations = Callable[[], "tuple[KernelOp, ...] | None"]


def accumulated(
    scalars: AccumulateScalars, sums: Tree, links: tuple[KernelOp, ...] | None
) -> tuple[KernelOp, ...] | None:
    """Returns the operations that accumulate gradients in `sums` and, where a window closes, go on with `links`.

    None if there are no links for a kernel, or if sums are not float32: the state would be rounded, the update not.
    """
    if links is None or any(x.dtype != np.float32 for x in jax.tree.leaves(sums)):
        return None
    return KernelOp("accumulate", scalars, (sums,)), KernelOp("gate", (scalars.close,)), *links


class Kernels(Protocol):
    """The calls that kernels may serve."""

    def step(
        self, operations: Operations, pure: Callable, updates: Tree, state: Any, params: Tree
    ) -> tuple[Tree, Any]:
        """Returns `pure(updates, state, params)`, an update that consists of these operations."""
        ...

    def newton_schulz(self, x: jax.Array, rows: Sequence[Any], pure: Callable, in_pairs: bool) -> jax.Array:
        """Returns `pure(x, rows)`, the Newton–Schulz iteration; see the function of this name below."""
        ...


class XLA:
    """The default, without kernels: XLA compiles the function as it is."""

    def step(
        self, operations: Operations, pure: Callable, updates: Tree, state: Any, params: Tree
    ) -> tuple[Tree, Any]:
        del operations
        return pure(updates, state, params)

    def newton_schulz(self, x: jax.Array, rows: Sequence[Any], pure: Callable, in_pairs: bool) -> jax.Array:
        del in_pairs
        return pure(x, rows)


_installed: list[Kernels] = [XLA()]


def install(kernels: Kernels) -> None:
    """Makes these kernels serve all later calls, in place of any installed before."""
    _installed[:] = [kernels]


def step(tx: Any, pure: Callable, updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
    """Returns `pure(updates, state, params)`, the update of the chain `tx`, which a kernel may compute."""
    return step_of(lambda: operations_of(tx, state, params), pure, updates, state, params)


def step_of(operations: Operations, pure: Callable, updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
    """Returns `pure(updates, state, params)`, an update that consists of these operations.

    `operations` is called only where kernels may be used; None from it leaves the work to XLA.
    """
    return _installed[0].step(operations, pure, updates, state, params)


def newton_schulz(x: jax.Array, rows: Sequence[Any], pure: Callable, in_pairs: bool) -> jax.Array:
    """Returns `pure(x, rows)`, the Newton–Schulz iteration on (..., n, m), n ≤ m, which a kernel may compute.

    rows: the coefficients of each step. in_pairs: whether `pure` does two steps at a time on the Gram matrix.
    """
    return _installed[0].newton_schulz(x, rows, pure, in_pairs)


# New params that a step computed together with its updates; `apply_updates` looks them up here.
_sums: dict[int, tuple[weakref.ref, Any, Any]] = {}


def remember_sum(param: Any, update: Any, new_param: Any) -> None:
    """Records that `param + update` is `new_param`, for as long as this very `update` exists."""
    key = id(update)
    _sums[key] = (weakref.ref(update, lambda _: _sums.pop(key, None)), param, new_param)


def known_sum(param: Any, update: Any) -> Any:
    """Returns `param + update` if a step computed it for exactly these two arrays, else None."""
    found = _sums.get(id(update))
    if found is not None and found[0]() is update and found[1] is param:
        return found[2]
    return None
