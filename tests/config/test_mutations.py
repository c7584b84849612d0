"""Whatever a config holds, reading it gives a transformation or says what is wrong, and runs nothing."""

import inspect
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.config import from_config, to_config
from functional_opt.keras import optimizers
from functional_opt.keras.optimizers import schedules

from .mutations import mutated, nested, within_itself

RATE = fo.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)
CORE = [
    fo.adamw(RATE, mask={"*/bias": False}, mu_dtype="bfloat16"),
    fo.sgd(jnp.float32(0.1), 0.9, nesterov=True),
    fo.chain(fo.clip_by_global_norm(np.inf), fo.adafactor(fo.piecewise_constant_schedule(1.0, {2: 0.5}))),
    fo.partition({"a": fo.lion(0.1), "b": fo.set_to_zero()}, {"**/bias": "a", "**": "b"}),
    fo.MultiSteps(fo.apply_if_finite(fo.rmsprop(0.1), 3), 4),
    fo.inject_hyperparams(fo.adam)(fo.exponential_decay(0.1, 10, 0.5), b1=0.5),
    fo.muon(0.1, muon_weight_dimension_numbers=fo.MuonDimensionNumbers(0, (1, 2))),
    fo.scale_by_mup({"a": (2, 3)}, fan_in={"*": (0,)}),
    fo.chain(fo.add_noise(0.1, 0.5, key=np.uint32(3)), fo.ademamix(0.1), fo.qk_clip({"**": 0.5})),
    fo.chain(fo.monitor({"norm": fo.global_norm}), fo.skip_spikes(fo.dog()), fo.adam_mini(0.1, block={"*": (1,)})),
    fo.named_chain(("a", fo.scale_by_schedule(fo.join_schedules([RATE, RATE], [3]))), ("b", fo.scion(0.1))),
    fo.chain(fo.differentially_private_aggregate(1.0, 0.1, key=3), fo.params_ema(0.9), fo.galore(0.1)),
]
CONFIGS = [json.loads(json.dumps(to_config(tx))) for tx in CORE]

FACADE = [
    optimizers.Adam(schedules.CosineDecay(0.1, 10, warmup_target=0.5, warmup_steps=2), amsgrad=True, clipnorm=1.0),
    optimizers.SGD(schedules.PiecewiseConstantDecay([2], [0.1, 0.01]), momentum=0.9, nesterov=True),
    optimizers.AdamW(schedules.PolynomialDecay(0.1, 10, cycle=True), use_ema=True, gradient_accumulation_steps=2),
    optimizers.RMSprop(centered=True),
    optimizers.Nadam(),
    optimizers.Ftrl(schedules.ExponentialDecay(0.1, 10, 0.5)),
    optimizers.Muon(),
    optimizers.Adafactor(),
    optimizers.LossScaleOptimizer(optimizers.Lamb()),
    optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.Adam(), {"bias": optimizers.SGD(0.1)})),
    optimizers.legacy.RMSPropOptimizer(0.1),
]
SERIALIZED = [json.loads(json.dumps(optimizers.serialize(opt))) for opt in FACADE]


def outcomes(read, configs, n, seed):
    """How many were read and how many were refused. Any error but the two fails the test, with the config."""
    read_, refused, modules = 0, 0, set(sys.modules)
    for config in mutated(configs, n, seed):
        try:
            made = read(config)
        except (TypeError, ValueError) as e:
            refused += 1
            assert len(str(e)) > 20, repr(e)
            continue
        read_ += 1
        yield made
    assert set(sys.modules) == modules
    assert refused > n / 2 and read_ > n / 100


def test_mutated_configs_are_read_or_refused():
    for tx in outcomes(from_config, CONFIGS, 1000, seed=1):
        assert repr(from_config(to_config(tx))) == repr(tx)  # a NaN in a label equals nothing


def test_mutated_configs_of_the_facade_are_read_or_refused():
    for opt in outcomes(optimizers.deserialize, SERIALIZED, 500, seed=2):
        config = optimizers.serialize(opt)
        assert optimizers.deserialize(config).get_config() == config["config"]


