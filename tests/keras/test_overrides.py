"""What a subclass overrides is what runs: in minimize, in compiled steps, in wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, LossScaleOptimizer, MultiOptimizer, Nadam, Optimizer, RMSprop


def doubled(pairs):
    return [(2 * g, v) for g, v in pairs]


class Computed(SGD):
    def compute_gradients(self, loss, var_list=None, **how):
        return doubled(super().compute_gradients(loss, var_list, **how))


class ComputedV2(SGD):
    def _compute_gradients(self, loss, var_list, grad_loss=None, tape=None):
        return doubled(super()._compute_gradients(loss, var_list, grad_loss, tape))


class Gotten(SGD):
    def _get_gradients(self, tape, loss, var_list, grad_loss=None):
        return doubled(super()._get_gradients(tape, loss, var_list, grad_loss))


class Listed(SGD):
    def get_gradients(self, loss, params):
        return [2 * g for g in super().get_gradients(loss, params)]


class Transformed(SGD):
    def _transform_loss(self, loss):
        return 2 * loss


class Unaggregated(SGD):
    def _transform_unaggregated_gradients(self, grads_and_vars):
        return doubled(grads_and_vars)


class Aggregated(SGD):
    def _aggregate_gradients(self, grads_and_vars):
        return doubled(super()._aggregate_gradients(grads_and_vars))


class Clipped(SGD):
    def _clip_gradients(self, grads):
        return [2 * g for g in super()._clip_gradients(grads)]


class TransformedGradients(SGD):
    def _transform_gradients(self, grads_and_vars):
        return doubled(super()._transform_gradients(grads_and_vars))


class Applied(SGD):
    def apply_gradients(self, grads_and_vars, name=None):
        return super().apply_gradients(doubled(grads_and_vars), name)


class Applied3(SGD):
    def apply(self, grads, trainable_variables=None):
        super().apply([2 * g for g in grads], trainable_variables)


class Dense(SGD):
    def _resource_apply_dense(self, grad, var, apply_state=None):
        super()._resource_apply_dense(2 * grad, var, apply_state)


class Updated(SGD):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, 2 * learning_rate)


class Prepared(SGD):
    def _prepare_local(self, var_device, var_dtype, apply_state):
        super()._prepare_local(var_device, var_dtype, apply_state)
        apply_state[var_device, var_dtype]["lr_t"] *= 2


class Decayed(SGD):
    def _decayed_lr(self, var_dtype):
        return 2 * super()._decayed_lr(var_dtype)


LOSSES = Computed, ComputedV2, Gotten, Listed, Transformed
GRADIENTS = (
    Unaggregated,
    Aggregated,
    Clipped,
    TransformedGradients,
    Applied,
    Applied3,
    Dense,
    Updated,
    Prepared,
    Decayed,
)


def minimizing(opt, loss, v):
    return lambda: opt.minimize(loss, [v])


def stepping(opt, loss, v):
    return opt.make_train_step(loss, [v])


def in_a_function(opt, loss, v):
    return keras.function(lambda: opt.minimize(loss, [v]))


def scaled(opt, loss, v):
    return minimizing(LossScaleOptimizer(opt), loss, v)


def scaled_and_compiled(opt, loss, v):
    return stepping(LossScaleOptimizer(opt), loss, v)


def with_others(opt, loss, v):
    return minimizing(MultiOptimizer(lambda _: opt), loss, v)


WAYS = minimizing, stepping, in_a_function, scaled, scaled_and_compiled, with_others


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("cls", LOSSES + GRADIENTS, ids=lambda cls: cls.__name__)
def test_what_is_overridden_runs(cls, way):
    v, opt = Variable(1.0, name="v"), cls(0.1, momentum=0.5)
    if cls in LOSSES and way is with_others:
        with pytest.raises(
            TypeError, match=f"a {cls.__name__}, overrides _?\\w+, which a MultiOptimizer cannot call"
        ):
            way(opt, lambda: 3 * v, v)()
        return
    step = way(opt, lambda: 3 * v, v)
    step()
    step()
    np.testing.assert_allclose(float(v), 1 - 0.6 - (0.3 + 0.6), rtol=1e-6)
    assert int(opt.iterations) == 2 and opt.get_slot_names() == ["momentum"]


@pytest.mark.parametrize(
    "make", [SGD, lambda r: SGD(r, 0.9, True), Adam, Nadam, RMSprop], ids=["SGD", "nesterov", *"ANR"]
)
@pytest.mark.parametrize("dialect", ["keras2", "keras3"])
def test_the_rule_itself_through_super_is_the_built_in_step(make, dialect):
    cls = type(make(0.1))

    class Same(cls):
        def _resource_apply_dense(self, grad, var, apply_state=None):
            super()._resource_apply_dense(grad, var, apply_state)

        def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
            super()._resource_apply_sparse(grad, var, indices, apply_state)

    class Same3(cls):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate)

    config = make(0.1).get_config() | {"dialect": dialect}
    results = []
    for kind in (cls, Same, Same3):
        opt, rng = kind.from_config(config), np.random.default_rng(0)
        variables = [Variable(rng.standard_normal(n), name=f"v{n}", dtype="float32") for n in (2, 3)]
        for _ in range(3):
            opt.apply_gradients([(rng.standard_normal(v.shape).astype(np.float32), v) for v in variables])
        results.append([*(v.numpy() for v in variables), *opt.get_weights()])
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-6)


def test_sparse_rows_through_super_keep_the_row_mode():
    table = np.ones((4, 2), np.float32)
    slices = keras.IndexedSlices(np.float32([[1.0, 1.0], [2.0, 2.0], [1.0, 0.0]]), [2, 0, 2], (4, 2))

    class Halved(SGD):
        def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
            super()._resource_apply_sparse(grad / 2, var, indices, apply_state)

    for cls, factor in ((SGD, 1.0), (Halved, 0.5)):
        v, opt = Variable(table, name="v"), cls(0.5, momentum=0.9)
        opt.apply_gradients([(slices, v)])
        moved = np.float32([[2, 2], [0, 0], [2, 1], [0, 0]]) * 0.5 * factor
        np.testing.assert_allclose(v.numpy(), table - moved)
        np.testing.assert_allclose(opt.get_slot(v, "momentum").numpy(), -moved)


class Averaged(Optimizer):
    """Stochastic weight averaging around another optimizer, as TensorFlow Addons has it."""

    def __init__(self, inner, name="Averaged", **kwargs):
        super().__init__(name, **kwargs)
        self._inner = keras.optimizers.get(inner)

    def _create_slots(self, var_list):
        self._inner._create_all_weights(var_list)
        for v in var_list:
            self.add_slot(v, "average", initializer=v.value)

    def _prepare(self, var_list):
        return self._inner._prepare(var_list)

    def apply_gradients(self, grads_and_vars, name=None, **kwargs):
        self._inner._iterations = self.iterations
        return super().apply_gradients(grads_and_vars, name, **kwargs)

    def _resource_apply_dense(self, grad, var, apply_state=None):
        self._inner._resource_apply_dense(grad, var, apply_state=apply_state)
        average = self.get_slot(var, "average")
        average.assign(average + (var - average) / jnp.asarray(self.iterations + 2, var.dtype))


@pytest.mark.parametrize("make", [lambda: Adam(0.1), lambda: Nadam(0.1)], ids=["Adam", "Nadam"])
def test_an_optimizer_around_another_moves_it_as_it_moves_itself(make):
    alone, wrapped = make(), Averaged(make())
    a, b = ([Variable(x, name=n) for n, x in (("w", [1.0, 2.0]), ("b", 3.0))] for _ in range(2))
    step = wrapped.make_train_step(lambda: sum(jnp.sum(v**2) for v in b), b)
    for i in range(4):
        alone.minimize(lambda: sum(jnp.sum(v**2) for v in a), a)
        step() if i % 2 else wrapped.minimize(lambda: sum(jnp.sum(v**2) for v in b), b)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=1e-5)
    np.testing.assert_allclose(
        wrapped._inner.get_slot(b[0], "m").numpy(), alone.get_slot(a[0], "m").numpy(), rtol=1e-5
    )
    assert int(wrapped.iterations) == 4


def test_a_python_attribute_that_changes_in_a_step_is_refused_by_name():
    class Counting(SGD):
        seen = 0

        def _resource_apply_dense(self, grad, var, apply_state=None):
            self.seen = self.seen + 1
            super()._resource_apply_dense(grad, var, apply_state)

    class Leaking(SGD):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.last = {}

        def update_step(self, gradient, variable, learning_rate):
            self.last[variable.path] = gradient
            super().update_step(gradient, variable, learning_rate)

    for cls, name in ((Counting, "seen"), (Leaking, "last")):
        v, opt = Variable(1.0, name="v"), cls(0.1)
        with pytest.raises(RuntimeError, match=rf"the code of {cls.__name__} changes self\.{name}, .* add_weight"):
            opt.apply_gradients([(jnp.ones(()), v)])
        assert float(v) == 1.0 and int(opt.iterations) == 0 and not opt.built


def test_attributes_that_a_script_assigns_between_steps_are_seen():
    class Masked(SGD):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient * self.mask, variable, learning_rate)

    v, opt = Variable([0.0, 0.0], name="v"), Masked(1.0)
    opt.mask = jnp.array([1.0, 0.0])
    step = opt.make_train_step(lambda: jnp.sum(v), [v])
    for one in (lambda: opt.minimize(lambda: jnp.sum(v), [v]), step):
        one()
    assert v.numpy().tolist() == [-2.0, 0.0]
    opt.mask = jnp.array([0.0, 1.0])
    for one in (lambda: opt.minimize(lambda: jnp.sum(v), [v]), step):
        one()
    assert v.numpy().tolist() == [-2.0, -2.0]


def test_the_protected_names_of_optimizer_v2():
    opt, v = SGD(0.1, 0.9), Variable([1.0, 2.0], name="v")
    assert opt._HAS_AGGREGATE_GRAD and opt._use_locking and opt._momentum and not SGD(0.1)._momentum
    assert opt._initial_decay == 0.0 and opt._call_if_callable(lambda: 3) == opt._call_if_callable(3) == 3
    assert v.dtype.base_dtype in opt._valid_dtypes() and v.ref() == v.ref() and v.ref().deref() is v
    assert len({v.ref(), v.ref(), Variable(1.0).ref()}) == 2
    assert jnp.zeros(2, v.dtype.base_dtype).dtype == v.dtype == np.float32 == jax.numpy.dtype(v.dtype)


@pytest.mark.parametrize("cls", [Adam, Updated], ids=["built-in", "own"])
def test_added_slots_keep_their_order_and_are_not_those_of_the_rule(cls):
    class Same(cls):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate)

    v, w, opt = Variable([1.0], name="v"), Variable([2.0], name="w"), (Same if cls is Updated else cls)(0.1)
    opt.build([v, w])
    for name in ("zeta", "nu", "alpha"):  # the state of Adam's rule has a field `nu`
        for x in (v, w):
            opt.add_slot(x, name, "ones")
    before = [x.name for x in opt.weights]
    names = opt.get_slot_names()
    assert names[-3:] == ["zeta", "nu", "alpha"]
    for step in (lambda: opt.minimize(lambda: jnp.sum(v + w), [v, w]), opt.make_train_step(lambda: jnp.sum(v + w))):
        step()
        assert [x.name for x in opt.weights] == before and opt.get_slot_names() == names
        assert all(float(opt.get_slot(x, name)[0]) == 1 for x in (v, w) for name in names[-3:])


@pytest.mark.parametrize("dialect", ["keras2", "keras3"])
@pytest.mark.parametrize("steps", [None, 2])
def test_the_counts_of_the_rule_follow_iterations_also_in_code_of_the_users(steps, dialect):
    seen = []

    class Same(Adam):
        def _resource_apply_dense(self, grad, var, apply_state=None):
            jax.debug.callback(lambda n: seen.append(int(n)), self.iterations.value)
            super()._resource_apply_dense(grad, var, apply_state)

    results = []
    for cls in (Adam, Same):
        v, opt = Variable([1.0], name="v"), cls(0.1, gradient_accumulation_steps=steps, dialect=dialect, name="Adam")
        opt.iterations.assign(3)
        for i in range(4):
            opt.apply_gradients([(jnp.array([1.0 + i]), v)])
        results.append([v.numpy(), *opt.get_weights()])
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    jax.effects_barrier()
    # the number of updates done before: assigned are gradients in the "keras2" dialect, updates in the other
    assert seen == ([3, 4, 5, 6] if steps is None else [1, 2] if dialect == "keras2" else [3, 4])
