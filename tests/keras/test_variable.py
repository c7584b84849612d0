"""Variable: arithmetic, JAX and NumPy functions, pytrees, assignment, initial values."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import adam, keras
from functional_opt.keras import Variable

BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.pow,
    operator.matmul,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.eq,
    operator.ne,
]
BITWISE = [operator.and_, operator.or_, operator.xor]
X, Y = [1.0, 2.0, 3.0], [2.0, 2.0, 5.0]
OTHERS = [
    lambda y: Variable(y),
    lambda y: jnp.array(y),
    lambda y: np.array(y, np.int32 if isinstance(y[0], int) else np.float32),
    lambda y: y[1],
    lambda y: np.asarray(y[1])[()],
]


def is_same(actual, expected):
    assert isinstance(actual, jax.Array)
    np.testing.assert_array_equal(actual, expected)
    return True


@pytest.mark.parametrize("other", OTHERS, ids=["Variable", "jax", "numpy", "number", "numpy number"])
@pytest.mark.parametrize("op", BINARY + BITWISE, ids=lambda op: op.__name__)
def test_operators(op, other):
    x, y = ([1, 2, 3], [2, 2, 5]) if op in BITWISE else (X, Y)
    if op is operator.matmul and np.ndim(other(y)) == 0:
        return
    v, other = Variable(x, name="v"), other(y)
    plain = other.value if isinstance(other, Variable) else other
    assert is_same(op(v, other), op(v.value, plain))
    assert is_same(op(other, v), op(jnp.asarray(plain), v.value))


def test_unary_operators():
    v = Variable([-1.0, 2.0])
    assert is_same(-v, [1.0, -2.0])
    assert is_same(abs(v), [1.0, 2.0])
    assert is_same(~Variable([True, False]), [False, True])
    assert is_same(v.T, v.value)
    assert is_same(v[1:], [2.0])
    assert is_same(v[jnp.array([1, 0])], [2.0, -1.0])
    assert [float(x) for x in v] == [-1.0, 2.0]
    assert (len(v), v.shape, v.ndim, v.size, v.dtype) == (2, (2,), 1, 2, jnp.float32)
    assert is_same(v.astype("bfloat16"), v.value.astype("bfloat16"))
    assert is_same(v.read_value(), v.value)


FUNCTIONS = [
    jnp.sin,
    jnp.sum,
    jax.nn.softmax,
    jnp.linalg.norm,
    lambda v: jnp.dot(v, v),
    lambda v: jnp.where(v > 1, v, 0.0),
    lambda v: jnp.concatenate([v, v]),
    lambda v: jnp.stack([v, jnp.ones(3)]),
    lambda v: jnp.einsum("i,i", v, v),
    lambda v: jnp.asarray(v),
    lambda v: jnp.array(v, copy=True),
]


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_jax_functions(fn):
    assert is_same(fn(Variable(X)), fn(jnp.array(X)))


def test_numpy_functions():
    v = Variable(X)
    for copy in (np.asarray(v), np.array(v), v.numpy()):
        copy[0] = 7.0  # the variable's own memory is not handed out
    assert v.value.tolist() == X
    assert np.sin(v).tolist() == np.sin(np.float32(X)).tolist()
    assert np.asarray(v, dtype=np.float64).dtype == np.float64


class Named(Variable):
    """A user's own kind."""


@pytest.mark.parametrize("kind", [Variable, Named])
def test_is_a_pytree_of_one_leaf(kind):
    v = kind(X, name="v", trainable=False)
    assert is_same(jax.jit(lambda v: 2 * v)(v), [2.0, 4.0, 6.0])
    assert is_same(jax.vmap(lambda x, v: x + v, (0, None))(jnp.zeros(2), v), [X, X])
    assert is_same(jax.vmap(lambda x: x**2)(v), [1.0, 4.0, 9.0])
    twice = jax.jit(lambda v: jax.tree.map(lambda x: 2 * x, v))(v)
    assert isinstance(twice, Variable)
    assert (twice.name, twice.trainable, twice.numpy().tolist()) == ("v:0", False, [2.0, 4.0, 6.0])
    slope = jax.grad(lambda v: jnp.sum(v**2))(v)
    assert is_same(slope.value, [2.0, 4.0, 6.0])
    assert v.value.tolist() == X


def test_in_the_functional_core():
    tx, params = adam(0.1), {"w": Variable(X)}
    state = tx.init(params)
    updates, _ = tx.update(jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params), state, params)
    np.testing.assert_allclose(updates["w"], -0.1 * np.ones(3), rtol=1e-5)


