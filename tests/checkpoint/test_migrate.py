"""migrate: a matrix of edits and chains, each with its report, and training that goes on where slots are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.checkpoint.entries import entries_of_state

from ..helpers import assert_close, assert_same_types, at, make_grads, make_params
from .test_arrays import assert_same_bits

RATE = fo.linear_schedule(0.05, 0.01, 20)
CHAINS = {
    "sgd": fo.sgd(RATE, momentum=0.9),
    "adam": fo.adam(0.05),
    "adamw": fo.adamw(RATE),
    "amsgrad": fo.amsgrad(0.05),
    "lion": fo.lion(0.01),
    "rmsprop": fo.rmsprop(0.05, momentum=0.9),
    "adagrad": fo.adagrad(0.05),
    "lamb": fo.lamb(0.01),
    "adafactor": fo.adafactor(0.05, min_dim_size_to_factor=2, momentum=0.5),
    "muon": fo.muon(0.05),
    "clipped": fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(RATE)),
    "free": fo.schedule_free_adamw(0.05),
}
each_chain = pytest.mark.parametrize("name", CHAINS)

# what an edit adds, and the rules of the states that it adds; training goes on with the same numbers
ADDED = {
    "clip": (lambda tx: fo.chain(fo.clip_by_global_norm(1e6), tx), set()),
    "decay": (lambda tx: fo.chain(tx, fo.add_decayed_weights(0.0)), set()),
    "nested": (lambda tx: fo.chain(fo.identity(), fo.chain(tx)), set()),
    "named": (lambda tx: fo.named_chain(("first", fo.identity()), ("opt", tx)), set()),
    "masked": (lambda tx: fo.masked(tx, {"**": True}), set()),
    "partition": (lambda tx: fo.partition({"all": tx}, {"**": "all"}), set()),
    "groups": (lambda tx: fo.groups(tx, {"*/bias": {"learning_rate_factor": 1.0}}), set()),
    "average": (lambda tx: fo.chain(tx, fo.params_ema(0.9)), {"ParamsEmaState"}),
    "metrics": (lambda tx: fo.with_metrics(tx), {"MetricsState", "ClippedState"}),
    "windows": (lambda tx: fo.MultiSteps(tx, 1).gradient_transformation(), {"MultiStepsState"}),
    "finite": (lambda tx: fo.apply_if_finite(tx, 3), {"ApplyIfFiniteState"}),
    "spikes": (lambda tx: fo.skip_spikes(tx), {"SkipSpikesState", "Rolling"}),
    "schedule": (lambda tx: fo.chain(tx, fo.scale_by_schedule(fo.constant_schedule(1.0))), {"ScaleByScheduleState"}),
    "monitor": (lambda tx: fo.chain(fo.monitor({"norm": fo.global_norm}), tx), {"MonitorState"}),
    "nans": (lambda tx: fo.chain(fo.zero_nans(), tx), {"ZeroNansState"}),
    "quantile": (lambda tx: fo.chain(fo.clip_by_quantile(1.0), tx), {"ClipByQuantileState", "Rolling"}),
    "rounding": (lambda tx: fo.stochastic_round(tx), {"StochasticRoundState"}),
    "kahan": (lambda tx: fo.kahan(tx), {"KahanState"}),
    "master": (lambda tx: fo.master_weights(tx), {"MasterWeightsState"}),
}


def trained(tx, params, steps=3, start=0, state=None):
    state = tx.init(params) if state is None else state
    grads = make_grads(start + steps)
    for i in range(start, start + steps):
        updates, state = tx.update(at(grads, i), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def kinds(report):
    return {move.kind for move in report}


def rules(state, params, moves):
    """The rules of the states that the moves are about."""
    by_place = {f"{x.slot}{x.part and '/' + x.part}": x.rule for x in entries_of_state(state, params)}
    return {by_place[move.slot] for move in moves}


@pytest.mark.parametrize("edit", ADDED)
@each_chain
def test_added(name, edit):
    """Everything is kept, and the next steps are the old chain's; taking it away again keeps everything, too."""
    old, params = CHAINS[name], make_params()
    params, state = trained(old, params)
    change, new_rules = ADDED[edit]
    new = change(old)
    moved, report = fo.migrate(state, old, new, params, strict=True)
    assert_same_types(moved, new.init(params))
    assert kinds(report) <= {"kept", "fresh", "converted"}
    assert rules(moved, params, report.of("fresh") + report.of("converted")) <= new_rules
    assert len(report.of("kept")) >= len(jax.tree.leaves(state))
    expected = trained(old, params, 2, 3, state)
    assert_close(trained(new, params, 2, 3, moved)[0], expected[0], rtol=1e-6)
    back, report = fo.migrate(moved, new, old, params)
    assert_same_bits(back, state)
    assert rules(moved, params, report.of("dropped")) <= new_rules and kinds(report) <= {"kept", "dropped"}


