"""plot draws the numbers that training uses; explain and describe show schedules as bars and tables in notebooks."""

import re
import sys
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.analysis.sparkline import BARS, ENDLESS, end_of, sparkline

PARAMS = {"embed": {"w": jnp.ones((9, 4))}, "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
COSINE = fo.cosine_decay_schedule(1e-2, 200)


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def lines(ax):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in ax.get_lines()}


def test_a_schedule_to_its_end(plt):
    (steps, values) = lines(fo.plot(COSINE, label="cosine"))["cosine"]
    assert steps[0] == 0 and steps[-1] == 200
    np.testing.assert_allclose(values, COSINE(jnp.asarray(steps)), rtol=1e-6)
    assert len(lines(fo.plot(lambda count: 0.1 if count.shape == () else 1 / 0, 7, label="f"))["f"][0]) == 8


def test_into_given_axes(plt):
    _, ax = plt.subplots()
    assert fo.plot(COSINE, ax=ax, log=True) is ax and ax.get_yscale() == "log"


def test_rates_by_group_are_those_of_training(plt):
    """Each line is the ratio of the updates of a leaf to those of a chain with rate 1."""
    rules = {"embed/*": {"learning_rate_factor": 0.1}, "*/bias": {"learning_rate": 0.5}}
    tx = fo.groups(fo.sgd(COSINE), rules)
    drawn = lines(fo.plot(tx, 20, PARAMS))
    assert len(drawn) == 3
    state, taken = tx.init(PARAMS), []
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    for _ in range(21):
        updates, state = tx.update(ones, state, PARAMS)
        taken.append([-u.ravel()[0] for u in jax.tree.leaves(updates)])
    by_leaf = np.array(taken).T  # embed/w, head/bias, head/kernel
    found = [values for _, values in drawn.values()]
    np.testing.assert_allclose(found, by_leaf, rtol=1e-5)
    assert list(drawn) == ["the rest, embed/*", "*/bias, the rest", "the rest"]


def test_frozen_leaves_and_rates_without_params(plt):
    tx = fo.groups(fo.adam(COSINE), {"embed/*": "frozen"})
    drawn = lines(fo.plot(tx, 10, PARAMS))
    assert sorted(values.max() for _, values in drawn.values()) == [0.0, pytest.approx(1e-2)]
    assert [float(values[0]) for _, values in lines(fo.plot(tx, 10)).values()] == [pytest.approx(1e-2)]
    assert len(lines(fo.plot(fo.schedule_free(fo.sgd(0.1), 0.1), 10))) == 1


def test_metrics_of_a_scan(plt):
    tx = fo.with_metrics(fo.chain(fo.clip_by_global_norm(0.5), fo.adam(COSINE)))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return (fo.apply_updates(params, updates), state), fo.metrics(state)

    _, gathered = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=12)
    axes = fo.plot(gathered)
    named = {ax.get_ylabel(): ax for ax in axes}
    assert set(named) == {"learning_rate", "norm", "skipped", "update_ratio"}
    norms = lines(named["norm"])
    assert set(norms) == {"gradient_norm", "clipped_norm", "update_norm"}
    np.testing.assert_allclose(norms["clipped_norm"][1], 0.5, rtol=1e-6)
    (steps, rates), *_ = lines(named["learning_rate"]).values()
    assert steps.tolist() == list(range(1, 13))
    np.testing.assert_allclose(rates, COSINE(jnp.arange(12)), rtol=1e-6)
    both = {name: jnp.stack([x, x]) for name, x in gathered.items()}
    assert [len(ax.get_lines()) for ax in fo.plot(both)] == [2 * len(ax.get_lines()) for ax in axes]
    _, ax = plt.subplots()
    assert fo.plot({"loss": np.arange(9.0)}, 5, ax=ax) is ax and len(lines(ax)["loss"][0]) == 5


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (3.0, TypeError, "x must be a schedule, a transformation or a dict of metrics, got 3.0"),
        (fo.clip(1.0), ValueError, "clip has no learning rate"),
        ({"loss": np.float32(1.0)}, ValueError, r"x\['loss'\] is one number"),
    ],
)
def test_refuses_by_name(plt, x, error, says):
    with pytest.raises(error, match=says):
        fo.plot(x)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="plot needs matplotlib: pip install"):
        fo.plot(COSINE)


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (fo.constant_schedule(0.1), 1),
        (fo.piecewise_constant_schedule(1.0, {300: 0.1, 70_000: 0.5}), 70_001),
        (fo.warmup_cosine_decay_schedule(0.0, 1.0, 10, 999), 999),
        (fo.inverse_sqrt_schedule(1.0, 10), ENDLESS),
        (lambda count: 0.1, 1),
    ],
    ids=["constant", "piecewise", "joined", "endless", "function"],
)
def test_where_a_schedule_ends(schedule, end):
    assert abs(end_of(schedule) - end) <= 1


def test_bars_rise_and_fall_with_the_schedule():
    bars, told = sparkline(fo.linear_schedule(0.0, 1.0, 70), width=8).split(" ", 1)
    assert bars == BARS and told == "0 → 1 in 70 steps"
    assert sparkline(fo.constant_schedule(0.0), 5, width=4).startswith(BARS[0] * 4)


class Cells(HTMLParser):
    """Collects the text of all cells, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


@pytest.mark.parametrize("show", [lambda tx: fo.explain(tx, PARAMS, steps=200), lambda tx: fo.describe(tx, PARAMS)])
def test_tables_in_a_notebook_say_what_the_text_says(show):
    tx = fo.groups(fo.adamw(COSINE, weight_decay=0.1), {"*/bias": {"weight_decay": 0.0}})
    shown, cells = show(tx), Cells()
    cells.feed(shown._repr_html_())
    assert not cells.open
    said = " ".join(cells.text)
    assert re.search(f"learning_rate [{BARS}]+ 0.01 → 0 in 200 steps", said)
    words = re.findall(r"(?<!\S)[\w/*]+(?!\S)", re.sub(r"\S*\.\.\.|-{3,}", " ", str(shown)))
    assert len(words) > 20 and [word for word in words if word not in said] == []
    assert all(len(line) <= 118 for line in str(shown).splitlines())
