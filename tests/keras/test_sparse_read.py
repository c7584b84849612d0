"""Variable.sparse_read: losses that read a table by row, trained at the cost of these rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import IndexedSlices, Variable
from functional_opt.keras.engine import eager
from functional_opt.keras.optimizers import SGD, Adagrad, Adam

from .helpers import assert_close

TABLE = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
ROWS = {"one": [4], "repeated": [1, 3, 1, 1], "negative": [-1, 5, -6], "matrix": [[0, 2], [2, -4]], "scalar": 3}
LARGE = 1 << 16, 4  # a table of 1 MiB


def make_table(name="table"):
    return Variable(TABLE, name=name)


def squares(rows):
    return jnp.sum(rows * rows)


def minimizing(opt, var_list):
    return lambda fn, *args: opt.minimize(lambda: fn(*args), var_list)


def train_stepping(opt, var_list):
    return lambda fn, *args: opt.make_train_step(fn, var_list)(*args)


ways = pytest.mark.parametrize("way", [minimizing, train_stepping])


@pytest.mark.parametrize("indices", ROWS.values(), ids=ROWS)
def test_the_rows_and_their_gradient(indices):
    table = make_table()
    np.testing.assert_array_equal(table.sparse_read(indices), TABLE[np.array(indices)])
    ((g, v),) = SGD().compute_gradients(lambda: squares(table.sparse_read(indices)))
    assert v is table and isinstance(g, IndexedSlices) and g.dense_shape == (6, 2)
    assert g.indices.tolist() == (np.ravel(indices) % 6).tolist()
    np.testing.assert_allclose(g.values, 2 * TABLE[np.ravel(indices)])


def dense_gradient(values, indices):
    """What that of `squares` of the rows is, worked out in NumPy."""
    gradient = np.zeros_like(values)
    np.add.at(gradient, np.array(indices), 2 * values[np.array(indices)])
    return gradient


@ways
@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), lambda: Adagrad(0.1), lambda: Adam(0.1)])
def test_trains_as_the_dense_gradient_does(way, make):
    (table, twin), other, rows = (make_table(), make_table()), make(), [1, 3]
    step = way(make(), [table])
    for indices in ([1, 3, 1, 1], [3, -5, 3, -3]):  # the other rows never move
        step(lambda i: squares(table.sparse_read(i)), np.array(indices))
        other.apply_gradients([(dense_gradient(twin.numpy(), indices), twin)])
        assert_close(table.numpy(), twin.numpy())
    assert (table.numpy()[rows] != TABLE[rows]).all()


@pytest.mark.parametrize(("opt", "stay"), [(SGD(0.1, 0.9), True), (Adagrad(0.1), True), (Adam(0.1), False)])
def test_rows_that_are_not_read_any_more(opt, stay):
    table = make_table()
    opt.minimize(lambda: squares(table.sparse_read([1, 2, 1, 1])))
    before = table.numpy()
    opt.minimize(lambda: squares(table.sparse_read([3, 3, 3, 3])))
    assert (table.numpy()[3] != before[3]).all()
    assert (table.numpy()[1:3] == before[1:3]).all() == stay


@ways
def test_several_reads_of_several_tables(way):
    a, b, w = make_table("a"), make_table("b"), Variable([0.5, -0.5], name="w")
    i, j = np.array([1, 1, 5]), np.array([[0, 1]])

    def loss(i, j):
        both = b.sparse_read(j) + a.sparse_read(j)
        return squares(a.sparse_read(i) * w) + squares(both) + squares(a.sparse_read(2))

    @jax.jit
    def dense(a, b, w):
        return squares(a[i] * w) + squares(b[j] + a[j]) + squares(a[2])

    expected = jax.grad(dense, argnums=(0, 1, 2))(*(v.value for v in (a, b, w)))
    moved = [v.numpy() - 0.5 * np.array(g) for v, g in zip((a, b, w), expected, strict=True)]
    way(SGD(0.5), [a, b, w])(loss, i, j)
    assert_close([v.numpy() for v in (a, b, w)], moved)


@pytest.mark.parametrize("by_itself", [False, True])
def test_the_loss_is_called_once_a_step(by_itself):
    table, w, opt, calls = make_table(), Variable([1.0, 2.0], name="w"), SGD(0.1), []
    unread = make_table("unread")

    def loss(indices):
        calls.append(0)
        return squares(table.sparse_read(indices) * w)

    def count(indices):
        calls.clear()
        opt.minimize(lambda: loss(indices), None if by_itself else [table, w])
        return len(calls)

    assert count([1, 2]) > 1  # that the table is read by row, and how many of them, is only seen now
    assert [count(i) for i in ([1, 2], [3, 3], [0, -1])] == [1, 1, 1]
    assert count([1, 2, 3]) > 1 and count([3, 2, 1]) == 1
    np.testing.assert_array_equal(unread.value, TABLE)


def test_a_train_step_is_traced_once_for_each_shape():
    table, traces = make_table(), []
    step = SGD(0.1).make_train_step(lambda i: (traces.append(0), squares(table.sparse_read(i)))[1])
    for indices in ([1, 2], [3, 3], [1], [2, 4], [0]):
        step(np.array(indices))
    assert len(traces) == 2 * 2


def scanned(table):
    body = lambda total, i: (total + squares(table.sparse_read(i)), None)  # noqa: E731
    return jax.lax.scan(body, 0.0, jnp.array([1, 1, 2]))[0]


IN_ANOTHER_WAY = {
    "value": lambda t: squares(t.sparse_read([1, 1])) + squares(t[2]),
    "jit": lambda t: jax.jit(lambda i: squares(t.sparse_read(i)))(jnp.array([1, 1, 2])),
    "scan": scanned,
    "jit and outside": lambda t: jax.jit(lambda: squares(t.sparse_read([1, 2])))() + squares(t.sparse_read([1])),
}


@pytest.mark.parametrize("loss", IN_ANOTHER_WAY.values(), ids=IN_ANOTHER_WAY)
def test_read_in_another_way_too(loss):
    table, opt = make_table(), SGD(0.5)
    ((g, _),) = opt.compute_gradients(lambda: loss(table))
    assert isinstance(g, jax.Array)
    step = opt.make_train_step(lambda: loss(table))
    for train in (step, lambda: opt.minimize(lambda: loss(table)), step):
        before = table.numpy()
        train()
        assert_close(table.numpy(), before - 0.5 * dense_gradient(before, [1, 1, 2]))


def test_the_way_it_is_read_may_change_from_step_to_step():
    table, opt = make_table(), SGD(0.5)
    for by_row in (True, False, True, True, False):
        before = table.numpy()
        opt.minimize(lambda by_row=by_row: jnp.sum(table.sparse_read([1, 2]) if by_row else table.value))
        moved = np.zeros((6, 2))
        moved[slice(1, 3) if by_row else slice(None)] = 0.5
        assert_close(table.numpy(), np.float32(before - moved))


def test_tables_that_take_turns():
    a, b, opt = make_table("a"), make_table("b"), SGD(0.5)
    for table in (a, b, a, b):  # the other one was read by row the last time
        opt.minimize(lambda table=table: jnp.sum(table.sparse_read([1, 2])))
    moved = np.float32([[0.0], [1.0], [1.0], [0.0], [0.0], [0.0]])
    assert_close([a.numpy(), b.numpy()], [TABLE - moved] * 2)
    assert [w.path for w in opt.weights] == ["SGD/iter"]


def test_a_table_of_integers_has_no_gradient(caplog):
    table, w, opt = Variable([[1], [2], [3]], name="table"), Variable(1.0, name="w"), SGD(0.5)
    loss = lambda: w * jnp.sum(table.sparse_read([1, 2]))  # noqa: E731
    for step in (lambda: opt.minimize(loss), lambda: opt.minimize(loss, [table, w]), opt.make_train_step(loss)):
        before = float(w)
        step()
        assert before - float(w) == 2.5
    assert "['table:0']" in caplog.text and table.numpy().tolist() == [[1], [2], [3]]


def test_a_loss_that_reads_other_rows_each_time_it_is_called():
    table, n = make_table(), []
    with pytest.raises(RuntimeError, match="rows of another shape, each time it is called"):
        SGD().minimize(lambda: (n.append(0), squares(table.sparse_read(list(range(len(n)))[:6])))[1], [table])
    np.testing.assert_array_equal(table.value, TABLE)


def test_indices_that_are_no_whole_numbers():
    table = make_table()
    for indices in ([1.0], [True, False], np.float32(2.0)):
        with pytest.raises(TypeError, match="indices must be whole numbers, got dtype"):
            table.sparse_read(indices)
    with pytest.raises(TypeError, match="indices must be whole numbers"):
        SGD().minimize(lambda: jnp.sum(table.sparse_read([0.5])))
    np.testing.assert_array_equal(table.value, TABLE)


def test_clipping_and_transformers_see_slices():
    seen, table = [], make_table()
    opt = SGD(1.0, gradient_transformers=[lambda gv: (seen.extend(gv), gv)[1]])
    opt.minimize(lambda: 3 * jnp.sum(table.sparse_read([1, 1])))
    assert isinstance(seen[0][0], IndexedSlices) and seen[0][1] is table
    SGD(1.0, global_clipnorm=1.0).minimize(lambda: 3 * jnp.sum(table.sparse_read([2])))
    assert_close(table.numpy()[1:3], TABLE[1:3] - np.float32([[6.0], [0.5**0.5]]))
    with pytest.raises(RuntimeError, match="Cannot use a constraint function on a sparse variable: table:0"):
        table.constraint = jnp.abs
        opt.minimize(lambda: jnp.sum(table.sparse_read([2])))


# A copy of the table, or a gradient of its size, would be temporary memory.


def temporary_bytes(lowered):
    return lowered.compile().memory_analysis().temp_size_in_bytes


OPTIMIZERS = [(SGD(0.1), "rows"), (SGD(0.1, 0.9), "rows"), (Adagrad(0.1), "rows"), (Adam(0.1), "table")]


@pytest.mark.parametrize(("opt", "cost"), OPTIMIZERS, ids=["SGD", "momentum", "Adagrad", "Adam"])
def test_no_array_of_the_size_of_the_table_is_made_in_a_train_step(opt, cost):
    table = Variable(np.zeros(LARGE, np.float32), name="table")
    lowered = opt.make_train_step(lambda i: squares(table.sparse_read(i))).lower(np.arange(8))
    assert (temporary_bytes(lowered) < table.value.nbytes / 16) == (cost == "rows")


@pytest.mark.parametrize(("opt", "cost"), OPTIMIZERS, ids=["SGD", "momentum", "Adagrad", "Adam"])
def test_nor_where_slices_are_applied(monkeypatch, opt, cost):
    table = Variable(np.zeros(LARGE, np.float32), name="table")
    slices = IndexedSlices(np.ones((8, 4), np.float32), np.arange(8))
    jitted, found = eager.jitted_step, []

    def record(*args):
        found.append(jitted.lower(*args))
        return jitted(*args)

    record.trace = jitted.trace
    monkeypatch.setattr(eager, "jitted_step", record)
    opt.apply_gradients([(slices, table)])
    assert (temporary_bytes(found[0]) < table.value.nbytes / 16) == (cost == "rows")
