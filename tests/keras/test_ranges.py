"""Arguments that are numbers: what is out of range is refused by name when given, and changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import sgd
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    FromTransformation,
    Ftrl,
    Lamb,
    Lion,
    LossScaleOptimizer,
    Muon,
    Nadam,
    RMSprop,
    ScheduleFreeAdamW,
)

NAN, INF = float("nan"), float("inf")


class Own(SGD):
    """An optimizer of the user's own."""

    def _resource_apply_dense(self, grad, var, apply_state=None):
        super()._resource_apply_dense(grad, var, apply_state)


CLASSES = (
    *(SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, Ftrl, Lamb, Lion, Muon, Nadam, RMSprop),
    *(ScheduleFreeAdamW, Own),
)
MAKERS = {cls.__name__: cls for cls in CLASSES} | {
    "FromTransformation": lambda **how: FromTransformation(sgd(0.1), **how),
}

NO_NUMBERS = True, np.bool_(False), float, Variable, "0.5", [0.5], np.ones(2), 1j, jnp.ones(1), np.datetime64("2020")
FUNCTION = lambda: 0.5  # noqa: E731
OUT_OF_RANGE = {
    "clipnorm": (-1, -0.5, NAN, -INF, jnp.float32(-1), Variable(-1.0)),
    "weight_decay": (-1, -1e-9, NAN, INF, -INF, np.float32(-1), Variable(-1.0)),
    "loss_scale_factor": (-1, 0, 0.0, NAN, INF, jnp.float32(0)),
    "ema_momentum": (-1, 1.5, NAN, INF, np.float32(-0.5)),
    "ema_overwrite_frequency": (-1, 0, NAN, INF, 2**40, jnp.int32(0)),
    "gradient_accumulation_steps": (-1, 0, 1, NAN, INF, 2**40, np.int64(1)),
}
OUT_OF_RANGE |= dict.fromkeys(("clipvalue", "global_clipnorm"), OUT_OF_RANGE["clipnorm"])
NO_WHOLE_NUMBERS = 2.5, np.float32(3.5)
WHOLE = "ema_overwrite_frequency", "gradient_accumulation_steps"
ALLOWED = {
    **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm"), r">= 0|\[0, inf\] or None"),
    "weight_decay": r">= 0|\[0, inf\) or None or a function",
    "loss_scale_factor": r"\(0, inf\) or None",
    "ema_momentum": r"\[0, 1\]",
    "ema_overwrite_frequency": r"whole number in \[1, 2147483647\]|\[1, 2147483647\] or None",
    "gradient_accumulation_steps": r"whole number in \[2, 2147483647\]|\[2, 2147483647\] or None",
}
WRONG = [
    *((name, x, ValueError) for name, xs in OUT_OF_RANGE.items() for x in xs),
    *((name, x, TypeError) for name in OUT_OF_RANGE for x in NO_NUMBERS),
    *((name, x, TypeError) for name in OUT_OF_RANGE if name != "weight_decay" for x in (FUNCTION,)),
    *((name, x, TypeError) for name in WHOLE for x in NO_WHOLE_NUMBERS),
    ("ema_momentum", None, TypeError),
]
START = {"clipnorm": 2.0, "ema_momentum": 0.5}


def refused(error, name, act):
    with pytest.raises(error) as raised:
        act()
    message = str(raised.value)
    assert name in message and ("got" in message or "received" in message), message
    return message