@each_chain
def test_the_same(name):
    old, params = CHAINS[name], make_params()
    params, state = trained(old, params)
    same, report = fo.migrate(state, old, old, params, strict=True)
    assert_same_bits(same, state)
    assert kinds(report) == {"kept"} and len(report) == len(jax.tree.leaves(state))


@each_chain
def test_split_by_path(name):
    """One chain becomes two, each with some of the leaves; counts are in both."""
    old, params = CHAINS[name], make_params()
    params, state = trained(old, params)
    new = fo.partition({"dense": old, "rest": old}, {"dense/**": "dense", "**": "rest"})
    moved, report = fo.migrate(state, old, new, params, strict=True)
    assert kinds(report) == {"kept"}
    back, report = fo.migrate(moved, new, old, params, strict=name != "muon")
    assert_same_bits(back, state)
    lost = {move.slot.split("/")[-2] for move in report.of("dropped")}  # of the part of Muon that has no matrices
    assert kinds(report) == {"kept"} or (name == "muon" and lost == {"0"})


@each_chain
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_and_back(name, bits):
    old, params = CHAINS[name], make_params()
    params, state = trained(old, params)
    new = fo.quantize_state(old, bits, min_size=0)
    moved, report = fo.migrate(state, old, new, params, strict=True)
    expected = new.encode(state)
    assert_same_bits(moved, expected)
    assert kinds(report) <= {"kept", "converted"}
    assert all(
        move.why == f"float32 to {'uint8' if bits == 4 else move.why.split()[-1]}" for move in report.of("converted")
    )
    again, report = fo.migrate(moved, new, new, params, strict=True)
    assert_same_bits(again, moved)
    assert kinds(report) == {"kept"}
    back, _ = fo.migrate(moved, new, old, params, strict=True)
    assert_same_bits(back, new.decode(moved))


@each_chain
def test_params_added_removed_and_of_another_shape(name):
    old, params = CHAINS[name], make_params()
    params, state = trained(old, params)
    more = params | {"more": {"kernel": jnp.ones((3, 2))}}
    moved, report = fo.migrate(state, old, old, more, strict=True)
    assert {move.path for move in report if move.kind == "fresh"} == {"more/kernel"}
    assert kinds(report) == {"kept", "fresh"}
    back, report = fo.migrate(moved, old, old, params)
    assert_same_bits(back, state)
    assert {move.path for move in report.of("dropped")} == {"more/kernel"}
    assert {move.why for move in report.of("dropped")} == {"the params have no such leaf"}
    other = {**params, "dense": {**params["dense"], "kernel": jnp.ones((4, 3))}}
    moved, report = fo.migrate(state, old, old, other)
    assert {move.path for move in report.of("fresh")} == {"dense/kernel"} == {m.path for m in report.of("dropped")}
    trained_once = old.update(jax.tree.map(jnp.ones_like, other), moved, other)
    assert_same_types(trained_once[1], moved)


@each_chain
def test_params_renamed_and_in_another_container(name):
    old, params = CHAINS[name], make_params()
    params, state = trained(old, params)
    renamed = {"net": {"dense": params["dense"]}, "scale": params["scale"]}
    moved, report = fo.migrate(state, old, old, renamed, rename={"dense/**": "net/dense/**"}, strict=True)
    assert kinds(report) == {"kept"}
    by_hand = fo.migrate(moved, old, old, params, rename={"net/**": "**"}, strict=True)[0]
    assert_same_bits(by_hand, state)
    flat = {
        "dense/kernel": params["dense"]["kernel"],
        "dense/bias": params["dense"]["bias"],
        "scale": params["scale"],
    }
    assert kinds(fo.migrate(state, old, old, flat, strict=True)[1]) == {"kept"}


