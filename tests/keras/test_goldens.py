"""Trajectories recorded from the real tf.keras optimizers (tests/goldens/README.md says how)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from functional_opt import keras

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = json.loads((GOLDENS / "keras2.json").read_text())
DATA = np.load(GOLDENS / "keras2.npz")
VARIABLES = ("emb", "kernel", "bias")


def hyperparameter(x):
    if isinstance(x, dict) and "schedule" in x:
        return getattr(keras.optimizers.schedules, x["schedule"])(**x["args"])
    if isinstance(x, dict) and "callable" in x:
        return lambda: x["callable"]
    return x


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"].removeprefix("legacy/"))
def test_keras2(case):
    kwargs = dict(case["kwargs"])
    if case["lr"] is not None:
        kwargs["learning_rate"] = hyperparameter(case["lr"])
    dtype = case["dtype"]
    tolerance = dict(rtol=2e-4, atol=2e-6) if dtype == "float32" else dict(rtol=1e-6, atol=1e-12)
    with jax.enable_x64(dtype == "float64"):
        opt = getattr(keras.optimizers, case["cls"])(**kwargs)
        assert json.loads(json.dumps(opt.get_config())) == case["config"]
        constraint = None
        if case["constraint"] == "clip(-1,1)":
            constraint = lambda x: jax.numpy.clip(x, -1, 1)  # noqa: E731
        variables = {
            n: keras.Variable(DATA[f"in/{dtype}/init/{n}"], name=n, constraint=constraint) for n in VARIABLES
        }
        events = {e["before_step"]: e["set"] for e in case["events"]}
        for step in range(10):
            for name, x in events.get(step, {}).items():
                setattr(opt, name, hyperparameter(x))
            grads = {n: DATA[f"in/{dtype}/grad/{n}"][step] for n in VARIABLES}
            if case["mode"] == "sparse":
                rows = [DATA[f"in/{dtype}/sparse_{part}/emb"][step] for part in ("val", "idx")]
                grads["emb"] = keras.IndexedSlices(*rows)
            opt.apply_gradients([(grads[n], v) for n, v in variables.items()])
            ours = {f"var/{n}": v.numpy() for n, v in variables.items()}
            ours |= {f"weights/{i}": w for i, w in enumerate(opt.get_weights())}
            ours |= {
                f"slot/{s}/{n}": opt.get_slot(v, s).numpy() for s in case["slot_names"] for n, v in variables.items()
            }
            for key, x in ours.items():
                np.testing.assert_allclose(x, DATA[f"{case['id']}/{key}"][step], **tolerance, err_msg=key)
        assert int(opt.iterations) == 10
        assert opt.get_slot_names() == case["slot_names"]
        assert [w.name for w in opt.weights] == case["weight_names"]
