"""describe: the routing of nested partitions, masks and groups, with its reasons."""

import jax
import jax.numpy as jnp
import pytest

import functional_opt as fo

PARAMS = {
    "embed": jnp.ones((9, 4)),
    "head": jnp.ones((4, 9)),
    "layer": {"bias": jnp.ones(4), "kernel": jnp.ones((4, 4)), "off": None},
}
RATE = fo.scale_by_learning_rate(0.1)
SGD = fo.chain(fo.identity(), RATE)


def route(tx, path):
    return next(route for route in fo.describe(tx, PARAMS).routes if route.path == path)


def test_muon_behind_a_clip_within_a_partition():
    tx = fo.partition({"a": SGD, "b": fo.chain(fo.clip(1.0), fo.muon(0.1))}, {"embed": "a", "**": "b"})
    assert route(tx, "embed") == ("embed", (9, 4), ("a",), SGD.transforms, ("labels: rule 'embed'",))
    path, shape, labels, links, why = route(tx, "head")
    assert (path, shape, labels, why) == (
        "head",
        (4, 9),
        ("b", "adam"),
        ("labels: rule '**'", "head: path 'head/**'"),
    )
    assert links[:2] == (fo.clip(1.0), fo.scale_by_adam(nesterov=True)) and links[-1] == RATE
    assert route(tx, "layer/bias").why[1] == "vector: 1-d"
    kernel = route(tx, "layer/kernel")
    assert (kernel.labels, kernel.why[1], kernel.links[1]) == (("b", "muon"), "matrix: 2-d", fo.scale_by_muon())


def test_masks_say_what_they_leave_out():
    masked = fo.masked(SGD, {"layer/*": False})
    assert route(masked, "layer/bias")[2:] == ((), (), ("mask: rule 'layer/*'",))
    assert route(masked, "embed")[2:] == ((), SGD.transforms, ("mask: no rule",))
    decay = fo.add_decayed_weights(0.1, {"embed": False, "head": True, "layer": False})
    assert route(fo.chain(decay, RATE), "embed")[2:] == ((), (RATE,), ("mask: a tree",))
    assert route(fo.chain(decay, RATE), "head").links == (decay, RATE)
    frozen = fo.selective_transform(SGD, freeze_mask={"*head": True})
    assert route(frozen, "head")[3:] == ((fo.set_to_zero(),), ("freeze_mask: rule '*head'",))


@pytest.mark.parametrize(
    "tx, path, labels, why",
    [
        (fo.groups(fo.adamw(0.1), {"head": "frozen"}), "head", ("frozen",), "labels: rule 'head'"),
        (fo.MultiSteps(fo.muon(0.1, muon_mask=True), 2), "head", ("muon",), "2-d"),
        (fo.muon(0.1, muon_mask={"*head": False}), "head", ("adam",), "mask"),
        (fo.muon(0.1, muon_weight_dimension_numbers=fo.MuonDimensionNumbers()), "head", ("muon",), "weight_dim"),
        (fo.partition({"all": SGD}, lambda params: "all"), "head", ("all",), "labels: "),
    ],
)
def test_other_wrappers(tx, path, labels, why):
    assert route(tx, path).labels == labels and route(tx, path).why[0].startswith(why)


def test_it_prints_a_table_for_shapes_too():
    decay = fo.add_decayed_weights(0.1, {"*embed": False})
    tx = fo.chain(decay, fo.normuon(0.1, matrix_mask={"*embed": False}), RATE)
    tx = fo.masked(tx, {"**/bias": False})
    lines = str(fo.describe(tx, jax.eval_shape(lambda: PARAMS))).split("\n")
    assert lines[0].split() == ["leaf", "shape", "goes", "to", "why"] and max(map(len, lines)) <= 118
    assert lines[2].split()[:4] == ["embed", "(9,", "4)", "adam"] and "unchanged" in lines[4]
    assert len(fo.describe(tx, {}).routes) == 0
