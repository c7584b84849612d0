"""Optimizers of torch: their state as one here, and back.

torch is only needed by `to_torch`: `from_torch` reads tensors through NumPy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint.entries import Entry, entries_of_state
from ..core.leaves import Tree
from ..core.ranges import described
from ..core.transformation import GradientTransformation
from ..transforms.combining.groups import groups
from .torch_names import Places
from .torch_rules import LAYOUT, Slots, TorchRule, chain_of, rule_of

NUMBERS = {"lr", "weight_decay", "eps"}
"""The hyperparameters in which param groups may differ."""
NEUTRAL = {"foreach", "fused", "capturable", "differentiable"}
"""The options that change no numbers."""
STEPLESS = {"SGD", "Muon"}
"""The optimizers of torch that count no steps."""


def from_torch(
    optimizer: Any, params: Tree, names: Sequence[str], *, paths: Mapping[str, str] | None = None
) -> tuple[GradientTransformation, Any]:
    """Returns `(tx, state)` that continue an optimizer of torch: the next steps are torch's, up to rounding.

    Args:
        optimizer: a torch optimizer, or its name and its state, such as `("AdamW", optimizer.state_dict())`. All but
            LBFGS, SparseAdam and Adafactor have counterparts.
        params: the params here, with copies of torch's parameters (`jnp.array`, as `jnp.asarray` may share memory).
            Leaves that torch does not train are frozen.
        names: the names of torch's parameters, in the order of its groups; usually those of `named_parameters()`.
            `encoder.0.bias` is the leaf `encoder.0.bias` or `encoder/0/bias`; a weight may be called kernel, with its
            axes reversed as in Flax, or scale or embedding. A tied parameter of torch is one leaf.
        paths: paths of leaves by the names of torch, where this finds none.

    Param groups become `groups`; the learning rate is that of the last step, so pass on a schedule yourself. torch's
    Muon orthogonalizes in bfloat16, so its steps differ from those here by that rounding, about 1 % of a step; its
    momentum does not. ASGD's mean `ax` is `eval_params(state, params)`. If a model has two optimizers, such as Muon
    and AdamW, convert each with its part of the params.

    Raises ValueError, with the reason, for what would not give the same numbers: another optimizer or option, groups
    that differ in more than numbers, parameters that took different numbers of steps, 16-bit states, complex
    parameters (except with SGD), and shapes.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> opt = torch.optim.AdamW([w], lr=0.1)
    >>> w.grad = torch.tensor([1.0, -2.0])
    >>> opt.step()
    >>> tx, state = from_torch(opt, {"w": jnp.asarray(w.detach().numpy())}, ["w"])
    >>> tx
    chain(scale_by_adam(), add_decayed_weights(weight_decay=0.01), scale_by_learning_rate(0.1))
    >>> int(state[0].count), state[0].mu["w"].round(3).tolist()
    (1, [0.10000000149011612, -0.20000000298023224])
    """
    name, saved = _named_state(optimizer)
    rule, places, slots = _read(name, saved, params, names, paths)
    _refuse_unknown(optimizer, rule)
    if not any(slots) and any(group.get("dampening") for group in saved["param_groups"]):
        raise ValueError("torch's SGD does not dampen its first step, which a chain cannot tell: take it with torch")
    tx = _transformation(name, saved, places)
    state = tx.init(params)
    values = iter([_value(entry, rule, places, slots) for entry in entries_of_state(state, params)])
    return tx, jax.tree.map(lambda _: next(values), state)


def to_torch(
    state: Any, optimizer: Any, params: Tree, names: Sequence[str], *, paths: Mapping[str, str] | None = None
) -> None:
    """Loads a state of the `tx` that `from_torch` returned into an optimizer of torch, the inverse of `from_torch`.

    Args:
        state: the state.
        optimizer: a torch optimizer with the same hyperparameters, over parameters with the values of `params`.
        params, names, paths: as for `from_torch`.

    Raises ValueError for a state that is not of the chain that the optimizer's hyperparameters give.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> opt, params = torch.optim.AdamW([w], lr=0.1), {"w": jnp.ones(2)}
    >>> tx, state = from_torch(opt, params, ["w"])
    >>> _, state = tx.update({"w": jnp.array([1.0, -2.0])}, state, params)
    >>> to_torch(state, opt, params, ["w"])
    >>> opt.state[w]["exp_avg"].tolist(), int(opt.state[w]["step"])
    ([0.10000000149011612, -0.20000000298023224], 1)
    """
    import torch

    name, saved = _named_state(optimizer)
    rule, places, _ = _read(name, saved, params, names, paths)
    _refuse_unknown(optimizer, rule)
    tx = _transformation(name, saved, places)
    entries = {(entry.field, entry.path): entry for entry in entries_of_state(state, params)}
    wanted = {(entry.field, entry.path) for entry in entries_of_state(jax.eval_shape(tx.init, params), params)}
    if entries.keys() != wanted:
        field, path = sorted(entries.keys() ^ wanted, key=str)[0]
        raise ValueError(f"the state does not fit torch's {name}: only one of them has {field!r} of {path or 'all'}")
    tensors = [(p, _options(group, rule)) for group in optimizer.param_groups for p in group["params"]]
    loaded = {}
    for i, (path, (p, group)) in enumerate(zip(places.paths, tensors, strict=True)):
        loaded[i] = {} if name in STEPLESS else {"step": torch.tensor(0.0)}
        for field, theirs in rule.slots.items():
            if (field, path) in entries:
                x = places.from_leaf(i, np.asarray(entries[field, path].value))
                loaded[i][theirs] = torch.tensor(np.ascontiguousarray(x), dtype=p.dtype)
            elif (field, None) in entries:
                loaded[i][theirs] = torch.tensor(float(np.asarray(entries[field, None].value)))
        for theirs, x in rule.derived(group, float(loaded[i].get("step", 0))).items():
            loaded[i][theirs] = torch.tensor(x)
    optimizer.load_state_dict({**saved, "state": loaded})


def _named_state(optimizer: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(optimizer, tuple) and len(optimizer) == 2:
        name, saved = optimizer
    else:
        name, saved = type(optimizer).__name__, getattr(optimizer, "state_dict", lambda: None)()
    if not isinstance(name, str) or not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise TypeError(f"optimizer must be torch's, or a pair (name, state_dict), got {described(optimizer)}")
    return name, dict(saved)


def _read(
    name: str, saved: dict[str, Any], params: Tree, names: Sequence[str], paths: Mapping[str, str] | None
) -> tuple[TorchRule, Places, list[Slots]]:
    """Returns the rule, the places of the parameters, and what torch keeps for each, in their order."""
    rule, places = rule_of(name), Places(names, params, paths)
    order = [(p, _options(group, rule)) for group in saved["param_groups"] for p in group["params"]]
    if len(order) != len(places.names):
        raise ValueError(f"names has {len(places.names)} names, but the groups of torch's {name} have {len(order)}")
    if parts := [path for path in places.paths if path in places.complex and name != "SGD"]:
        raise ValueError(f"{parts[0]!r} is complex: torch's {name} treats its two parts as numbers of their own")
    slots = []
    for (p, group), name_of in zip(order, places.names, strict=True):
        known, own = {*rule.slots.values(), *rule.derived(group, 0), "step"}, saved["state"].get(p, {})
        arrays = {k: _array(x, f"{k} of {name_of!r}") for k, x in own.items() if x is not None and k in known}
        slots.append(rule.read(arrays, group))
    steps = {name: float(own["step"]) if "step" in own else bool(own) for name, own in zip(names, slots, strict=True)}
    if len(set(steps.values())) > 1:
        most = max(steps, key=lambda n: steps[n])
        least = min(steps, key=lambda n: steps[n])
        raise ValueError(
            f"torch's {least!r} has taken {steps[least]:.0f} steps and {most!r} {steps[most]:.0f}; here all leaves "
            "have one count. Leave parameters that never have a gradient out of the optimizer"
        )
    return rule, places, slots


def _array(x: Any, what: str) -> np.ndarray:
    x = x.detach().cpu() if hasattr(x, "detach") else x
    if str(getattr(x, "dtype", "")) in ("torch.bfloat16", "torch.float16"):
        raise ValueError(f"{what} is {x.dtype}: torch rounds at every step there, and slots here are float32")
    return np.asarray(x)


def _refuse_unknown(optimizer: Any, rule: TorchRule) -> None:
    """Raises ValueError for an option of a newer torch, or of another library's optimizer of the same name."""
    for option in sorted(getattr(optimizer, "defaults", {}).keys() - NEUTRAL - {*rule.options.split()}):
        raise ValueError(f"{type(optimizer).__name__} has an option {option!r}, whose meaning is not known here")