@pytest.mark.parametrize("cls", MAKERS)
def test_what_is_out_of_range_is_refused_when_given(cls):
    make = MAKERS[cls]
    opt, v = make(**START), Variable([[1.0, 2.0]], name="v")
    opt.apply_gradients([(jnp.ones((1, 2)), v)])
    attributes = {name: getattr(opt, name) for name in OUT_OF_RANGE}
    weights, config = opt.get_weights(), opt.get_config() if cls != "FromTransformation" else None
    for name, x, error in WRONG:
        for act in (lambda name=name, x=x: make(**{name: x}), lambda name=name, x=x: setattr(opt, name, x)):
            message = refused(error, name, act)
            assert any(part.replace("\\", "") in message for part in ALLOWED[name].split("|")), message
        assert getattr(opt, name) is attributes[name]
    for before, after in zip(weights, opt.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert config is None or opt.get_config() == config
    opt.apply_gradients([(jnp.ones((1, 2)), v)])
    assert int(opt.iterations) == 2


RIGHT = {
    "clipnorm": (0, 1, 0.5, INF, None, np.float32(2), jnp.float32(2), Variable(2.0)),
    "weight_decay": (0, 0.5, None, FUNCTION, np.float32(0.5), Variable(0.5)),
    "loss_scale_factor": (2, 0.5, None, jnp.float32(8)),
    "ema_momentum": (0, 1, 0.5, np.float64(0.5)),
    "ema_overwrite_frequency": (1, 2, None, np.int64(3), jnp.int32(3), 3.0),
    "gradient_accumulation_steps": (2, None, np.int64(3), 3.0),
}


@pytest.mark.parametrize("cls", ["SGD", "Muon", "Own"])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_in_range_works(cls, name):
    for x in RIGHT[name]:
        v = Variable([[1.0, 2.0]], name="v")
        for opt in (MAKERS[cls](use_ema=True, **{name: x}), MAKERS[cls](use_ema=True)):
            setattr(opt, name, x)
            opt.apply_gradients([(jnp.ones((1, 2)), v)])
            assert np.isfinite(v.numpy()).all()
            assert getattr(opt, name) is None if x is None else getattr(opt, name) == x
            if name in WHOLE and x is not None:
                assert type(getattr(opt, name)) is int


@pytest.mark.parametrize("cls", [SGD, Muon])
def test_a_callable_weight_decay_is_called_at_each_step(cls):
    rates = iter([0.5, 0.25])
    v, opt = Variable([[1.0]], name="v"), cls(1.0, weight_decay=lambda: next(rates))
    for expected in (0.5, 0.375):
        opt.apply_gradients([(jnp.zeros((1, 1)), v)])
        assert float(v[0, 0]) == expected


def test_the_arguments_of_a_loss_scale():
    inner = SGD(0.5)
    opt = LossScaleOptimizer(inner)
    for name, wrong in {
        "initial_scale": (0.0, -1, NAN, INF),
        "dynamic_growth_steps": (0, -1, NAN, INF),
    }.items():
        for x, error in [*((x, ValueError) for x in wrong), *((x, TypeError) for x in NO_NUMBERS)]:
            before = getattr(opt, name)
            refused(error, name, lambda name=name, x=x: LossScaleOptimizer(inner, **{name: x}))
            refused(error, name, lambda name=name, x=x: setattr(opt, name, x))
            assert getattr(opt, name) is before


def test_growth_steps_assigned_later_are_seen():
    for way in ("eager", "compiled", "own code"):
        v, opt = Variable(1.0, name="v"), LossScaleOptimizer((Own if way == "own code" else SGD)(0.0), 2.0)
        minimize = lambda v=v, opt=opt: opt.minimize(lambda: v * 1.0, [v])  # noqa: E731
        step = opt.make_train_step(lambda v=v: v * 1.0, [v]) if way == "compiled" else minimize
        step()
        opt.dynamic_growth_steps = 2
        step()
        assert float(opt.dynamic_scale) == 4.0


def test_a_schedule_free_optimizer_needs_a_share_of_the_average():
    opt, v = ScheduleFreeAdamW(0.1), Variable([1.0, 2.0], name="v")
    for wrong in (0, 0.0, -0.5, 1.5, NAN):
        for act in (lambda x=wrong: ScheduleFreeAdamW(beta_1=x), lambda x=wrong: setattr(opt, "beta_1", x)):
            assert "must be in (0, 1]" in refused(ValueError, "beta_1", act)
    assert float(opt.beta_1) == np.float32(0.9)
    opt.beta_1 = 1.0  # the values are the average
    for _ in range(3):
        opt.apply_gradients([(jnp.ones(2), v)])
    np.testing.assert_allclose(opt.averaged_params([v])[0], v.numpy(), rtol=1e-6)


def test_a_traced_count_is_refused():
    def make(n):
        return SGD(gradient_accumulation_steps=n).iterations.value

    with pytest.raises(
        TypeError, match="gradient_accumulation_steps must be .*, known when a step is compiled, got a tr"
    ):
        jax.jit(make)(2)


def test_accumulation_cannot_begin_after_the_first_step():
    v, opt = Variable(1.0, name="v"), SGD(0.5)
    opt.gradient_accumulation_steps = 2
    for _ in range(2):
        opt.minimize(lambda: v * 1.0, [v])
    assert float(v) == 0.5
    opt.gradient_accumulation_steps = 2
    for wrong in (None, 3):
        with pytest.raises(RuntimeError, match=f"cannot change from 2 to {wrong} after the first step"):
            opt.gradient_accumulation_steps = wrong
    assert opt.gradient_accumulation_steps == 2


@pytest.mark.parametrize("cls", ["SGD", "Own"])
def test_running_means_may_begin_and_end_after_the_first_step(cls):
    v, opt = Variable(1.0, name="v"), MAKERS[cls](0.25, ema_momentum=0.5)
    step = opt.make_train_step(lambda: v * 1.0, [v])
    step()
    opt.use_ema = True
    for one in (lambda: opt.minimize(lambda: v * 1.0, [v]), step):
        one()
    # 0.75, then with 0.5, then with 0.25
    assert [float(x) for x in opt.averaged_params([v])] == [0.4375]
    opt.use_ema = False
    for one in (step, lambda: opt.minimize(lambda: v * 1.0, [v])):
        one()
    assert float(v) == -0.25 and opt.averaged_params([v]) == [-0.25]
    assert len(opt.get_weights()) == 1