@each_chain
def test_another_mesh(name):
    old, params = CHAINS[name], make_params()
    params, state = trained(old, params)
    rows = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
    spread = jax.tree.map(lambda x: jax.device_put(x, rows) if x.ndim else x, params)
    moved, report = fo.migrate(state, old, old, spread, strict=True)
    assert_same_bits(moved, state)
    like = [x for x in jax.tree.leaves(moved) if x.shape == (4, 2)]
    assert all(x.sharding == rows for x in like) and kinds(report) == {"kept"}


@each_chain
def test_nothing_is_left(name):
    old, params = CHAINS[name], make_params()
    state = old.init(params)
    moved, report = fo.migrate(state, old, fo.chain(), params)
    assert moved == () and len(report) == len(jax.tree.leaves(state)) and kinds(report) == {"dropped"}
    with pytest.raises(ValueError, match=rf"strict: {len(report)} arrays of the old state would be lost:\ndropped"):
        fo.migrate(state, old, fo.chain(), params, strict=True)


def one(report, kind, slot):
    """The reasons that a report gives for a slot, by path."""
    return {move.path: move.why for move in report if move.kind == kind and move.slot == slot}


def test_sgd_and_lion():
    params = make_params()
    params, state = trained(sgd := fo.sgd(0.1, momentum=0.75), params)
    moved, report = fo.migrate(state, sgd, lion := fo.lion(0.01), params, strict=True)
    assert_close(moved[0].mu, jax.tree.map(lambda t: 0.25 * t, state[0].trace))
    assert set(one(report, "converted", "0/mu").values()) == {"the sum of the gradients times 1 - decay"}
    assert one(report, "fresh", "0/count") == {None: "new"}
    back, report = fo.migrate(moved, lion, sgd, params)
    assert_same_bits(back, state)
    assert one(report, "dropped", "0/count") == {None: "the new state has no such slot"}
    unknown = optax.sgd(0.1, momentum=0.75)
    _, report = fo.migrate(unknown.init(params), unknown, lion, params)
    assert set(one(report, "fresh", "0/mu").values()) == {"the decay of the momentum is not known"}


@pytest.mark.parametrize("other", [fo.adamw, fo.nadam, fo.lamb, fo.nadamw, fo.radam])
def test_the_family_of_adam(other):
    params, state = trained(fo.adam(0.1), make_params())
    moved, report = fo.migrate(state, fo.adam(0.1), other(0.1), params, strict=True)
    assert_same_bits(moved[0], state[0])
    assert kinds(report) == {"kept"}


def test_adam_and_muon():
    """Matrices keep their means; their squares are dropped, and that is said."""
    params, state = trained(adam := fo.adam(0.1), make_params())
    moved, report = fo.migrate(state, adam, muon := fo.muon(0.02), params)
    matrices = moved.inner_states["muon"].inner_state[0]
    assert_same_bits(matrices.mu["dense"]["kernel"], state[0].mu["dense"]["kernel"])
    assert int(matrices.count) == 3 and int(moved.inner_states["adam"].inner_state[0].count) == 3
    assert one(report, "dropped", "0/nu") == {"dense/kernel": "the new state has no such slot"}
    assert all("/ns_coeffs" in move.slot for move in report.of("fresh"))
    with pytest.raises(ValueError, match=r"strict: 1 arrays .*\ndropped  0/nu  dense/kernel"):
        fo.migrate(state, adam, muon, params, strict=True)


def test_the_schedule_goes_on():
    params, state = trained(fo.adam(0.1), make_params())
    moved, report = fo.migrate(state, fo.adam(0.1), fo.adam(RATE), params, strict=True)
    assert int(moved[1].count) == 3
    assert one(report, "converted", "1/count") == {None: "the steps done, from 0/count"}
    params, state = trained(fo.sgd(0.1), make_params())
    moved, report = fo.migrate(state, fo.sgd(0.1), fo.sgd(RATE), params)
    assert int(moved[1].count) == 0 and one(report, "fresh", "1/count") == {None: "new"}


def test_an_average_starts_from_the_params():
    params, state = trained(adam := fo.adam(0.1), make_params())
    new = fo.chain(adam, fo.params_ema(0.9))
    moved, report = fo.migrate(state, adam, new, params)
    assert_close(fo.eval_params(moved, params), params)
    assert set(one(report, "fresh", "1/ema").values()) == {"the average starts from the params"}
    assert_close(fo.migrate(state, adam, fo.lookahead(adam, 4, 0.5), params)[0].slow, params)