def _options(group: Mapping[str, Any], rule: TorchRule) -> dict[str, Any]:
    """Returns the options of a group that are the optimizer's, not the user's or a scheduler's."""
    return {key: _number(group[key]) for key in rule.options.split() if key in group}


def _transformation(name: str, saved: dict[str, Any], places: Places) -> GradientTransformation:
    rule = rule_of(name)
    own = [_options(group, rule) for group in saved["param_groups"]]
    numbers = [rule.numbers(group) for group in own]
    rest = iter(places.paths)
    rules: dict[str, Any] = {}
    for i, group in enumerate(own):
        if other := sorted(k for k in (own[0] | group).keys() - NUMBERS if own[0].get(k) != group.get(k)):
            raise ValueError(f"the param groups 0 and {i} differ in {other[0]}, which groups here may not")
        changes = {key: x for key, x in numbers[i].items() if x != numbers[0][key]}
        for _ in saved["param_groups"][i]["params"]:
            path = next(rest)
            if changes:
                rules[f"/{path}"] = changes
    rules |= {f"/{path}": "frozen" for path in places.shapes if path not in places.paths}
    decays = any(x["weight_decay"] for x in numbers)
    tx = chain_of(name, own[0] | {LAYOUT: places.dimension_numbers()}, decays)
    return groups(tx, rules) if rules else tx


def _number(x: Any) -> Any:
    if isinstance(x, tuple | list):
        return tuple(map(_number, x))
    return x.item() if hasattr(x, "item") else x


def _value(entry: Entry, rule: TorchRule, places: Places, slots: list[Slots]) -> Any:
    """Returns what torch has for an entry of a state; the value that it starts with if torch has taken no step."""
    theirs = rule.slots.get(entry.field)
    i = places.paths.index(entry.path) if entry.path is not None else 0
    if theirs is None or not slots or theirs not in slots[i]:
        return entry.value
    x = slots[i][theirs]
    x = x if entry.path is None else places.to_leaf(i, x, theirs)
    return jnp.array(x, entry.value.dtype)  # a copy: torch goes on writing to its tensors
