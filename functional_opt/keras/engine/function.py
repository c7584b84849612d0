"""function: what `tf.function` is to a script."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax

from .program import Program


class Function:
    """A function that reads and assigns variables and optimizers, compiled as one program. `function` makes it."""

    def __init__(self, fn: Callable):
        if not callable(fn):
            raise TypeError(f"function takes a function, got {fn!r}")
        functools.update_wrapper(self, fn, updated=())
        self.python_function = fn
        self._program = Program(fn)
        self._bound: weakref.WeakKeyDictionary[Any, Function] = weakref.WeakKeyDictionary()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Lowers the program for such arguments, as `jax.jit(...).lower`, to inspect its code, cost and memory."""
        return self._program.lower(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> "Function":
        """Returns the method of an instance, compiled for it alone."""
        if instance is None:
            return self
        if instance not in self._bound:
            self._bound[instance] = Function(_Method(self.python_function, instance))
        return self._bound[instance]


class _Method:
    """A method of an instance, which it does not keep alive."""

    def __init__(self, fn: Callable, instance: Any):
        self._fn, self._instance = fn, weakref.ref(instance)
        self.__qualname__ = getattr(fn, "__qualname__", "function")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fn(self._instance(), *args, **kwargs)


def function(fn: Callable | None = None, **options: Any) -> Any:
    """Compiles a function with all variables and optimizers that it reads and assigns: `tf.function`, on JAX.

    Their values go in as inputs and come out as results, in memory that is used again. So a training step reads as
    Python does, and runs as one program. It may use several optimizers, call `minimize`, `apply_gradients` and
    `value_and_grad`, and assign to any variables.

    The function is traced at its first call, again for arguments of other structure, shape or dtype, and when
    something changes that it depends on: `trainable`, a callable `var_list`, the structure of an optimizer. New
    values of variables, hyperparameters and numbers do not trace it again. Arrays and numbers among the arguments
    are inputs; strings, booleans, variables and other objects are fixed for a trace, and must be hashable.

    Variables are made at the first call only, for example in `if self.w is None`. An exception leaves everything as
    it was. Other effects of Python, such as `print`, happen only while the function is traced, as in `tf.function`:
    at first twice, as the function is also run to find out what it touches.

    Use it as a decorator of functions and methods, with or without parentheses.

    >>> from functional_opt import keras
    >>> w, opt = keras.Variable(4.0, name="w"), keras.optimizers.SGD(0.25)
    >>> @keras.function
    ... def step(x):
    ...     loss, grads = keras.value_and_grad(lambda: (w * x) ** 2, [w])
    ...     opt.apply_gradients(zip(grads, [w]))
    ...     return loss
    >>> float(step(1.0)), float(step(1.0)), float(w)
    (16.0, 4.0, 1.0)

    Raises TypeError for the options of `tf.function`, such as `jit_compile` and `input_signature`: XLA always
    compiles, once for each structure, shape and dtype of the arguments.

    Differs from `tf.function` in that a number does not retrace it, and in having no options.
    """
    if options:
        raise TypeError(
            f"keras.function has no {', '.join(options)}: drop it. XLA always compiles the function, once for each "
            "structure, shape and dtype of its arguments"
        )
    return Function if fn is None else Function(fn)
