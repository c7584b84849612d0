"""The code on pages that the site shows without running it, because it needs a model of the reader's."""

import ast
import inspect
import os
import re
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt import keras

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
DOCS = Path(__file__).parents[2] / "docs"
NOT_OURS = {  # code of others, to compare with, and an excerpt from a class
    "coming_from/keras.md": {0},
    "coming_from/torch.md": {0, 1},
    "how_it_works.md": {1},
}


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def ours():
    pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    return [(page, i) for page in pages for i in range(len(snippets(page))) if i not in NOT_OURS.get(page, ())]


def a_layer():
    """Params, a loss and batches."""
    params = {"embed": {"table": jnp.ones((8, 4))}, "dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}

    def loss_fn(params, x):
        return jnp.mean((params["embed"]["table"][x] @ params["dense"]["kernel"] + params["dense"]["bias"]) ** 2)

    return {"params": params, "loss_fn": loss_fn, "batches": [(jnp.arange(3),)] * 2}


def a_matrix():
    return {"params": {"kernel": jnp.ones((512, 512))}}


def a_step():
    tx, params = fo.sgd(0.1), {"w": jnp.ones(3)}
    return {"tx": tx, "params": params, "grads": params, "state": tx.init(params), "apply_updates": fo.apply_updates}


def a_torch_model():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    params = {name: jnp.asarray(p.detach().numpy().copy()) for name, p in model.named_parameters()}
    return {"torch": torch, "model": model, "optimizer": optimizer, "params": params}


def a_keras_model():
    keras = pytest.importorskip("keras")
    from functional_opt.interop.keras import from_keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(1e-3))
    model.optimizer.build(model.trainable_variables)
    model.save_weights("model.weights.h5")
    return {"keras": keras, "model": model, "from_keras": from_keras}


GIVEN = {
    ("index.md", 0): a_layer,
    ("how_it_works.md", 0): a_step,
    ("scaling.md", 0): a_matrix,
    ("coming_from/torch.md", 2): a_torch_model,
    ("cookbook/checkpoints.md", 0): a_torch_model,
    ("cookbook/checkpoints.md", 1): a_keras_model,
    ("libraries.md", 0): a_keras_model,
}


def test_all_have_what_they_need():
    assert set(ours()) == set(GIVEN)


@pytest.mark.parametrize("page, i", GIVEN, ids=str)
def test_a_snippet_runs(page, i, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = GIVEN[page, i]()
    code = snippets(page)[i].replace("make_mesh((8,)", "make_mesh((4,)")  # the tests have four devices
    exec(compile(code, f"{page}, block {i}", "exec"), names)
    arrays = [x for x in jax.tree.leaves(names["state"]) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(np.isfinite(x).all() for x in arrays)
    assert page != "scaling.md" or any(not x.sharding.is_fully_replicated for x in arrays)


ROOT = DOCS.parent
PROSE = [str(p.relative_to(ROOT)) for p in (*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md")]


def calls_in_prose(page):
    """The calls of names of the library in the inline code of a page, such as those in its tables."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        try:
            nodes = list(ast.walk(ast.parse(code, mode="eval")))
        except SyntaxError:  # an excerpt
            continue
        for call in nodes:
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func).removeprefix("fo.")
                found = getattr(fo, name, None) or getattr(keras.optimizers, name, None)
                abbreviated = any(isinstance(a, ast.Constant) and a.value is ... for a in call.args)
                if found is not None and not abbreviated:
                    yield code, found, call


@pytest.mark.parametrize("page", PROSE)
def test_calls_in_prose_have_the_arguments_that_they_need(page):
    """Those with keywords only may be about these alone."""
    for code, fn, call in calls_in_prose(page):
        signature, keywords = inspect.signature(fn), {k.arg or "kwargs": k.value for k in call.keywords}
        try:
            (signature.bind if call.args else signature.bind_partial)(*call.args, **keywords)
        except TypeError as e:
            pytest.fail(f"`{code}`: {e}")