def test_assign():
    v = Variable(np.float32(X), name="dense/kernel")
    assert v.assign([4, 5, 6]) is v
    assert (v.dtype, v.value.tolist()) == (jnp.float32, [4.0, 5.0, 6.0])
    assert v.assign_add(np.float64(1.0)) is v
    assert v.assign_sub(Variable([1.0, 2.0, 3.0])) is v
    assert (v.dtype, v.value.tolist()) == (jnp.float32, [4.0, 4.0, 4.0])
    count = Variable(0).assign(2.9)
    assert (count.dtype, int(count)) == (jnp.int32, 2)
    for wrong in (1.0, [1.0], np.ones((3, 1)), Variable([1.0])):
        with pytest.raises(ValueError, match=r"'dense/kernel' has shape \(3,\); it cannot be assigned \("):
            v.assign(wrong)
    with pytest.raises(ValueError, match=r"'dense/kernel' has shape \(3,\)"):
        v.assign_add(np.ones((2, 3)))
    assert v.value.tolist() == [4.0, 4.0, 4.0]


def test_numpy_input_is_copied():
    x = np.float32(X)
    v, w = Variable(x), Variable(np.zeros(3, np.float32)).assign(x)
    x[:] = 0.0
    assert v.value.tolist() == w.value.tolist() == X


INITIAL = [
    ([1, 2], {"dtype": "float32"}, jnp.float32),
    ([1.0, 2.0], {}, jnp.float32),
    ((1, 2), {}, jnp.int32),
    (np.array([1.0, 2.0]), {}, jnp.float32),
    (jnp.array([1.0, 2.0], "bfloat16"), {}, jnp.bfloat16),
    (Variable([1.0, 2.0]), {"dtype": "float16"}, jnp.float16),
    (lambda: [1.0, 2.0], {}, jnp.float32),
    (lambda shape, dtype: 1 + jnp.arange(shape[0], dtype=dtype), {"shape": [2]}, jnp.float32),
    (lambda shape, dtype: 1 + jnp.arange(shape[0], dtype=dtype), {"shape": (2,), "dtype": "int8"}, jnp.int8),
    ([1.0, 2.0], {"shape": (2,)}, jnp.float32),
]


@pytest.mark.parametrize(("initial", "kwargs", "dtype"), INITIAL)
def test_initial_values(initial, kwargs, dtype):
    v = Variable(initial, **kwargs)
    assert (v.dtype, v.value.tolist()) == (dtype, [1, 2])
    assert not v.value.weak_type


def test_initial_value_of_another_shape():
    with pytest.raises(ValueError, match=r"initial_value of 'w' must have shape \(3,\), got \(2,\)"):
        Variable([1.0, 2.0], shape=(3,), name="w")
    with pytest.raises(TypeError, match="takes 0 positional arguments but 2 were given"):  # it is an initializer
        Variable(lambda: [1.0, 2.0], shape=(2,))


def test_a_python_number_makes_no_weak_type():
    v = Variable(1.0)
    assert not v.value.weak_type
    assert not v.assign(2.0).value.weak_type
    assert (Variable(1).dtype, Variable(True).dtype) == (jnp.int32, jnp.bool_)


def test_names():
    assert [Variable(0.0, name=n).name for n in ("a", "a:0", "a/b")] == ["a:0", "a:0", "a/b:0"]
    assert [Variable(0.0, name=n).path for n in ("a", "a:0", "a/b")] == ["a", "a", "a/b"]
    assert Variable(0.0).path == "Variable"
    assert [v.trainable for v in (Variable(0.0), Variable(0.0, False))] == [True, False]


def test_equality_is_of_elements_and_hash_of_identity():
    a, b = Variable(X), Variable(X)
    assert is_same(a == b, [True, True, True])
    assert is_same(a != np.float32([1.0, 0.0, 3.0]), [False, True, False])
    assert len({a, b, a}) == 2
    assert {a: "a", b: "b"}[b] == "b"


def test_as_a_python_number():
    v = Variable(2.5)
    assert (float(v), int(v), bool(v), bool(Variable(0.0))) == (2.5, 2, True, False)
    assert "abc"[Variable(1)] == "b"
    assert f"{v:.2f}" == "2.50"
    assert f"{v}" == str(v) == repr(v)
    for refused in (lambda: float(Variable(X)), lambda: range(v), lambda: len(v)):
        with pytest.raises(TypeError):
            refused()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Variable(X))


def test_repr():
    assert repr(Variable(X, name="w")) == "Variable('w', shape=(3,), dtype=float32, value=[1., 2., 3.])"
    assert repr(Variable(1, name="n")) == "Variable('n', shape=(), dtype=int32, value=1)"
    assert len(repr(Variable(np.zeros(1000)))) < 120
    seen = []
    jax.jit(lambda v: seen.append(repr(v)))(Variable(X, name="w"))
    assert seen == ["Variable('w', shape=(3,), dtype=float32, value=…)"]


def test_a_constraint_is_for_optimizers():
    v = keras.Variable([3.0], constraint=lambda x: jnp.clip(x, -1.0, 1.0))
    assert v.value.tolist() == [3.0]
    assert v.assign([2.0]).value.tolist() == [2.0]
    assert v.constraint(v.value).tolist() == [1.0]
