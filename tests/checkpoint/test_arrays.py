"""Named arrays: what they are called, that they come back to the bit in any container, and what is refused."""

import copy
import json
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.checkpoint.manifest import _canonical
from functional_opt.checkpoint.stored import checksum_of, checksum_of_text

from ..conformance.cases import each_plain_case
from ..helpers import assert_same_types, make_params, structs
from ..interop.helpers import advance, bits


def assert_same_bits(actual, expected):
    """Same structure, types and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert_same_types(actual, expected)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            assert jax.random.key_impl(x) == jax.random.key_impl(y)
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert bits(x) == bits(y), jax.tree_util.keystr(path)


def assert_comes_back(tx, params, state, **given):
    arrays, manifest = fo.to_arrays(tx, params, state)
    same, *both = fo.from_arrays(arrays, json.loads(json.dumps(manifest)), **given)
    assert_same_bits(both, [params, state])
    return same, arrays, manifest


def own(tx, manifest):
    """`tx` where the manifest has no config."""
    return tx if manifest["config"] is None else None


def numbered(state):
    """The state with another number in each array, so that none can take the place of another."""
    leaves, treedef = jax.tree.flatten(state)
    return treedef.unflatten([jnp.asarray(np.full_like(x, i + 1)) if i else x for i, x in enumerate(leaves)])


@each_plain_case
def test_every_state_comes_back(case):
    """Also from arrays of NumPy, as a file has them."""
    tx, params = case.tx(), make_params()
    state = numbered(tx.init(params))
    arrays, manifest = fo.to_arrays(tx, params, state)
    arrays = {name: np.array(x) for name, x in arrays.items()}
    same, *both = fo.from_arrays(arrays, json.loads(json.dumps(manifest)), own(tx, manifest))
    assert_same_bits(both, [params, state])
    assert same == tx or manifest["config"] is None


def test_names():
    params = {"encoder": {"layer_0": {"kernel": jnp.ones((4, 2))}}, "head": [jnp.ones(2), None]}
    tx = fo.adamw(fo.linear_schedule(0.1, 0.0, 10))
    assert list(fo.to_arrays(tx, params, tx.init(params))[0]) == [
        *("encoder/layer_0/kernel", "head/0", "#0/count"),
        *("encoder/layer_0/kernel#mu", "head/0#mu", "encoder/layer_0/kernel#nu", "head/0#nu", "#2/count"),
    ]
    tx = fo.partition({"a": fo.trace(0.9), "b": fo.trace(0.8)}, {"head/**": "a", "**": "b"})
    names = [*fo.to_arrays(tx, params, tx.init(params))[0]]
    assert names[2:] == ["head/0#trace", "encoder/layer_0/kernel#trace"]
    single = jnp.ones(3)
    assert [*fo.to_arrays(fo.adam(0.1), single, fo.adam(0.1).init(single))[0]] == [".", "#count", ".#mu", ".#nu"]


def test_names_that_would_be_the_same():
    """Slashes and signs in keys are escaped or numbered only where two arrays would share a name."""
    params = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(2)}, "c/d": jnp.ones(3), "c/d#trace": jnp.ones(4)}
    _, arrays, _ = assert_comes_back(tx := fo.trace(0.9), params, tx.init(params))
    assert {name: x.shape for name, x in arrays.items()} == {
        **{"a/b": (2,), "a%2Fb": (1,), "c/d": (3,), "c/d#trace": (4,)},
        **{"a/b#trace": (2,), "a%2Fb#trace": (1,), "c/d#trace~2": (3,), "c/d#trace#trace": (4,)},
    }


def test_fields_and_keys_of_the_same_name():
    """A param called `scale`, and a field of that name in a state that declares nothing."""
    params = {"scale": jnp.ones(())}
    tx = optax.contrib.reduce_on_plateau(0.5)
    arrays, _ = fo.to_arrays(tx, params, tx.init(params))
    assert {"scale", "#scale", "#count"} <= arrays.keys()


def test_names_do_not_depend_on_containers():
    leaves = {f"layers/{i}/{name}": jnp.full(2, float(i)) for i in range(11) for name in ("w", "b")}
    nested = {"layers": [{"w": leaves[f"layers/{i}/w"], "b": leaves[f"layers/{i}/b"]} for i in range(11)]}
    as_tuple = {"layers": tuple(nested["layers"])}
    as_dict = {"layers": {str(i): layer for i, layer in enumerate(nested["layers"])}}
    tx = fo.quantize_state(fo.chain(fo.clip_by_global_norm(1.0), fo.sm3(0.1)), min_size=0)
    state = numbered(tx.init(nested))
    arrays, manifest = fo.to_arrays(tx, nested, state)
    for other in (as_tuple, as_dict, leaves):
        _, params, there = fo.from_arrays(arrays, manifest, params=structs(other))
        assert_same_bits(params, other)
        again, _ = fo.to_arrays(tx, params, there)
        assert {name: bits(x) for name, x in again.items()} == {name: bits(x) for name, x in arrays.items()}
    assert_same_bits(fo.from_arrays(arrays, manifest)[1:], (nested, state))


def test_nnx_and_equinox():
    """A model with functions among its leaves, and variables in boxes."""
    nnx, eqx = pytest.importorskip("flax.nnx"), pytest.importorskip("equinox")
    model = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    bare = {"kernel": model["kernel"][...], "bias": model["bias"][...]}
    tx = fo.adam(0.1)
    arrays, manifest = fo.to_arrays(tx, model, tx.init(model))
    assert fo.to_arrays(tx, bare, tx.init(bare))[0].keys() == arrays.keys()
    assert_same_bits(fo.from_arrays(arrays, manifest, params=structs(model))[1:], (model, tx.init(model)))
    assert_same_bits(fo.from_arrays(arrays, manifest)[1:], (bare, tx.init(bare)))
    mlp = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    state = tx.init(eqx.filter(mlp, eqx.is_array))
    arrays, manifest = fo.to_arrays(tx, mlp, state)
    assert {"layers/0/weight", "layers/1/bias#mu"} <= arrays.keys()
    _, params, there = fo.from_arrays(arrays, manifest, params=eqx.filter_eval_shape(lambda: mlp))
    assert_same_bits(eqx.filter(params, eqx.is_array), eqx.filter(mlp, eqx.is_array))
    assert_same_bits(there, state)
    assert params.activation is mlp.activation


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_kinds_of_leaves(impl):
    params = {
        "bf16": jnp.ones(3, "bfloat16"),
        "complex": jnp.full(2, 1 + 2j),
        "empty": jnp.ones((0, 3)),
        "fp8": jnp.ones(2, "float8_e4m3fn"),
        "int4": jnp.arange(4).astype("int4"),
        "key": jax.random.key(3, impl=impl),
        "keys": jax.random.split(jax.random.key(3, impl=impl), 3),
        "none": None,
        "number": 0.5,
        "numpy": np.ones(2, ">f4"),
        "bool": jnp.array([True]),
    }
    arrays, manifest = fo.to_arrays(fo.chain(), params, ())
    _, back, _ = fo.from_arrays(arrays, json.loads(json.dumps(manifest)))
    assert_same_bits(back, params | {"number": jnp.asarray(0.5), "numpy": jnp.ones(2)})


def test_a_typed_key_stays_typed():
    tx, params = fo.add_noise(0.1, 0.5, key=jax.random.key(7)), make_params()
    state = tx.init(params)
    assert_comes_back(tx, params, state._replace(rng_key=jax.random.wrap_key_data(state.rng_key)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: fo.MultiSteps(tx, 3).gradient_transformation(),
        lambda tx: fo.chain(tx, fo.params_ema(0.9)),
        lambda tx: fo.groups(tx, {"*/bias": {"learning_rate_factor": 0.1}}),
        lambda tx: fo.masked(tx, {"*/bias": False}),
        lambda tx: fo.quantize_state(tx, min_size=0, bits=4),
        lambda tx: fo.with_metrics(fo.dynamic_loss_scale(tx)),
        lambda tx: fo.named_chain(("a/b", tx), ("a", fo.chain(fo.identity(), tx))),
    ],
)
def test_wrappers(wrap):
    tx, params = wrap(fo.adamw(fo.linear_schedule(0.1, 0.0, 10))), make_params()
    params, state = advance(tx, params, tx.init(params), range(2))
    same, _, _ = assert_comes_back(tx, params, state)
    assert same == tx


@pytest.mark.parametrize("frozen", [False, True])
def test_transformations_of_others(frozen):
    """They have no config, so `from_arrays` needs them."""
    tx, params = optax.adamw(optax.linear_schedule(0.1, 0.0, 10)), make_params()
    tx = (
        optax.partition({"on": tx, "off": optax.set_to_zero()}, lambda p: jax.tree.map(lambda _: "on", p))
        if frozen
        else tx
    )
    state = tx.init(params)
    arrays, manifest = fo.to_arrays(tx, params, state)
    assert "dense/kernel#mu" in arrays and manifest["config"] is None
    assert_same_bits(fo.from_arrays(arrays, manifest, tx)[1:], (params, state))
    with pytest.raises(ValueError, match=r"no config of the transformation .*: pass it as tx="):
        fo.from_arrays(arrays, manifest)


def test_shardings():
    """Arrays go where abstract params say; slots of their shape go beside them."""
    mesh = jax.make_mesh((4,), ("data",))
    params, tx = make_params(), fo.adam(0.1)
    arrays, manifest = fo.to_arrays(tx, params, tx.init(params))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def abstract(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows if x.ndim else None)

    _, there, state = fo.from_arrays(arrays, manifest, params=jax.tree.map(abstract, params))
    assert_same_bits((there, state), (params, tx.init(params)))
    assert there["dense"]["kernel"].sharding == rows and state[0].nu["dense"]["kernel"].sharding == rows
    assert fo.to_arrays(tx, there, state)[1] == manifest
    *_, back = fo.from_arrays(arrays, manifest, params=params)
    assert len(back[0].nu["dense"]["kernel"].devices()) == 1


def sample():
    params, tx = make_params(), fo.adam(0.1)
    arrays, manifest = fo.to_arrays(tx, params, tx.init(params))
    return {name: np.array(x) for name, x in arrays.items()}, manifest


def changed(x):
    x = x.copy()
    x.reshape(-1).view(np.uint8)[0] ^= 1
    return x


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda a: a.pop("scale#mu"), "'scale#mu' is missing"),
        (lambda a: a.update(more=np.ones(1)), "'more' is not in the manifest"),
        (lambda a: a.update({"scale#nu": a["scale#nu"][None]}), r"'scale#nu' is float32\[1\], but .* float32\[\]"),
        (
            lambda a: a.update({"scale#nu": a["scale#nu"].astype("int32")}),
            r"'scale#nu' is int32\[\], but .* float32\[\]",
        ),
        (lambda a: a.update({"#count": changed(a["#count"])}), "'#count' is damaged"),
        (lambda a: a.update({"dense/bias": a["dense/bias"][::-1]}), "'dense/bias' is damaged"),
        (lambda a: a.update({"dense/bias": [1.0]}), "'dense/bias' must be an array"),
    ],
)
def test_wrong_arrays_are_refused(edit, message):
    arrays, manifest = sample()
    edit(arrays)
    with pytest.raises(ValueError, match=message):
        fo.from_arrays(arrays, manifest)


def sealed(manifest):
    """The manifest with the checksum of what it now says."""
    rest = {key: x for key, x in manifest.items() if key != "checksum"}
    return rest | {"checksum": checksum_of_text(_canonical(rest))}


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda m: m.update(format="other"), "the format 'functional_opt.checkpoint'"),
        (lambda m: m.update(version=2), "version 2; this library reads version 1"),
        (lambda m: m.update(version=True), "version True"),
        (lambda m: m.pop("config"), "must have the keys"),
        (lambda m: m.update(arrays=[]), "must have the keys"),
        (lambda m: m["config"]["value"]["transforms"][0].update(b1=2.0), r"b1 must be in \[0, 1\), got 2.0"),
        (lambda m: m["config"]["value"].update(type="os.system"), "os.system"),
        (lambda m: m.update(config=7), "the manifest's config"),
        (lambda m: m["arrays"]["#count"].update(dtype="object"), "'#count' must have one of the dtypes"),
        (lambda m: m["arrays"]["#count"].update(shape=[-1]), "'#count' must have a shape"),
        (lambda m: m["arrays"]["#count"].update(role="pickle"), "'#count' must have the role"),
        (lambda m: m["arrays"]["#count"].update(key="threefry2x32"), "'#count' must have uint32 data"),
        (lambda m: m["arrays"]["#count"].update(slot="0/mu"), "'#count', but tx.init"),
        (lambda m: m["arrays"]["scale#nu"].update(slot="0/mu"), "the same slot and path twice"),
        (lambda m: m["arrays"]["scale"].update(path="other"), "containers do not hold the params"),
        (lambda m: m.update(containers={"dict": [["a", "no such"]]}), "the manifest's containers must be"),
        (lambda m: m.update(containers={"dict": [["a", "scale"], ["a", "scale"]]}), "have a key twice"),
    ],
)
def test_wrong_manifests_are_refused(edit, message):
    arrays, manifest = sample()
    edit(edited := copy.deepcopy(manifest))
    with pytest.raises(ValueError, match=message):
        fo.from_arrays(arrays, sealed(edited))
    with pytest.raises(ValueError):
        fo.from_arrays(arrays, edited)


def test_an_edited_manifest_is_refused():
    arrays, manifest = sample()
    manifest["config"]["value"]["transforms"][0]["b1"] = 0.5
    with pytest.raises(ValueError, match="damaged or was edited.*pass tx="):
        fo.from_arrays(arrays, manifest)
    for wrong in (None, [], {**manifest, "config": {1, 2}}, {**manifest, "config": float("nan")}):
        with pytest.raises(ValueError, match="the manifest"):
            fo.from_arrays(arrays, wrong)
    nested = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(ValueError, match="nested deeper"):
        fo.from_arrays(arrays, {**manifest, "containers": nested})


def test_params_and_transformations_that_do_not_fit():
    arrays, manifest = sample()
    params = structs(make_params())
    with pytest.raises(ValueError, match="'scale', but the given params have no such leaf"):
        fo.from_arrays(arrays, manifest, params={"dense": params["dense"]})
    with pytest.raises(ValueError, match="the given params have 'more', but the checkpoint has no such array"):
        fo.from_arrays(arrays, manifest, params=params | {"more": params["scale"]})
    with pytest.raises(ValueError, match=r"'scale' is float32\[\], but the given params have float32\[4\]"):
        fo.from_arrays(arrays, manifest, params=params | {"scale": params["dense"]["bias"]})
    with pytest.raises(ValueError, match=r"'#count', but tx.init\(params\) makes no such slot.*\n.*dropped  0/count"):
        fo.from_arrays(arrays, manifest, tx=fo.rmsprop(0.1))
    with pytest.raises(ValueError, match=r"ScaleByAdamState, but tx.init\(params\) makes a ScaleByBeliefState there"):
        fo.from_arrays(arrays, manifest, tx=fo.adabelief(0.1))
    assert fo.from_arrays(arrays, manifest, tx=fo.adam(0.5))[0] == fo.adam(0.5)


def test_another_transformation_migrates():
    params, old = make_params(), fo.adam(0.1)
    state = advance(old, params, old.init(params), [0])[1]
    arrays, manifest = fo.to_arrays(old, params, state)
    new = fo.chain(fo.clip_by_global_norm(1.0), fo.adam(0.1, state_dtype="bfloat16"), fo.params_ema(0.9))
    with pytest.warns(UserWarning, match=r"(?s)migrated .*converted  1/0/mu .*fresh      2/ema"):
        tx, _, back = fo.from_arrays(arrays, manifest, new)
    assert tx == new and int(back[1][0].count) == 1
    assert_same_bits(back, fo.migrate(state, old, new, params)[0])
    longer = fo.chain(fo.clip_by_global_norm(1.0), old)
    assert_same_bits(fo.from_arrays(arrays, manifest, longer)[2][1], state)  # all is kept, and nothing said


def test_what_cannot_be_saved():
    params, tx = make_params(), fo.adam(0.1)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"the state has no dense/bias#0/trace"):
        fo.to_arrays(fo.chain(fo.trace(0.9)), params, state)
    with pytest.raises(ValueError, match=r"the state has #0/mu/scale, which tx.init\(params\) does not make"):
        fo.to_arrays(tx, {"dense": params["dense"]}, state)
    with pytest.raises(TypeError, match="scale is a tracer"):
        jax.jit(lambda w: fo.to_arrays(fo.chain(), {"scale": w}, ())[0])(1.0)
    with pytest.raises(TypeError, match="dense/bias has a shape and a dtype but no value"):
        fo.to_arrays(tx, structs(params), state)
    step = fo.make_train_step(lambda w: jnp.sum(w["scale"] ** 2))
    step(tx, params, state)
    with pytest.raises(ValueError, match="has been deleted"):
        fo.to_arrays(tx, params, state)


def test_float64_needs_x64():
    params = {"w": np.arange(3, dtype="float64")}
    arrays, manifest = fo.to_arrays(fo.chain(), params, ())
    with pytest.raises(ValueError, match="'w' is float64.*jax_enable_x64"):
        fo.from_arrays(arrays, manifest)
    with jax.enable_x64(True):
        _, back, _ = fo.from_arrays(arrays, manifest)
        assert_same_bits(back, {"w": jnp.arange(3, dtype="float64")})


def test_checksums_are_of_bytes():
    assert checksum_of(np.array([0.0], "float32")) != checksum_of(np.array([-0.0], "float32"))


HOSTILE = int(os.environ.get("FUNCTIONAL_OPT_HOSTILE_MANIFESTS", "200"))
VALUES = [
    None,
    True,
    -1,
    0,
    10**30,
    0.5,
    "",
    "scale",
    "0/mu",
    "uint32",
    "__import__",
    [],
    [[]],
    {},
    {"type": "chain"},
]


def places(node, at=()):
    """Every place in a JSON value."""
    yield at
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places(node[key], (*at, key))


def test_hostile_manifests():
    """Something else anywhere, with the right checksum: ValueError, or the same bits if it does not matter."""
    arrays, manifest = sample()
    manifest["config"] = fo.to_config(fo.adam(0.1, b1=0.9))
    everywhere, rng, refused = [at for at in places(manifest) if at], random.Random(0), 0
    for _ in range(HOSTILE):
        *way, last = rng.choice(everywhere)
        edited = node = copy.deepcopy(manifest)
        for key in way:
            node = node[key]
        node[last] = copy.deepcopy(rng.choice(VALUES))
        try:
            _, *both = fo.from_arrays(arrays, sealed(edited))
        except ValueError:
            refused += 1
        else:
            assert [bits(x) for x in jax.tree.leaves(both)] == [bits(x) for x in arrays.values()], (way, last)
    assert refused > HOSTILE // 2
