"""The chains in docs/libraries.md give the numbers of torch and of Keras 3, to the rounding of a few steps."""

import os
import re
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt import *  # noqa: F403, as the page writes them

torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")

PAGE = Path(__file__).parents[2] / "docs" / "libraries.md"
RATE, MOMENTUM = 0.05, 0.9
START, *GRADS = np.random.default_rng(0).normal(size=(7, 3, 3)).astype("float32")


def with_torch(name, **numbers):
    p = torch.nn.Parameter(torch.tensor(START))
    optimizer = getattr(torch.optim, name)([p], lr=RATE, **numbers)
    for g in GRADS:
        p.grad = torch.tensor(g)
        optimizer.step()
    return p.detach().numpy()


def with_keras(name, **numbers):
    v = keras.Variable(START)
    optimizer = getattr(keras.optimizers, name)(RATE, **numbers)
    optimizer.build([v])
    for g in GRADS:
        optimizer.apply([g], [v])
    return np.asarray(v)


def with_ours(tx):
    w = jnp.asarray(START)
    state = tx.init(w)
    for g in GRADS:
        updates, state = tx.update(jnp.asarray(g), state, w)
        w = fo.apply_updates(w, updates)
    return w


def code_of(row, column):
    """The first piece of code in a cell of the page's first table, a whole optimizer."""
    [line] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {row} |")]
    code = re.search("`(.*?)`", line.replace("\\|", "/").split("|")[{"torch": 5, "Keras": 6}[column]])[1]
    tx = eval(code, globals(), {"η": RATE, "momentum": MOMENTUM, "b1": 0.9, "b2": 0.999, "eps": 1e-8, **NADAM})
    steps = any(link in repr(getattr(tx, "transforms", tx)) for link in ("scale_by_learning_rate", "scale(-1.0)"))
    return tx if steps else fo.chain(tx, fo.scale_by_learning_rate(RATE))


NADAM = {"momentum_decay": 0.004}
ROWS = {
    ("SGD", "torch"): lambda: with_torch("SGD", momentum=MOMENTUM),
    ("SGD", "Keras"): lambda: with_keras("SGD", momentum=MOMENTUM),
    ("Adam", "torch"): lambda: with_torch("Adam"),
    ("Adam", "Keras"): lambda: with_keras("Adam"),
    ("AdamW's decay", "torch"): lambda: with_torch("AdamW"),
    ("AdamW's decay", "Keras"): lambda: with_keras("AdamW"),
    ("AMSGrad", "torch"): lambda: with_torch("Adam", amsgrad=True),
    ("NAdam", "torch"): lambda: with_torch("NAdam"),
    ("NAdam", "Keras"): lambda: with_keras("Nadam"),
    ("Adamax", "torch"): lambda: with_torch("Adamax"),
    ("Adamax", "Keras"): lambda: with_keras("Adamax"),
    ("Adagrad", "torch"): lambda: with_torch("Adagrad"),
    ("Adagrad", "Keras"): lambda: with_keras("Adagrad"),
    ("Adadelta", "torch"): lambda: with_torch("Adadelta"),
    ("Adadelta", "Keras"): lambda: with_keras("Adadelta"),
    ("RMSprop", "torch"): lambda: with_torch("RMSprop"),
    ("RMSprop", "Keras"): lambda: with_keras("RMSprop"),
    ("RMSprop's momentum", "torch"): lambda: with_torch("RMSprop", momentum=MOMENTUM),
    ("RMSprop's momentum", "Keras"): lambda: with_keras("RMSprop", momentum=MOMENTUM),
    ("Lion", "Keras"): lambda: with_keras("Lion"),
    ("RAdam", "torch"): lambda: with_torch("RAdam"),
    ("Rprop", "torch"): lambda: with_torch("Rprop"),
    ("ASGD", "torch"): lambda: with_torch("ASGD"),
    ("Muon's momentum", "torch"): lambda: with_torch("Muon", momentum=MOMENTUM),
    ("Muon's momentum", "Keras"): lambda: with_keras("Muon", momentum=MOMENTUM),
    ("Adafactor", "Keras"): lambda: with_keras("Adafactor"),
    ("Schedule-free AdamW", "Keras"): lambda: with_keras("ScheduleFreeAdamW"),
}


@pytest.mark.parametrize("row, column", ROWS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
def test_the_page_gives_their_numbers(row, column, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())  # to which torch rounds Muon's matrices
    np.testing.assert_allclose(with_ours(code_of(row, column)), ROWS[row, column](), atol=5e-6)
