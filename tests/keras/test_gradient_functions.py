"""What happens to gradients on their way: aggregator, clips, transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam

from .helpers import KERNEL, make_variables

G, H = np.float32([3.0, 0.0, -4.0]), np.float32([12.0])  # norms 5 and 12, together 13
CLIPS = [
    ({}, G, H),
    ({"clipvalue": 3.5}, [3.0, 0.0, -3.5], [3.5]),
    ({"clipvalue": 0.0}, 0 * G, 0 * H),
    ({"clipnorm": 10.0}, G, [10.0]),
    ({"clipnorm": 1.0}, G / 5, [1.0]),
    ({"global_clipnorm": 6.5}, G / 2, H / 2),
    ({"global_clipnorm": 13.5}, G, H),
    ({"clipvalue": 3.0, "clipnorm": 1.5}, G / np.abs(G).clip(1) / 2**0.5 * 1.5, [1.5]),  # by value first: 3, 0, −3
    ({"clipvalue": 3.0, "global_clipnorm": 27**0.5}, [3.0, 0.0, -3.0], [3.0]),
    ({"clipnorm": None, "clipvalue": None, "global_clipnorm": None}, G, H),
]


@pytest.mark.parametrize(("kwargs", "g", "h"), CLIPS, ids=[str(k) for k, *_ in CLIPS])
def test_clips(kwargs, g, h):
    a, b = make_variables()
    SGD(1.0, **kwargs).apply_gradients([(G, a), (H, b)])
    np.testing.assert_allclose(KERNEL - a.value, g, atol=1e-6)
    np.testing.assert_allclose(0.5 - b.value, h, rtol=1e-6)


def test_a_clip_can_be_changed():
    a, opt = Variable(0.0), SGD(1.0, clipvalue=1.0)
    for bound in (1.0, 0.5, None):
        opt.clipvalue = bound
        opt.apply_gradients([(2.0, a)])
    assert a.value == -3.5


def test_none_does_not_count_in_the_global_norm():
    a, b = make_variables()
    opt = SGD(1.0, global_clipnorm=5.0)
    opt.build([a, b])
    opt.apply_gradients([(G, a), (None, b)])
    opt.apply_gradients([(-G, a)])
    np.testing.assert_allclose(a.value, KERNEL)


REFUSED = [
    ({"clipnorm": 1.0, "global_clipnorm": 1.0}, ValueError, "Cannot accept both .* clipnorm=1.0 and global"),
    ({"clipnorm": -1.0}, ValueError, "Expected clipnorm >= 0, received: -1.0"),
    ({"clipvalue": -1}, ValueError, "Expected clipvalue >= 0, received: -1"),
    ({"global_clipnorm": -1e-9}, ValueError, "Expected global_clipnorm >= 0"),
    ({"decay": -0.1}, ValueError, "Expected decay >= 0, received: -0.1"),
    ({"learning_rate": -0.1}, ValueError, "Expected learning_rate >= 0, received: -0.1"),
    ({"learning_rate": float("nan")}, ValueError, "Expected learning_rate >= 0, received: nan"),
    ({"learning_rat": 0.1}, TypeError, "passed to optimizer: learning_rat; did you mean learning_rate"),
    ({"weight_decays": 0.1}, TypeError, "Unexpected keyword argument passed to optimizer: weight_decays"),
    ({"clipnorm": "1"}, TypeError, r"clipnorm must be a number in \[0, inf\] or None, got '1'"),
    *(
        ({clip: 1.0, "gradient_transformers": [lambda gv: gv]}, ValueError, "gradient_transformers cannot be comb")
        for clip in ("clipvalue", "clipnorm", "global_clipnorm")
    ),
]


@pytest.mark.parametrize(("kwargs", "error", "message"), REFUSED, ids=[str(list(k)) for k, *_ in REFUSED])
def test_refused_arguments(kwargs, error, message):
    for kind in (SGD, Adam):
        with pytest.raises(error, match=message):
            kind(**kwargs)


def test_the_aggregator_runs_before_the_transformers():
    order = []

    def mark(name, factor):
        def function(grads_and_vars):
            order.append(name)
            assert all(isinstance(v, Variable) for _, v in grads_and_vars)
            return [(factor * g + 1, v) for g, v in grads_and_vars]

        return function

    def run(**kwargs):
        v = Variable(0.0)
        transformers = [mark("first", 2.0), mark("second", 10.0)]
        opt = SGD(1.0, gradient_aggregator=mark("aggregator", 3.0), gradient_transformers=transformers)
        opt.apply_gradients([(1.0, v)], **kwargs)
        return -float(v)

    assert run() == 10 * (2 * (3 + 1) + 1) + 1
    assert run(experimental_aggregate_gradients=False) == 10 * (2 + 1) + 1
    assert order == ["aggregator", "first", "second", "first", "second"]


def test_the_aggregator_runs_before_the_clips():
    v = Variable(0.0)
    SGD(1.0, clipvalue=1.0, gradient_aggregator=lambda gv: [(10 * g, v) for g, v in gv]).apply_gradients([(0.5, v)])
    assert v.value == -1.0


def test_transformers_see_no_none_and_may_reorder_and_drop(caplog):
    a, b, c = (Variable(0.0, name=n) for n in "abc")

    def transform(grads_and_vars):
        assert [v.name for _, v in grads_and_vars] == ["a:0", "c:0", "a:0"]
        first, _, last = grads_and_vars
        return iter([last, first])

    opt = SGD(1.0, gradient_transformers=[transform])
    opt.apply_gradients([(1.0, a), (None, b), (2.0, c), (3.0, a)])
    assert [float(v) for v in (a, b, c)] == [-4.0, 0.0, 0.0]
    assert "['b:0']" in caplog.text
    assert int(opt.iterations) == 1


def test_a_transformer_may_read_variables():
    v, scale = Variable(1.0, name="v"), Variable(2.0, name="scale")
    opt = SGD(0.5, gradient_transformers=[lambda gv: [(g / scale + v, v) for g, v in gv]])
    opt.apply_gradients([(2.0, v)])
    assert v.value == 1 - 0.5 * (1 + 1)
    scale.assign(1.0)
    opt.apply_gradients([(2.0, v)])
    assert v.value == -0.5 * 2


@pytest.mark.parametrize("result", [[1.0], [(1.0, 2.0)], [(jnp.ones(()), Variable(0.0), 1)]])
def test_functions_must_return_pairs(result):
    v = Variable(1.0)
    for kwargs in ({"gradient_aggregator": lambda gv: result}, {"gradient_transformers": [lambda gv: result]}):
        with pytest.raises(TypeError, match="pairs, got|must be a Variable"):
            SGD(1.0, **kwargs).apply_gradients([(1.0, v)])
    assert v.value == 1.0
