"""torch's Muon for a model's matrices and AdamW for its vectors: each goes on here with its part of the params."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.interop.torch import from_torch, to_torch

from .test_torch import NAMES, STEPS, X, assert_near, loss_fn, model, params_of

torch = pytest.importorskip("torch")

MATRICES, VECTORS = NAMES[::2], NAMES[1::2]
MUON = {
    "default": {},
    "original, tall and wide": {"adjust_lr_fn": "original", "momentum": 0.8, "nesterov": False, "ns_steps": 3},
    "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0, "ns_coefficients": (3.0, -3.2, 1.2)},
}


def muon_and_adamw(net, **options):
    named = dict(net.named_parameters())
    muon = torch.optim.Muon([named[name] for name in MATRICES], 0.1, **options)
    return muon, torch.optim.AdamW([named[name] for name in VECTORS], 0.05)


def steps_of_both(net, both, numbers):
    for i in numbers:
        for opt in both:
            opt.zero_grad()
        (net(torch.tensor(X[i])) ** 2).mean().backward()
        for opt in both:
            opt.step()


def parts_of(net, flax):
    """The matrices and the vectors, as Flax has them or under torch's names, and a function that joins them."""
    params = params_of(net) if flax else {n: jnp.array(p.detach().numpy()) for n, p in net.named_parameters()}
    if not flax:
        return {n: params[n] for n in MATRICES}, {n: params[n] for n in VECTORS}
    return tuple({i: {name: params[i][name]} for i in ("0", "2")} for name in ("kernel", "bias"))


def joined(parts, flax):
    matrices, vectors = parts
    if flax:
        return {i: matrices[i] | vectors[i] for i in ("0", "2")}
    both = matrices | vectors
    return {i: {"kernel": both[f"{i}.weight"].T, "bias": both[f"{i}.bias"]} for i in ("0", "2")}


@pytest.mark.parametrize("flax", [True, False])
@pytest.mark.parametrize("options", MUON.values(), ids=MUON)
@pytest.mark.parametrize("in_float32", [True, False])
def test_muon_beside_adamw(options, flax, in_float32, monkeypatch):
    """The numbers are torch's up to the rounding to bfloat16 in it; without this rounding, to float32's."""
    if in_float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    net = model()
    both = muon_and_adamw(net, **options)
    steps_of_both(net, both, range(STEPS))
    parts = parts_of(net, flax)
    txs, states = zip(*map(from_torch, both, parts, (MATRICES, VECTORS)), strict=True)
    buffer = both[0].state[net[0].weight]["momentum_buffer"]
    np.testing.assert_array_equal(jax.tree.leaves(states[0])[0], buffer.T if flax else buffer)
    before = params_of(net)
    for i in range(STEPS, STEPS + 3):
        grads = jax.grad(lambda parts: loss_fn(joined(parts, flax), X[i]))(tuple(parts))  # noqa: B023
        moved = [tx.update(g, s, p) for tx, g, s, p in zip(txs, grads, states, parts, strict=True)]
        states = [state for _, state in moved]
        parts = [fo.apply_updates(p, u) for p, (u, _) in zip(parts, moved, strict=True)]
    steps_of_both(net, both, range(STEPS, STEPS + 3))
    ours = joined(parts, flax)
    if not in_float32:
        moves = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), params_of(net), before)
        apart = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), params_of(net), ours)
        assert all(a < 0.03 * m for a, m in zip(*map(jax.tree.leaves, (apart, moves)), strict=True))
        return
    assert_near(ours, net)
    twin = model()
    twin.load_state_dict(net.state_dict())
    back = muon_and_adamw(twin, **options)
    for opt, state, part, names in zip(back, states, parts, (MATRICES, VECTORS), strict=True):
        to_torch(state, opt, part, names)
    steps_of_both(twin, back, range(STEPS + 3, STEPS + 5))
    steps_of_both(net, both, range(STEPS + 3, STEPS + 5))
    assert_near(params_of(twin), net)


def test_a_scale_that_is_not_known_is_refused():
    muon, _ = muon_and_adamw(net := model())
    muon.param_groups[0]["adjust_lr_fn"] = "spectral"
    with pytest.raises(ValueError, match="option adjust_lr_fn='spectral' has no exact counterpart here that is"):
        from_torch(muon, parts_of(net, True)[0], MATRICES)
