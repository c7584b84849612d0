"""Variable: a named array that can be assigned to, as in Keras and TensorFlow, on JAX."""

import operator
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from . import dtype as dtypes
from . import recording
from .indexed_slices import IndexedSlices

DEVICE = "/device:0"
"""Stands in for a variable's device, which JAX chooses. It is in the keys of an optimizer's `apply_state`."""
_alive: "weakref.WeakValueDictionary[int, Variable]" = weakref.WeakValueDictionary()


def _operator(op: Callable, swapped: bool = False) -> Callable:
    def method(self, other):
        other = other.value if isinstance(other, Variable) else other
        return op(other, self.value) if swapped else op(self.value, other)

    return method


class Variable(recording.Cell):
    """A named, mutable array. JAX functions and operators treat it as the array that it holds.

    The array itself is never written to: an assignment replaces it by another. An array taken as `v.value`
    stays valid; an optimizer reuses the memory only if nothing else holds the array.

    Args:
        initial_value: an array, anything `jnp.asarray` takes, or a function of no arguments that returns
            one; with `shape`, a function of `(shape, dtype)`, like a Keras initializer.
        trainable: whether `minimize` trains the variable if no `var_list` is given.
        name: its name in slots, errors and path rules; `dense/kernel` is matched part by part.
        dtype: the dtype of the array; that of `initial_value` if None.
        constraint: a function of the array, applied after each update by an optimizer.
        shape: the shape of the array, if `initial_value` is an initializer.
        overwrite_with_gradient: whether an optimizer replaces the value by the gradient and does nothing else, as
            Keras 3 does with the scales of 8-bit training.

    >>> v = Variable([1.0, 2.0], name="v")
    >>> v.assign_add([1.0, 1.0])
    Variable('v', shape=(2,), dtype=float32, value=[2., 3.])
    >>> (v * 2).tolist(), jnp.sum(v).item()
    ([4.0, 6.0], 5.0)

    Differs from Keras in that the array is read as `v.value`, without a call.
    """

    __array_priority__ = 100  # so `numpy_array @ variable` calls the variable, as with a JAX array
    overwrite_with_gradient = False
    _unwatched = False  # whether reads of it go unrecorded
    _row_shapes: tuple[tuple[int, ...], ...] = ()  # of the indices of each sparse_read in the last loss

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_pytree_node(cls, _flatten, _unflatten)

    def __init__(
        self,
        initial_value: Any,
        trainable: bool = True,
        *,
        name: str = "Variable",
        dtype: Any = None,
        constraint: Callable[[jax.Array], jax.Array] | None = None,
        shape: tuple[int, ...] | None = None,
        overwrite_with_gradient: bool = False,
    ):
        if callable(initial_value):
            arguments = () if shape is None else (tuple(shape), dtype or jnp.float32)
            with jax.ensure_compile_time_eval():  # an initializer takes nothing that is traced
                initial_value = initial_value(*arguments)
        self._stored = _copied(initial_value, dtype)
        if shape is not None and self.shape != tuple(shape):
            raise ValueError(f"initial_value of {name!r} must have shape {tuple(shape)}, got {self.shape}")
        self.trainable = trainable
        self.constraint = constraint
        self.overwrite_with_gradient = overwrite_with_gradient
        self._name = name.removesuffix(":0")
        recording.note_made(self)
        _alive[id(self)] = self

    @property
    def value(self) -> jax.Array:
        """The array that the variable holds."""
        if recording.active():
            recording.note_read(self)
        return self._value

    @property
    def name(self) -> str:
        """The name with TensorFlow's `:0`."""
        return f"{self._name}:0"

    @property
    def path(self) -> str:
        """The name alone, as path rules see it."""
        return self._name

    shape = property(lambda self: self._value.shape)
    dtype = property(lambda self: dtypes.of(self._value.dtype))
    __numpy_dtype__ = property(lambda self: self._value.dtype)  # for NumPy, which takes no other class as `dtype`
    ndim = property(lambda self: self._value.ndim)
    size = property(lambda self: self._value.size)
    T = property(lambda self: self.value.T)
    device = property(lambda self: DEVICE)

    def assign(self, value: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True):
        """Replaces the value and keeps the dtype. Raises ValueError if the shape differs.

        The other arguments are TensorFlow's and have no effect: nothing can come between a read and a write.
        """
        # a NumPy array is copied, as it may be written to; a JAX array cannot be
        value = jnp.asarray(value) if isinstance(value, jax.Array | Variable) else jnp.array(value)
        if value.shape != self.shape:
            raise ValueError(f"{self._name!r} has shape {self.shape}; it cannot be assigned {value.shape}")
        self._value = value.astype(self.dtype)
        return self

    def assign_add(self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True):
        """Adds to the value: `assign(value + delta)`."""
        return self.assign(self.value + jnp.asarray(delta))

    def assign_sub(self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True):
        """Subtracts from the value: `assign(value - delta)`."""
        return self.assign(self.value - jnp.asarray(delta))

    def scatter_add(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None):
        """Adds rows; a row whose index occurs twice is added to twice."""
        return self.assign(self.value.at[sparse_delta.indices].add(sparse_delta.values))

    def scatter_sub(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None):
        """Subtracts rows."""
        return self.scatter_add(-sparse_delta)

    def scatter_update(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None):
        """Replaces rows."""
        return self.assign(self.value.at[sparse_delta.indices].set(sparse_delta.values))

    def sparse_read(self, indices: Any, name: str | None = None) -> jax.Array:
        """Returns the rows at these indices, `value[indices]`, of shape `indices.shape + shape[1:]`.

        In a loss given to `minimize`, `compute_gradients` or `make_train_step` its gradient is IndexedSlices, so
        training a large table costs only as much as the rows that are read. The gradient is dense if the loss also
        reads the variable in another way, or reads the rows inside its own `jax.jit` or `lax.scan`.

        >>> v = Variable([[1.0], [2.0], [3.0]], name="table")
        >>> v.sparse_read([2, 0]).ravel().tolist()
        [3.0, 1.0]

        Raises TypeError for indices that are not integers.
        """
        indices = jnp.asarray(indices)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise TypeError(f"indices must be whole numbers, got dtype {indices.dtype}")
        return recording.read_rows(self, indices)

    def ref(self) -> "Reference":
        """Returns a key for dicts and sets, as in TensorFlow. Here a variable is such a key itself."""
        return Reference(self)

    def read_value(self) -> jax.Array:
        """Returns the array, as `value` does."""
        return self.value

    def numpy(self) -> np.ndarray:
        """Returns a NumPy copy."""
        return np.array(self.value)

    def astype(self, dtype: Any) -> jax.Array:
        return self.value.astype(dtype)

    def __jax_array__(self):
        return self.value

    def __array__(self, dtype=None, copy=None):
        return np.array(self.value, dtype=dtype)

    def __getitem__(self, index):
        return self.value[index]

    def __len__(self):
        return len(self._value)

    def __iter__(self):
        return iter(self.value)

    def __bool__(self):
        return bool(self.value)

    def __int__(self):
        return int(self.value)

    def __float__(self):
        return float(self.value)

    def __index__(self):
        return operator.index(self.value)

    def __format__(self, spec):
        return format(self.value, spec) if spec else str(self)

    def __neg__(self):
        return -self.value

    def __abs__(self):
        return abs(self.value)

    def __invert__(self):
        return ~self.value

    __add__, __radd__ = _operator(operator.add), _operator(operator.add, swapped=True)
    __sub__, __rsub__ = _operator(operator.sub), _operator(operator.sub, swapped=True)
    __mul__, __rmul__ = _operator(operator.mul), _operator(operator.mul, swapped=True)
    __truediv__, __rtruediv__ = _operator(operator.truediv), _operator(operator.truediv, swapped=True)
    __floordiv__, __rfloordiv__ = _operator(operator.floordiv), _operator(operator.floordiv, swapped=True)
    __mod__, __rmod__ = _operator(operator.mod), _operator(operator.mod, swapped=True)
    __pow__, __rpow__ = _operator(operator.pow), _operator(operator.pow, swapped=True)
    __matmul__, __rmatmul__ = _operator(operator.matmul), _operator(operator.matmul, swapped=True)
    __and__, __rand__ = _operator(operator.and_), _operator(operator.and_, swapped=True)
    __or__, __ror__ = _operator(operator.or_), _operator(operator.or_, swapped=True)
    __xor__, __rxor__ = _operator(operator.xor), _operator(operator.xor, swapped=True)
    __lt__ = _operator(operator.lt)
    __le__ = _operator(operator.le)
    __gt__ = _operator(operator.gt)
    __ge__ = _operator(operator.ge)
    __eq__ = _operator(operator.eq)
    __ne__ = _operator(operator.ne)

    def __hash__(self):
        return id(self)

    def __repr__(self):
        x = self._value
        value = "…" if isinstance(x, core.Tracer) else np.array2string(np.asarray(x), separator=", ", threshold=8)
        return f"Variable({self._name!r}, shape={self.shape}, dtype={self.dtype}, value={value})"

    def __deepcopy__(self, memo):
        twin = object.__new__(type(self))
        # safe to share the array: an optimizer copies a shared one before reusing it
        twin.__dict__.update(self.__dict__ | {"_stored": self._settled()})
        memo[id(self)] = twin
        _alive[id(twin)] = twin
        return twin


