"""explain: exact numbers, a table that fits, and each note both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.analysis.summary import Explanation, size
from functional_opt.transforms.combining.nesting import children, walk

from ..conformance.cases import CASES, OPTIMIZERS, each_case
from ..conformance.programs import quick
from ..helpers import make_grads, make_params, train_eagerly

PARAMS = make_params()
OF_ITS_OWN_SIZE = (
    *("scale_by_dog", "scale_by_dowg", "scale_by_distance_over", "scale_by_cocob"),  # find their step size
    *("scale_by_lion-", "scale_by_radam", "scale_by_sophia-unclipped"),  # of one size in part, or later
    *("scale_by_trust_ratio", "scale_by_lbfgs"),  # the weights' size, and a Newton step's
)
KEEP_MORE = ("with_metrics", "quantize_state")  # norms of the clips, scales of the codes within it
ZERO = fo.linear_schedule(0.0, 0.0, 10)


@pytest.fixture
def without_flops(monkeypatch):
    """Which XLA counts in a program that it compiles first: for tests that only read the rest."""
    monkeypatch.setattr("functional_opt.analysis.summary._flops", lambda tx, params: None)


@each_case
def test_no_wrapper_is_unknown(case, without_flops):
    """Bytes are those of the state, every inner state is found, and no optimizer of the library gets a warning."""
    tx, plan = case.tx(), fo.explain(case.tx(), PARAMS)
    state = tx.init(PARAMS)
    actual = sum(x.nbytes for x in jax.tree.leaves(state))
    assert plan.state_bytes == actual == sum(row.state_bytes for row in plan.rows)
    assert all(row.state_bytes >= 0 for row in plan.rows)
    assert max(map(len, str(plan).split("\n"))) <= 118
    found = {path: state for path, _, _, state in walk(tx, state)}
    assert [path for path, state in found.items() if state is None] == []
    if not any(name in repr(tx) for name in KEEP_MORE):
        inner = [(row.state_bytes, found[row.path]) for row in plan.rows if not children(row.link)]
        assert [sum(x.nbytes for x in jax.tree.leaves(state)) for _, state in inner] == [n for n, _ in inner]
    assert case not in OPTIMIZERS or [note.rule for note in plan.notes if note.kind == "warning"] == []


@pytest.mark.parametrize(
    "tx",
    [
        fo.galore(0.1, rank=1, base_optimizer=fo.scale_by_adam()),
        fo.flatten(fo.chain(fo.scale_by_factored_rms(min_dim_size_to_factor=1), fo.scale(-0.1))),
    ],
    ids=repr,
)
def test_bytes_of_what_sees_params_of_other_shapes(tx):
    plan = fo.explain(tx, PARAMS)
    assert all(row.state_bytes >= 0 and row.leaves == plan.leaves for row in plan.rows)
    assert plan.state_bytes == sum(row.state_bytes for row in plan.rows)


def is_a_rule_alone(case):
    return case.name.startswith("scale_by_") and type(case.tx()).__name__ == case.name.split("-")[0]


@pytest.mark.parametrize("case", [case for case in CASES if is_a_rule_alone(case)], ids=repr)
def test_a_rule_that_preconditions_says_so(case):
    """Its updates are as large for gradients four times as large; what keeps a rate of its own is left out."""
    tx, grads = quick(case), make_grads(3)
    ones, fours = (train_eagerly(tx, PARAMS, jax.tree.map(lambda g, k=k: k * g, grads), 3)[0] for k in (1, 4))
    same = bool(fo.global_norm(fours) < 1.5 * fo.global_norm(ones))
    assert same == case.tx().preconditions or case.name.startswith(OF_ITS_OWN_SIZE), case.name


def test_what_each_link_touches():
    tx = fo.chain(
        fo.clip(1.0),
        fo.masked(fo.trace(0.9), {"dense/**": True}),
        fo.partition({"a": fo.adam(0.1), "b": fo.sgd(0.1)}, {"*/bias": "b", "**": "a"}),
        fo.add_decayed_weights(0.1, {"scale": False, "**": True}),
    )
    plan = fo.explain(tx, PARAMS)
    both, rest = ("dense/bias", "dense/kernel"), ("dense/kernel", "scale")
    touched = {row.path: row.leaves for row in plan.rows}
    assert plan.leaves == (*both, "scale") == touched[""] == touched[".transforms[0]"]
    assert touched[".transforms[1]"] == touched[".transforms[1].inner"] == both
    assert touched[".transforms[2].transforms['a'].transforms[0]"] == rest
    assert touched[".transforms[2].transforms['b'].transforms[1]"] == ("dense/bias",)
    assert touched[".transforms[3]"] == both
    state = {row.path: row.state_bytes for row in plan.rows}
    assert state[".transforms[1].inner"] == 12 * 4
    assert state[".transforms[2].transforms['a'].transforms[0]"] == 4 + 2 * 9 * 4


def test_the_table():
    text = str(fo.explain(fo.chain(fo.clip(1.0), fo.adamw(0.1, mask={"*/kernel": True})), PARAMS))
    assert text.split("\n")[0].split() == ["link", "what", "it", "does", "leaves", "state", "FLOPs"]
    for part in (
        "    scale_by_adam() ",
        "Adam's direction",
        " 108 B",
        "  on dense/kernel\n",
        " 1 of 3 ",
        "XLA counts",
    ):
        assert part in text
    assert "warning" not in text


def test_labels_may_have_dots():
    tx = fo.partition({"a.b": fo.sgd(0.1), "c.d": fo.set_to_zero()}, {"scale": "a.b", "**": "c.d"})
    plan = fo.explain(tx, PARAMS)
    assert [row.depth for row in plan.rows] == [0, 1, 2, 2, 1] and plan.notes == ()


def test_flops_count_the_work():
    big = {"w": jax.ShapeDtypeStruct((100, 100), "float32")}
    assert fo.explain(fo.clip(1.0), big).flops >= 1e4
    assert fo.explain(fo.adam(0.1), big).flops > fo.explain(fo.sgd(0.1), big).flops
    assert fo.explain(fo.aggregate("nowhere"), big).flops is None
    assert "?" in str(fo.explain(fo.aggregate("nowhere"), big))


def test_flops_of_what_a_kernel_would_do():
    """XLA cannot look into a kernel, so that explain counts the pure program; the decoding of codes is work, too."""
    params = {"w": jnp.zeros((256, 256))}
    assert fo.explain(fo.quantize_state(fo.adam(0.1)), params).flops > fo.explain(fo.adam(0.1), params).flops


def test_nothing_is_computed():
    huge = {"w": jax.ShapeDtypeStruct((10**6, 10**6), "bfloat16")}
    plan = fo.explain(fo.adam(0.1), huge)
    assert plan.state_bytes == 8 * 10**12 + 4 and "8,000.0 GB" in str(plan)
    assert isinstance(plan, Explanation) and size({"a": jnp.ones(3), "b": 1}) == 12


def test_foreign_transformations_and_empty_trees():
    pair = fo.GradientTransformation(lambda params: jnp.zeros(3), lambda u, s, params=None: (u, s))
    assert fo.explain(fo.chain(pair), PARAMS).state_bytes == 12
    assert fo.explain(fo.adam(0.1), {}).state_bytes == 4


def test_rules_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="rule 'dense/kernl' matches no leaf; the nearest paths are dense/kernel"):
        fo.explain(fo.adamw(0.1, mask={"dense/kernl": True, "*/bias": True}), PARAMS)


def rules(tx, **more):
    return [note.rule for note in fo.explain(tx, PARAMS, **more).notes if note.kind == "warning"]


ADAM, RATE, DECAY = fo.scale_by_adam(), fo.scale_by_learning_rate(0.1), fo.add_decayed_weights(0.1, {"*/bias": False})
EMA = fo.chain(fo.adam(0.1), fo.params_ema(0.9))
GROUPED = fo.groups(fo.adam(0.1), {"scale": {"learning_rate": 1.0}})
NORM = fo.clip_by_global_norm(1.0)
TREE = {"dense": {"bias": True, "kernel": True}, "scale": True}
NONE = {"dense": {"bias": False, "kernel": False}, "scale": False}
DENSE, SCALE = fo.PathRules({"dense/**": True}), fo.PathRules({"scale": True})


@pytest.mark.parametrize(
    "rule, bad, good",
    [
        ("decay_after_learning_rate", fo.chain(ADAM, RATE, DECAY), fo.chain(ADAM, DECAY, RATE)),
        ("decay_after_learning_rate", fo.chain(fo.adam(0.1), DECAY), fo.adafactor(0.1, weight_decay_rate=0.1)),
        ("decay_after_learning_rate", fo.chain(ADAM, fo.scale(-0.1), DECAY), fo.chain(fo.scale(0.1), DECAY, RATE)),
        (
            "decay_after_learning_rate",
            fo.chain(fo.masked(RATE, DENSE), DECAY, fo.masked(RATE, SCALE)),
            fo.chain(fo.masked(RATE, SCALE), fo.masked(fo.add_decayed_weights(0.1), DENSE), fo.masked(RATE, DENSE)),
        ),
        ("clip_after_preconditioner", fo.chain(ADAM, NORM, RATE), fo.chain(NORM, ADAM, RATE)),
        ("clip_after_preconditioner", fo.chain(fo.scale_by_lion(), fo.clip(1.0), RATE), fo.adafactor(0.1)),
        (
            "two_learning_rates",
            fo.chain(fo.adam(0.1), RATE),
            fo.groups(fo.adam(0.1), {"scale": {"learning_rate": 1.0}}),
        ),
        ("two_learning_rates", fo.chain(fo.sgd(0.1), fo.MultiSteps(fo.sgd(0.1), 2)), fo.schedule_free_sgd(0.1)),
        ("no_learning_rate", fo.chain(NORM, ADAM), fo.chain(NORM, ADAM, fo.scale(-0.1))),
        ("no_learning_rate", fo.chain(fo.trace(0.9), fo.masked(RATE, SCALE)), fo.scale_by_adam()),
        ("no_learning_rate", fo.chain(fo.scale_by_rms()), fo.chain(NORM, fo.ftrl(0.1))),
        ("uphill", fo.chain(ADAM, fo.scale(0.1)), fo.chain(ADAM, fo.scale(0.5), fo.scale(-0.1))),
        ("uphill", fo.chain(ADAM, fo.scale_by_schedule(lambda t: 0.1)), fo.chain(fo.trace(0.9), fo.sgd(0.1))),
        ("uphill", fo.chain(ADAM, fo.scale_by_learning_rate(0.1, flip_sign=False)), fo.schedule_free_sgd(0.1)),
        ("mask_of_nothing", fo.chain(fo.masked(fo.clip(1.0), NONE), RATE), fo.masked(RATE, DENSE)),
        ("mask_of_nothing", fo.adamw(0.1, mask=lambda p: NONE), fo.adamw(0.1, mask={"*/bias": False})),
        ("mask_of_everything", fo.masked(RATE, TREE), fo.masked(RATE, True)),
        ("mask_of_everything", fo.adamw(0.1, mask={"**/*": True}), fo.lars(0.1)),
        (
            "mask_of_everything",
            fo.masked(fo.masked(RATE, DENSE), {"*": True}),
            fo.masked(fo.masked(RATE, DENSE), True),
        ),
        ("not_last", fo.chain(fo.params_ema(0.9), fo.sgd(0.1)), fo.chain(fo.sgd(0.1), fo.params_ema(0.9))),
        ("not_last", fo.chain(fo.adam(0.1), fo.params_ema(0.9), fo.reduce_on_plateau()), fo.MultiSteps(EMA, 2)),
        ("not_last", fo.chain(fo.keep_params_nonnegative(), RATE), fo.chain(RATE, fo.keep_params_nonnegative())),
        (
            "decay_of_frozen",
            fo.chain(fo.freeze({"dense/*": True}), fo.adamw(0.1, mask={"*/bias": False})),
            fo.chain(fo.adamw(0.1, mask={"*/bias": False}), fo.freeze({"dense/*": True})),
        ),
        ("decay_of_frozen", fo.chain(fo.set_to_zero(), DECAY, RATE), fo.groups(fo.adamw(0.1), {"dense/*": "frozen"})),
        ("group_of_nothing", fo.partition({"a": RATE, "b": ADAM}, "a"), fo.muon(0.1)),
        ("schedule_of_zeros", fo.adam(ZERO), fo.adam(fo.linear_schedule(0.0, 0.1, 10))),
        ("schedule_of_zeros", fo.sgd(0.0), fo.sgd(lambda t: np.nan if t > 3 else 1.0)),
        ("schedule_of_zeros", fo.chain(fo.scale_by_schedule(ZERO)), fo.chain(fo.scale_by_schedule(lambda t: -0.1))),
    ],
    ids=str,
)
def test_each_warning_where_it_belongs(rule, bad, good, without_flops):
    assert rules(bad) == [rule]
    assert rules(good) == []


@pytest.mark.parametrize("tx", [fo.prodigy(), fo.chain(fo.clip(1.0), fo.dog())], ids=str)
def test_steps_that_16_bits_round_away(tx, without_flops):
    half = jax.tree.map(lambda x: x.astype("bfloat16"), PARAMS)
    found = [[note.rule for note in fo.explain(t, half).notes] for t in (tx, fo.master_weights(tx), fo.kahan(tx))]
    assert found == [["steps_below_rounding"], [], []] and rules(tx) == []


def test_a_schedule_that_ended(without_flops):
    tx = fo.adam(fo.cosine_decay_schedule(0.1, 100))
    assert rules(tx, steps=1000) == ["schedule_that_ended"]
    assert "is 0 after step 9" in str(fo.explain(tx, PARAMS, steps=1000))
    assert rules(tx, steps=100) == rules(tx) == rules(fo.MultiSteps(tx, 10), steps=1000) == []
    assert rules(fo.adam(fo.cosine_decay_schedule(0.1, 100, alpha=0.1)), steps=1000) == []


def hints(tx):
    return [note.rule for note in fo.explain(tx, PARAMS).notes if note.kind == "hint"]


def test_decay_of_vectors_is_a_hint(without_flops):
    assert hints(fo.adamw(0.1)) == ["decay_of_vectors"]
    assert "(dense/bias, scale): biases and norms" in str(fo.explain(fo.adamw(0.1), PARAMS)).replace("\n    ", " ")
    assert hints(fo.adamw(0.1, mask={"*/bias": False})) == hints(fo.adamw(0.1, weight_decay=0.0)) == []
    assert hints(fo.masked(fo.add_decayed_weights(0.1), {"*/kernel": True})) == []


def test_a_note_says_where_and_what_to_do():
    (note, *_) = fo.explain(fo.chain(fo.chain(ADAM, NORM), RATE), PARAMS).notes
    assert (note.kind, note.path) == ("warning", ".transforms[0].transforms[1]")
    assert (
        note.message.startswith("clip_by_global_norm(1.0) comes after scale_by_adam")
        and "Put it first" in note.message
    )


def test_on_several_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    params = {"w": np.zeros((64, 32), "float32"), "odd": np.zeros((33, 35), "float32"), "b": np.zeros(32, "float32")}
    alone, split = fo.explain(fo.adam(0.1), params, mesh=mesh), fo.explain(fo.shard(fo.adam(0.1)), params, mesh=mesh)
    assert fo.explain(fo.adam(0.1), params).placed is None
    assert alone.placed.state_bytes == alone.state_bytes == split.state_bytes
    assert split.placed.state_bytes == 2 * 4 * (64 * 32 // 4 + 33 * 35 + 32) + 4
    assert (alone.placed.sent, split.placed.sent) == ({}, {"all-gather": 4 * 64 * 32})
    assert alone.placed.whole == ("[0].mu['odd']", "[0].mu['w']", "[0].nu['odd']", "[0].nu['w']")
    assert split.placed.whole == ("[0].mu['odd']", "[0].nu['odd']")
    assert [note.rule for note in split.notes] == ["whole_on_every_device"]
    assert "Each of 4 devices has 13.6 kB of the state; in an update it gets 8,192 B by all-gather." in str(split)
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        state = fo.shard(fo.adam(0.1)).init(placed)
    assert split.placed.state_bytes == sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert alone.flops == fo.explain(fo.adam(0.1), params).flops
