"""torch's optimizers: k steps there and then here, here all along, and back, within rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.interop.torch import from_torch, to_torch

torch = pytest.importorskip("torch")
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
STEPS = 6

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, maximize=True),
    "dampening": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01),
    "adam-eps": lambda p: torch.optim.Adam(p, 0.05, betas=(0.8, 0.9), eps=0.1),
    "adam-decoupled": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1, decoupled_weight_decay=True),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.05, amsgrad=True, eps=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.05, weight_decay=0.01, eps=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, 0.05, eps=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, eps=0.1),
    "adagrad-rate": lambda p: torch.optim.Adagrad(
        [{"params": p[::2]}, {"params": p[1::2], "lr": 0.2}], 0.1, lr_decay=0.3, initial_accumulator_value=0.1
    ),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0, rho=0.8, eps=0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.05, weight_decay=0.01, eps=0.1),
    "radam-decoupled": lambda p: torch.optim.RAdam(
        p, 0.05, betas=(0.8, 0.9), eps=0.1, weight_decay=0.1, decoupled_weight_decay=True, maximize=True
    ),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01, etas=(0.4, 1.3), maximize=True),
    "rprop-bounds": lambda p: torch.optim.Rprop(
        [{"params": p[::2]}, {"params": p[1::2], "lr": 0.01}], 0.1, step_sizes=(0.015, 0.05)
    ),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1, lambd=0.3, t0=2, weight_decay=0.01),
    "asgd-groups": lambda p: torch.optim.ASGD(
        [{"params": p[::2]}, {"params": p[1::2], "lr": 0.2, "weight_decay": 0.1}], 0.1, lambd=0.3, alpha=0.5, t0=2
    ),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.05, eps=0.1, momentum=0.9),
    "centered": lambda p: torch.optim.RMSprop(p, 0.05, eps=0.1, centered=True),
    "groups": lambda p: torch.optim.AdamW(
        [{"params": p[::2], "weight_decay": 0.1}, {"params": p[1::2], "weight_decay": 0.0, "lr": 0.01}], lr=0.05
    ),
}
each = pytest.mark.parametrize("name", OPTIMIZERS)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


X = np.random.default_rng(0).normal(size=(STEPS * 2, 8, 3)).astype("float32")


def names_of(name):
    return NAMES[::2] + NAMES[1::2] if name in ("groups", "adagrad-rate", "rprop-bounds", "asgd-groups") else NAMES


def torch_steps(net, opt, numbers):
    for i in numbers:
        opt.zero_grad()
        (net(torch.tensor(X[i])) ** 2).mean().backward()
        opt.step()


def params_of(net):
    """As Flax has them: nested, with kernels that are transposed weights."""
    arrays = {name: jnp.asarray(p.detach().numpy().copy()) for name, p in net.named_parameters()}
    return {layer: {"kernel": arrays[f"{layer}.weight"].T, "bias": arrays[f"{layer}.bias"]} for layer in ("0", "2")}


def loss_fn(params, x):
    hidden = jnp.tanh(x @ params["0"]["kernel"] + params["0"]["bias"])
    return jnp.mean((hidden @ params["2"]["kernel"] + params["2"]["bias"]) ** 2)


def steps(tx, params, state, numbers):
    step = jax.jit(lambda params, state, x: tx.update(jax.grad(loss_fn)(params, x), state, params))
    for i in numbers:
        updates, state = step(params, state, X[i])
        params = fo.apply_updates(params, updates)
    return params, state


def assert_near(params, net):
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(params_of(net)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)


@each
@pytest.mark.parametrize("taken", [0, STEPS])
def test_goes_on_here_and_there(name, taken):
    net = model()
    opt = OPTIMIZERS[name](list(net.parameters()))
    torch_steps(net, opt, range(taken))
    params = params_of(net)
    if name == "dampening" and not taken:
        with pytest.raises(ValueError, match="torch's SGD does not dampen its first step"):
            from_torch(opt, params, names_of(name))
        return
    tx, state = from_torch(opt, params, names_of(name))
    half = steps(tx, params, state, range(taken, taken + 3))
    torch_steps(net, opt, range(taken, taken + 3))
    assert_near(half[0], net)
    twin = model()
    twin.load_state_dict(net.state_dict())
    back = OPTIMIZERS[name](list(twin.parameters()))
    to_torch(half[1], back, half[0], names_of(name))
    torch_steps(twin, back, range(taken + 3, taken + 5))
    torch_steps(net, opt, range(taken + 3, taken + 5))
    assert_near(params_of(twin), net)
    if name.startswith("asgd"):
        means = model()
        for p, trained in zip(means.parameters(), net.parameters(), strict=True):
            p.data = opt.state[trained]["ax"]
        assert_near(fo.eval_params(*from_torch(back, params_of(twin), names_of(name))[1:], params_of(twin)), means)


def test_a_state_dict_and_flat_params():
    net = model()
    torch_steps(net, opt := torch.optim.AdamW(net.parameters(), 0.05), range(3))
    flat = {name: jnp.array(p.detach().numpy()) for name, p in net.named_parameters()}
    tx, state = from_torch(("AdamW", opt.state_dict()), flat, list(flat))
    assert tx == fo.adamw(0.05, weight_decay=0.01)
    np.testing.assert_array_equal(state[0].nu["2.weight"], opt.state[net[2].weight]["exp_avg_sq"])
    layers = {"first": {"weight": flat["0.weight"], "bias": flat["0.bias"]}, "2": params_of(net)["2"]}
    paths = {"0.weight": "first/weight", "0.bias": "first/bias"}
    _, state = from_torch(opt, layers, NAMES, paths=paths)
    np.testing.assert_array_equal(state[0].mu["first"]["weight"], opt.state[net[0].weight]["exp_avg"])


def test_keys_of_users_and_of_schedulers_in_groups():
    net = model()
    p = list(net.parameters())
    opt = torch.optim.Adam([{"params": p[:2], "name": "first"}, {"params": p[2:], "name": "last", "lr_scale": 0.1}])
    torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, 10, cycle_momentum=False)
    assert "max_lr" in opt.param_groups[0]
    tx, _ = from_torch(opt, params_of(net), NAMES)
    assert tx == fo.adam(opt.param_groups[0]["lr"])


def test_convolutions():
    conv = torch.nn.Conv2d(2, 3, (4, 5), bias=False)
    opt = torch.optim.Adam(conv.parameters())
    conv.weight.grad = torch.randn(3, 2, 4, 5)
    opt.step()
    _, state = from_torch(opt, {"kernel": jnp.ones((4, 5, 2, 3))}, ["weight"])
    np.testing.assert_array_equal(state[0].mu["kernel"][1, 2, 1, 2], opt.state[conv.weight]["exp_avg"][2, 1, 1, 2])


def test_leaves_that_torch_does_not_train_are_frozen():
    net = model()
    torch_steps(net, opt := torch.optim.SGD(net[2].parameters(), 0.1, momentum=0.9), range(2))
    tx, state = from_torch(opt, params := params_of(net), NAMES[2:])
    moved, _ = steps(tx, params, state, range(2, 4))
    np.testing.assert_array_equal(moved["0"]["kernel"], params["0"]["kernel"])
    torch_steps(net, opt, range(2, 4))
    assert_near(moved, net)


def test_what_cannot_be_exact_is_refused():
    net = model()
    p, params = list(net.parameters()), params_of(net)
    for make, reason in (
        (lambda: torch.optim.LBFGS(p), "LBFGS has no exact counterpart here that is known: one step there is up to"),
        (lambda: torch.optim.Adafactor(p), "Adafactor has no exact counterpart .* it bounds its second moments"),
        (lambda: torch.optim.ASGD(p, t0=0.5), "option t0=0.5 has no counterpart here: it must be a whole number"),
        (
            lambda: torch.optim.SGD([{"params": p[:2], "nesterov": True}, {"params": p[2:]}], 0.1, momentum=0.9),
            "groups 0 and 1 differ in nesterov",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            from_torch(make(), params, NAMES)
    opt = torch.optim.Adam(p)
    with pytest.raises(ValueError, match="names has 3 names, but the groups of torch's Adam have 4"):
        from_torch(opt, params, NAMES[1:])
    with pytest.raises(ValueError, match="no leaf for torch's 'x.weight'; pass paths="):
        from_torch(opt, params, ["x.weight", *NAMES[1:]])
    with pytest.raises(ValueError, match="are all of the leaf '0/bias'"):
        from_torch(opt, params, ["0.bias", *NAMES[1:]])
    opt = torch.optim.ASGD(p, 0.1)
    torch_steps(net, opt, range(1))
    opt.param_groups[0]["lr"] = 0.2
    with pytest.raises(ValueError, match="ASGD has eta=0.09999.*, but its options give 0.19999.* at this step"):
        from_torch(opt, params, NAMES)
    with pytest.raises(ValueError, match="'w' is complex: torch's Adam treats its two parts as numbers"):
        complex_ = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
        from_torch(torch.optim.Adam([complex_]), {"w": jnp.ones(2, "complex64")}, ["w"])
    other = torch.optim.Adam(p)
    other.defaults["correct_bias"] = False
    with pytest.raises(ValueError, match="Adam has an option 'correct_bias', whose meaning is not known here"):
        from_torch(other, params, NAMES)
    net = model()
    p, opt = list(net.parameters()), torch.optim.Adam(net.parameters())
    for strange in (("Adam", {}), opt.state_dict(), ("Adam",), torch.optim.lr_scheduler.ConstantLR(opt), None):
        with pytest.raises(TypeError, match="must be torch's, or a pair"):
            from_torch(strange, params, NAMES)
    p[0].grad = torch.ones_like(p[0])
    opt.step()
    with pytest.raises(ValueError, match="'0.bias' has taken 0 steps and '0.weight' 1"):
        from_torch(opt, params, NAMES)
    half = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    half.weight.grad = torch.ones_like(half.weight)
    (opt := torch.optim.Adam(half.parameters())).step()
    with pytest.raises(ValueError, match="exp_avg of 'weight' is torch.bfloat16: torch rounds"):
        from_torch(opt, {"weight": jnp.ones((2, 2), "bfloat16")}, ["weight"])
    net = model()
    torch_steps(net, opt := torch.optim.Adam(net.parameters()), range(1))
    wrong = {**params, "0": {"kernel": params["0"]["kernel"].T, "bias": params["0"]["bias"]}}
    with pytest.raises(ValueError, match=r"exp_avg of torch's '0.weight' has shape \(5, 3\), which does not give"):
        from_torch(opt, wrong, NAMES)
    with pytest.raises(ValueError, match="the state does not fit torch's Adam"):
        to_torch(fo.trace(0.9).init(params), opt, params, NAMES)