def test_moments_of_other_rules_start_afresh():
    """Adam's correction of the bias needs the count of its own moments."""
    params, state = trained(sgd := fo.sgd(RATE, momentum=0.9), make_params())
    moved, report = fo.migrate(state, sgd, adam := fo.adam(0.1), params)
    assert_same_bits(moved, adam.init(params))
    assert kinds(report) == {"fresh", "dropped"}


@pytest.mark.parametrize("state_dtype", ["bfloat16", "float16"])
def test_dtypes(state_dtype):
    params, state = trained(fo.adam(0.1), make_params())
    new = fo.adam(0.1, state_dtype=state_dtype)
    moved, report = fo.migrate(state, fo.adam(0.1), new, params, strict=True)
    assert_same_types(moved, new.init(params))
    assert one(report, "converted", "0/mu")["scale"] == f"float32 to {state_dtype}"
    assert_close(moved[0].mu, jax.tree.map(lambda x: x.astype(state_dtype), state[0].mu))


def test_two_slots_of_one_rule():
    """They are told apart by their order or their place; if neither does, they start afresh."""
    a, b = fo.trace(0.5), fo.trace(0.9)
    params, state = trained(old := fo.chain(a, b), make_params())
    assert_same_bits(fo.migrate(state, old, fo.chain(fo.clip(1.0), a, b), params, strict=True)[0][1:], state)
    moved, report = fo.migrate(state, old, fo.chain(fo.clip(1.0), fo.chain(a)), params)
    assert set(one(report, "fresh", "1/0/trace").values()) == {
        "which of 1 slots continues 0/trace, 1/trace is not clear"
    }
    moved, report = fo.migrate(state, old, fo.chain(a), params)
    assert_same_bits(moved[0], state[0])


def test_counts_that_differ():
    """Parts of a partition may have taken different numbers of steps."""
    adam, params = fo.adam(0.1), make_params()
    old = fo.partition({"a": adam, "b": adam}, {"dense/**": "a", "**": "b"})
    state = old.init(params)
    early = state.inner_states["b"]
    late = jax.tree.map(lambda x: x + 5 if x.dtype == jnp.int32 else x, state.inner_states["a"])
    moved, report = fo.migrate(state._replace(inner_states={"a": late, "b": early}), old, adam, params)
    assert int(moved[0].count) == 5
    assert one(report, "converted", "0/count") == {None: "the largest of the counts 5, 0"}


def test_from_optax():
    """The state of an Optax chain whose links are also here."""
    tx, params = optax.adamw(optax.linear_schedule(0.1, 0.0, 10)), make_params()
    state = tx.init(params)
    for i in range(3):
        _, state = tx.update(at(make_grads(3), i), state, params)
    moved, report = fo.migrate(state, tx, fo.adamw(fo.linear_schedule(0.1, 0.0, 10)), params, strict=True)
    assert kinds(report) == {"kept"}
    assert_close(moved[0].nu, state[0].nu)


def test_rename_rules():
    params, state = trained(adam := fo.adam(0.1), make_params())
    with pytest.raises(ValueError, match="rule 'nowhere/\\*\\*' of rename matches no path; the nearest are"):
        fo.migrate(state, adam, adam, params, rename={"nowhere/**": "x/**"})
    with pytest.raises(ValueError, match="rename makes 'scale' of both"):
        fo.migrate(state, adam, adam, params, rename={"dense/bias": "scale"})
    with pytest.raises(ValueError, match="must have the same wildcards in the same order"):
        fo.migrate(state, adam, adam, params, rename={"dense/*": "x/**"})


def test_the_report_is_a_table():
    params, state = trained(adam := fo.adam(0.1), make_params())
    report = fo.migrate(state, adam, fo.chain(fo.clip(1.0), fo.rmsprop(0.1)), params)[1]
    lines = str(report).splitlines()
    assert lines[0].split() == ["fresh", "1/0/nu", "dense/bias", "and", "2", "more", "new"]
    assert lines[1].startswith("dropped  0/count  -") and len(lines) == 4
    assert report[0].kind == "fresh" and np.ndim(report) == 2