@pytest.mark.parametrize("node", [nested(10_000), nested(10_000, dict), within_itself(), {"a": [nested(300)]}])
def test_what_is_nested_too_deeply(node):
    deeply = "is nested deeper than 200 levels, or within itself"
    with pytest.raises(ValueError, match=rf"^config\['value'\].* {deeply}"):
        from_config({"version": 1, "value": {"type": "scale", "step_size": node}})
    with pytest.raises(ValueError, match=rf"^config\['config'\].* {deeply}"):
        optimizers.deserialize({"class_name": "SGD", "config": {"learning_rate": node}})
    with pytest.raises(ValueError, match=rf"^the config of SGD\['name'\].* {deeply}"):
        optimizers.SGD.from_config({"name": node})
    with pytest.raises(ValueError, match=deeply):
        schedules.deserialize({"class_name": "CosineDecay", "config": {"decay_steps": node}})


def test_as_deep_as_it_gets():
    """What can be saved can be read, also where the caller's stack is deep, or is refused in words."""
    tx = fo.sgd(0.1)
    for _ in range(150):
        tx = fo.masked(tx, True)
    assert from_config(to_config(tx)) == tx
    for _ in range(100):
        tx = fo.masked(tx, True)
    with pytest.raises(ValueError, match="nested deeper than 200 levels"):
        to_config(tx)

    def deeper(frames):
        return deeper(frames - 1) if frames else from_config({"version": 1, "value": {"type": "list", "items": node}})

    node = nested(150)

    def nearly_full():
        return deeper(sys.getrecursionlimit() - len(inspect.stack()) - 100)

    with ThreadPoolExecutor(1) as thread:  # its stack counts no frames that interrupts have left behind elsewhere
        with pytest.raises(ValueError, match="nested too deeply for what is left of Python's stack"):
            thread.submit(nearly_full).result()


AT = {"class_name": "SGD", "config": {}}
COSINE = {"class_name": "CosineDecay"}


@pytest.mark.parametrize(
    "config, message",
    [
        (AT | {"config": 3}, r"^SGD: the config of SGD must be a dict of its arguments by name, got 3"),
        (AT | {"config": {3: 1}}, r"^SGD: the config of SGD must be a dict"),
        (AT | {"class_name": 3}, r"^config must be a dict with a class_name, that of an optimizer, got"),
        (AT | {"registered_name": [], "config": {"rho": 1}}, r"^SGD: Unexpected keyword argument"),
        (AT | {"config": {"nesterov": "false"}}, r"^SGD: nesterov of SGD must be True or False, got 'false' \(str\)"),
        (AT | {"config": {"clipnorm": "1"}}, r"^SGD: clipnorm of SGD must be a number or None, got '1' \(str\)"),
        (AT | {"config": {"clipnorm": 10**400}}, r"^SGD: clipnorm must be in \[0, inf\] or None, got an integer of"),
        (AT | {"config": {"momentum": 1j}}, r"^SGD: momentum must be a number, a schedule or a callable, got 1j"),
        (AT | {"config": {"learning_rate": float("inf")}}, r"^SGD: learning_rate must be in \[0, inf\), got inf"),
        (AT | {"config": {"learning_rate": COSINE}}, r"^SGD: learning_rate: CosineDecay: .* missing"),
        (
            AT | {"config": {"learning_rate": COSINE | {"config": {"decay_steps": "9"}}}},
            r"^SGD: learning_rate: CosineDecay: decay_steps of CosineDecay must be a whole number, got '9' \(str\)",
        ),
        ({"class_name": "Adam", "config": {"epsilon": float("inf")}}, r"^Adam: epsilon must be in \[0, inf\) or"),
        ({"class_name": "MultiOptimizer", "config": {}}, r"needs 'optimizer_map' in its config"),
        ({"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": []}}, r"^LossScaleOptimizer: inner_opt"),
    ],
)  # fmt: skip
def test_what_the_facade_refuses(config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        optimizers.deserialize(config)
