"""scale_by_mup: the table of the paper, and the coordinate check that it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo


def shapes(width, heads=2):
    """A base model, and one with all widths changed."""
    return {
        "embed": np.zeros((50, width)),
        "query": {"kernel": np.zeros((width, heads, 4)), "bias": np.zeros((heads, 4))},
        "out": {"kernel": np.zeros((heads, 4, width))},
        "norm": np.zeros(width),
        "head": {"kernel": np.zeros((width, 10)), "bias": np.zeros(10)},
        "temperature": np.zeros(()),
    }


FAN_IN = {"query/kernel": (0,), "query/bias": (), "out/kernel": (0, 1)}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_table_3_of_the_paper(optimizer):
    """Width 8 times larger, in 4 times as many heads of the same size."""
    found = fo.scale_by_mup(shapes(8), optimizer, FAN_IN).multipliers(shapes(64, heads=8))
    of_adam = {"embed": 1, "query": {"kernel": 1 / 8, "bias": 1}, "out": {"kernel": 1 / 4}, "norm": 1}
    of_sgd = {"embed": 8, "query": {"kernel": 4 / 8, "bias": 4}, "out": {"kernel": 8 / 4}, "norm": 8}
    same = {"head": {"kernel": 1 / 8, "bias": 1}, "temperature": 1}
    assert found == (of_adam if optimizer == "adam" else of_sgd) | same


def test_rules_structs_and_tuples_say_the_same():
    base, wide = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, shapes(8))), shapes(32)
    rules = {"query/kernel": (8, 2, 4), "out/kernel": (2, 4, 8), "head/kernel": (8, 10), "**": None}
    tuples = jax.tree.map(np.shape, shapes(8))
    expected = fo.scale_by_mup(base, fan_in=FAN_IN).multipliers(wide)
    for other in (rules, fo.PathRules(rules), tuples):
        assert fo.scale_by_mup(other, fan_in=FAN_IN).multipliers(wide) == expected
    assert fo.scale_by_mup(base, fan_in=FAN_IN) == fo.scale_by_mup(tuples, fan_in=FAN_IN)


def test_explain_shows_what_it_touches():
    tx = fo.chain(fo.scale_by_adam(), fo.scale_by_mup(shapes(8), fan_in=FAN_IN), fo.scale_by_learning_rate(0.1))
    row = fo.explain(tx, jax.tree.map(lambda x: x.astype("float32"), shapes(16))).rows[2]
    assert row.leaves == ("head/kernel", "query/kernel") and len(row.seen) == 8


@pytest.mark.parametrize(
    "tx, message",
    [
        (
            fo.scale_by_mup(shapes(8)),
            r"\['query'\]\['kernel'\] .* more than the last two axes differ. Say which",
        ),
        (fo.scale_by_mup(shapes(8)["query"]), "`base_params` has no leaf at"),
        (
            fo.scale_by_mup({"embed": (8,), "**": None}),
            r"\['embed'\] has shape \(50, 16\).* axes must be as many",
        ),
        (fo.scale_by_mup({"**": None}, fan_in={"norm": (1,)}), r"fan_in=\(1,\) for params\['norm'\]"),
        (fo.scale_by_mup({"*/nothing": (1,), "**": None}), "matches no leaf"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_at_init(tx, message):
    with pytest.raises(ValueError, match=message):
        tx.init(shapes(16))


def test_what_is_no_shape():
    with pytest.raises(TypeError, match=r"base_params\['\*\*'\] must be an array or a shape such as \(64, 64\), got"):
        fo.scale_by_mup({"**": "wide"})
    with pytest.raises(TypeError, match="must be a tuple of axes"):
        fo.scale_by_mup({"**": None}, fan_in={"**": 0})


def mlp(params, x):
    """The activations of each layer."""
    h = jnp.tanh(x @ params["in"])
    k = jnp.tanh(h @ params["hidden"])
    return h, k, k @ params["out"]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def start(width):
    """As μP has it: variances of 1/fan_in, and 1/fan_in² for the output."""
    return {
        "in": normal(0, 8, width) / np.float32(8**0.5),
        "hidden": normal(1, width, width) / np.float32(width**0.5),
        "out": normal(2, width, 4) / np.float32(width),
    }


def change_of_activations(width, tx):
    """The root mean square of what 4 steps change in each layer's activations."""
    x, y = normal(3, 16, 8), normal(4, 16, 4)

    @jax.jit
    def run(before):
        def step(_, carry):
            params, state = carry
            grads = jax.grad(lambda p: jnp.mean((mlp(p, x)[-1] - y) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            return fo.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, 4, step, (before, tx.init(before)))
        pairs = zip(mlp(params, x), mlp(before, x), strict=True)
        return jnp.stack([jnp.sqrt(jnp.mean((a - b) ** 2)) for a, b in pairs])

    return np.asarray(run(start(width)))


@pytest.mark.parametrize("rule, optimizer, rate", [(fo.scale_by_adam(), "adam", 0.01), (fo.identity(), "sgd", 0.5)])
def test_coordinate_check(rule, optimizer, rate):
    """From a width of 16 to one of 512, the changes stay within a factor of 2 with μP, and not without."""
    mup = fo.scale_by_mup(start(16), optimizer)

    def growth(*links):
        narrow, wide = (change_of_activations(w, fo.chain(rule, *links, fo.scale(-rate))) for w in (16, 512))
        return wide / narrow

    with_mup, without = growth(mup), growth()
    assert (with_mup > 0.5).all() and (with_mup < 2).all()
    assert (without > 4).any()


MUONS = {
    "Muon for all": {"learning_rate": 0.05},
    "Adam's size": {"learning_rate": 0.05, "consistent_rms": 0.2},
    "Adam at the ends": {"learning_rate": 0.05, "consistent_rms": 0.2, "muon_mask": {"hidden": True, "*": False}},
}


@pytest.mark.parametrize("name", MUONS)
def test_coordinate_check_of_muon(name):
    """From a width of 32 to one of 128 and of 512, with base_params, and not without."""

    def growth(base, width):
        tx = fo.muon(**MUONS[name], base_params=base)
        return change_of_activations(width, tx) / change_of_activations(32, tx)

    for width in (128, 512):
        transferred = growth(start(32), width)
        assert (transferred > 0.6).all() and (transferred < 1.6).all(), width
    assert (growth(None, 512) > 2.5).any()


def test_the_base_model_is_as_without_base_params():
    for args in MUONS.values():
        both = (change_of_activations(32, fo.muon(**args, base_params=base)) for base in (None, start(32)))
        np.testing.assert_array_equal(*both)


def test_layouts_and_rules_say_which_axes_are_wider():
    """The transposes get the transposed updates; rules name only what grows."""

    def turned(params):
        return {name: {"weight": w.T if name != "embed" else w} for name, w in params.items()}

    def params(width):
        return {"embed": normal(0, 50, width), "up": normal(1, width, 2 * width), "head": normal(2, width, 10)}

    wide, base = params(64), params(16)
    rules = {"embed": (50, 16), "up": (16, 32), "head": (16, 10), "**": None}
    expected, _ = first_step(fo.muon(0.1, base_params=base), wide)
    by_rules, _ = first_step(fo.muon(0.1, base_params=fo.PathRules(rules)), wide)
    tx = fo.muon(0.1, base_params=turned(base), matrix_layout="out_in")
    found, _ = first_step(tx, turned(wide))
    for name, u in expected.items():
        np.testing.assert_allclose(by_rules[name], u, rtol=1e-6)
        np.testing.assert_allclose(turned({name: u})[name]["weight"], found[name]["weight"], rtol=1e-3, atol=1e-5)
    alone, _ = first_step(fo.muon(0.1), wide)
    ratios = {name: float(np.median(u / alone[name])) for name, u in expected.items()}
    assert ratios == pytest.approx({"embed": 1, "up": 1, "head": 0.25}, rel=1e-4)
    assert fo.from_config(fo.to_config(tx)) == tx


def first_step(tx, params):
    return tx.update(jax.tree.map(lambda w: np.cos(w) * 0.1, params), tx.init(params), params)


def test_muon_s_stacks_and_heads():
    """In a stack of layers, the number of layers counts for neither side; blocks have no shape in the base model."""
    base, wide = {"w": np.zeros((2, 8, 8))}, {"w": np.zeros((3, 8, 32), "float32") + 1}
    scale = fo.scale_by_shape(base_params=base)
    np.testing.assert_allclose(scale.update(wide, scale.init(wide))[0]["w"], 2.0)
    heads = fo.MuonDimensionNumbers(1, 2, output_blocks=2)
    with pytest.raises(ValueError, match=r"base_params: weight_dimension_numbers cut params\['w'\] into blocks"):
        fo.scale_by_shape(base_params=base, weight_dimension_numbers=heads).init(wide)
    with pytest.raises(ValueError, match=r"params\['w'\] has shape \(3, 8, 32\), but base_params \(8, 8\)"):
        fo.scale_by_shape(base_params={"w": (8, 8)}).init(wide)