class Reference:
    """A variable as a key: equal to other references to it alone."""

    def __init__(self, variable: Variable):
        self._variable = variable

    def deref(self) -> Variable:
        """Returns the variable."""
        return self._variable

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Reference) and other._variable is self._variable

    def __hash__(self) -> int:
        return id(self._variable)


def trainable_variables() -> list[Variable]:
    """Returns all trainable variables that are alive, whatever model they belong to."""
    alive = [v for ref in _alive.valuerefs() if (v := ref()) is not None]  # a list at once: threads may add to it
    return [v for v in alive if v.trainable and not (v._stand_in or _is_deleted(v._settled()))]


def _is_deleted(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, core.Tracer) and x.is_deleted()


def _flatten(v: Variable):
    return (v.value,), (v._name, v.trainable, v.constraint, v.overwrite_with_gradient)


def _unflatten(aux, children):
    v = object.__new__(Variable)
    (v._stored,), (v._name, v.trainable, v.constraint, v.overwrite_with_gradient) = children, aux
    v._stand_in = recording.active() or isinstance(v._stored, core.Tracer)
    return v


def _copied(x: Any, dtype: Any) -> jax.Array:
    """Returns a copy, because the caller may write to a NumPy array or hold on to a JAX one."""
    if not any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(x)):
        with jax.ensure_compile_time_eval():  # an array also where a program is traced
            array = jnp.array(x, dtype=dtype)
            return array.astype(array.dtype)  # drops a weak type, which a step would make strong
    array = jnp.array(x, dtype=dtype)
    return array.astype(array.dtype)


# A pytree of one leaf: jnp functions no longer accept a bare `__jax_array__`, only a pytree that also has it.
jax.tree_util.register_pytree_node(Variable, _flatten, _unflatten)
