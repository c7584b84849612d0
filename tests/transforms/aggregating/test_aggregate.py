"""aggregate: gradients over four devices, under shard_map and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from functional_opt import adam, aggregate, apply_updates, chain, clip_by_global_norm

from ...helpers import assert_close

X = np.arange(8.0, dtype=np.float32)
Y = 3 * X + 1


def loss(params, x, y):
    return jnp.mean((params["w"] * x + params["b"] - y) ** 2)


PARAMS = {"w": jnp.array(2.0), "b": jnp.array(0.0)}


def on_four_devices(fn):
    """`fn` of a share of the batch on each of four devices, its result the same on all."""
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    share = PartitionSpec("device")
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=(share, share), out_specs=PartitionSpec()))(X, Y)


def own_gradient(x, y):
    """The gradient of this device's share alone: in `shard_map` that of a replicated value is summed already."""
    params = jax.tree.map(lambda p: jax.lax.pcast(p, "device", to="varying"), PARAMS)
    return jax.grad(loss)(params, x, y)


@pytest.mark.parametrize("op, devices", [("mean", 1), ("sum", 4)])
def test_of_the_shares_under_shard_map(op, devices):
    tx = aggregate("device", op)
    updates = on_four_devices(lambda x, y: tx.update(own_gradient(x, y), tx.init(PARAMS), PARAMS)[0])
    assert_close(updates, jax.tree.map(lambda g: devices * g, jax.grad(loss)(PARAMS, X, Y)), rtol=1e-6)


@pytest.mark.parametrize("op", ["mean", "sum"])
def test_a_sum_is_not_summed_again(op):
    tx = aggregate("device", op)
    with pytest.raises(
        ValueError, match=r"updates\['b'\] is the same on all devices of axis 'device': jax.shard_map"
    ):
        on_four_devices(lambda x, y: tx.update(jax.grad(loss)(PARAMS, x, y), tx.init(PARAMS), PARAMS)[0])


def test_a_step_on_four_devices_is_one_on_the_whole_batch():
    def step(tx, grads):
        return apply_updates(PARAMS, tx.update(grads, tx.init(PARAMS), PARAMS)[0])

    rule = chain(clip_by_global_norm(1.0), adam(0.1))  # not linear, so the mean has to come first
    new = on_four_devices(lambda x, y: step(chain(aggregate("device"), rule), own_gradient(x, y)))
    assert_close(new, step(rule, jax.grad(loss)(PARAMS, X, Y)), rtol=1e-6)


def test_over_the_axis_of_a_vmap_and_over_two():
    g = {"w": jnp.arange(6.0).reshape(2, 3), "none": None}
    tx = aggregate(("rows", "columns"), "sum")
    inner = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="columns")
    assert jax.vmap(inner, axis_name="rows")(g)["w"].tolist() == [[15.0] * 3] * 2


def test_16_bit_leaves_are_added_in_float32():
    g = jnp.full(512, 1.0, "bfloat16").at[0].set(1.5)
    total = jax.vmap(lambda g: aggregate("i", "sum").update(g, ())[0], axis_name="i")(g)
    assert total.dtype == jnp.bfloat16 and float(total[0]) == 512.0


def test_outside_its_axis():
    for update in (aggregate("device").update, jax.jit(aggregate("device").update)):
        with pytest.raises(ValueError, match="no axis 'device' is bound here; call update inside jax.shard_map or"):
            update({"w": 1.0}, ())
    with pytest.raises(ValueError, match="op must be 'mean' or 'sum', got 'max'"):
        aggregate("device", "max")
