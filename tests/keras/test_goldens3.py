"""Trajectories recorded from the real Keras 3 optimizers (tests/goldens/README.md says how)."""

import json
import re

import jax
import numpy as np
import pytest

from functional_opt import keras

from .test_goldens import GOLDENS, VARIABLES, hyperparameter

CASES = json.loads((GOLDENS / "keras3.json").read_text())
CASES = [c for c in CASES if hasattr(keras.optimizers, c["cls"])]
DATA = np.load(GOLDENS / "keras3.npz")


def unnumbered(name):
    """A weight's name without the number that Keras appends to the names of later optimizers."""
    if name.startswith("variable"):  # one that Keras left without a name
        return "nadam/momentum_cache"
    return re.sub(r"^([a-z_]+?)_\d+/", r"\1/", name)


def plain(config):
    """A config with float32 numbers, without names, which Keras numbers, and without the code of a lambda."""
    config = {k: float(np.float32(x)) if isinstance(x, float) else x for k, x in config.items() if k != "name"}
    rate = config["learning_rate"]
    if isinstance(rate, dict):
        config["learning_rate"] = None if rate["class_name"] == "__lambda__" else plain_schedule(rate)
    return config | {"dialect": "keras3"}


def plain_schedule(config):
    return config | {"config": {k: x for k, x in config["config"].items() if k != "name"}}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"].removeprefix("keras3/"))
def test_keras3(case):
    extra, kwargs = case["extra"], dict(case["kwargs"])
    if case["lr"] is not None:
        kwargs["learning_rate"] = hyperparameter(case["lr"])
    opt = getattr(keras.optimizers, case["cls"])(dialect="keras3", **kwargs)
    constraint = (lambda x: jax.numpy.clip(x, -1, 1)) if extra.get("constraint") else None
    variables = {n: keras.Variable(DATA[f"in/float32/init/{n}"], name=n, constraint=constraint) for n in VARIABLES}
    if "exclude" in extra:
        opt.exclude_from_weight_decay(var_names=extra["exclude"])
    events = {e["before_step"]: e["set"] for e in extra.get("events", [])}
    for step in range(10):
        for name, x in events.get(step, {}).items():
            setattr(opt, name, hyperparameter(x))
        np.testing.assert_allclose(opt.current_learning_rate(), DATA[f"{case['id']}/lr"][step], rtol=1e-5)
        grads = [
            None if step in extra.get("none", {}).get(n, ()) else DATA[f"in/float32/grad/{n}"][step]
            for n in VARIABLES
        ]
        opt.apply(grads, list(variables.values()))
        if extra.get("finalize") and step == 9:
            opt.finalize_variable_values(list(variables.values()))
        ours = {f"var/{n}": v.numpy() for n, v in variables.items()}
        ours |= {f"weights/{i}": w.numpy() for i, w in enumerate(opt.variables)}
        for key, x in ours.items():
            np.testing.assert_allclose(x, DATA[f"{case['id']}/{key}"][step], rtol=2e-4, atol=2e-6, err_msg=key)
    config = plain(opt.get_config())
    if isinstance(case["lr"], dict) and "callable" in case["lr"]:
        config["learning_rate"] = None
    assert config == plain(case["config"])
    assert [w.path for w in opt.variables] == [unnumbered(name) for name in case["weight_names"]]
