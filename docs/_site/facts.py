"""Facts about a transformation that its class declares or that follow from its state, for its page."""

import contextlib
import functools
import inspect
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.analysis.placed import Placed, as_bytes
from functional_opt.analysis.summary import size
from functional_opt.core import kernels
from functional_opt.core.slots import slots_of
from functional_opt.transforms.combining.nesting import walk

SIZE = 1024
PARAMS = {
    "kernel": jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32),
    "bias": jax.ShapeDtypeStruct((SIZE,), jnp.float32),
}
"""A dense layer: the params for which sizes are given."""
RANK = 8
INNER = fo.scale_by_adam()

SAMPLES: dict[str, Any] = {
    "learning_rate": 1e-3,
    "inner": INNER,
    "base_optimizer": fo.sgd(0.1),
    "fast_optimizer": fo.sgd(0.1),
    "outer_optimizer": fo.sgd(0.7),
    "optimizer": fo.sgd(0.1),
    "adv_optimizer": fo.sgd(0.1),
    "opt": fo.sgd(0.1),
    "tx": fo.sgd(0.1),
    "direction": fo.sgd(0.1),
    "magnitude": fo.sgd(0.1),
    "rules": {"bias": "frozen"},
    "mask": {"**": True},
    "freeze_mask": {"**": False},
    "param_labels": {"kernel": "a", "**": "b"},
    "transforms": {"a": INNER, "b": fo.scale(1.0)},
    "should_transform_fn": lambda count, **extra: count > 0,
    "step_size_fn": fo.constant_schedule(0.1),
    "f": lambda updates, params=None: updates,
    "measure": fo.global_norm,
    "measure_name": "norm",
    "measures": {"norm": fo.global_norm},
    "base_params": PARAMS,
    "blocks": fo.MuonDimensionNumbers(output_blocks=2),
    "axis_name": "batch",
    "axis": "data",
    "decay": 0.9,
    "slow_step_size": 0.5,
    "powers": {},
    "args": (INNER,),
    "seed": 0,
    "sync_period": 4,
    "every_k_schedule": 4,
    "max_consecutive_errors": 4,
    "max_backtracking_steps": 10,
    "max_linesearch_steps": 10,
    "small_batch": 8,
    "large_batch": 64,
}
"""A value for each argument without a default, by name; other numbers are 1."""
TAKEN = {
    f"a layer of {SIZE} × {SIZE} and its bias": PARAMS,
    f"a matrix of {SIZE} × {SIZE}": {"kernel": PARAMS["kernel"]},
    f"factors of rank {RANK} of a matrix of {SIZE} × {SIZE}": {
        "lora_a": jax.ShapeDtypeStruct((SIZE, RANK), jnp.float32),
        "lora_b": jax.ShapeDtypeStruct((RANK, SIZE), jnp.float32),
    },
}
"""Params in words: the first that a transformation takes are those for which its page gives sizes."""
OF_ONE = {
    "differentially_private_aggregate": {"key": 0},
    "named_chain": {"args": (("rule", INNER),)},
    "stateless_with_tree_map": {"f": lambda g, w: g},
}
"""Other values for the arguments of some names."""


class Facts(NamedTuple):
    """What the page of a transformation says about it.

    `example`: the transformation that was looked at, and `params` those that it was given, in words. `state32`,
    `state16`: bytes of state for each element of float32 and bfloat16 params; `with16`: with
    state_dtype="bfloat16", if it has that. `slots`: what the state keeps, by field. `kernel`: the kernel operations
    that may take the place of it, or of its links. `preconditions`, `clips`: as declared.
    """

    example: Any
    params: str
    state32: float
    state16: float
    with16: float | None
    slots: tuple[str, ...]
    kernel: tuple[str, ...]
    preconditions: bool
    clips: bool


def example_of(name: str, make: Any) -> Any:
    """Returns a transformation with the defaults, and a value for each argument that has none."""
    given: dict[str, Any] = {}
    args: tuple = ()
    own = OF_ONE.get(name, {})
    for p in inspect.signature(make).parameters.values():
        value = own.get(p.name, SAMPLES.get(p.name, 1.0))
        if p.kind is p.VAR_POSITIONAL:
            args = own.get(p.name, SAMPLES["args"])
        elif p.name in own or p.default is p.empty and p.kind is not p.VAR_KEYWORD:
            given[p.name] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimistic_adam is deprecated
        return make(*args, **given)


@functools.cache
def facts_of(name: str) -> Facts:
    """Returns the facts of a public transformation.

    >>> facts = facts_of("adam")
    >>> round(facts.state32), round(facts.with16), facts.slots, facts.kernel
    (8, 4, ('count', 'mu', 'nu'), ('adam', 'scale'))
    """
    with jax.set_mesh(mesh()) if name == "shard" else contextlib.nullcontext():
        return _facts_of(name, getattr(fo, name))


def mesh() -> jax.sharding.Mesh:
    """Returns a mesh of all devices of this process."""
    return jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))


def _facts_of(name: str, make: Any) -> Facts:
    tx = example_of(name, make)
    words, params = _taken(tx)
    state = jax.eval_shape(tx.init, params)
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    links = [link for _, _, link, _ in walk(tx)]
    asked = "state_dtype" in inspect.signature(make).parameters
    return Facts(
        tx,
        words,
        per_param(tx, params),
        per_param(tx, narrow),
        per_param(example_of(name, functools.partial(make, state_dtype="bfloat16")), params) if asked else None,
        tuple(dict.fromkeys(str(getattr(p.path[-1], "name", "")) for p in slots_of(state) if _is_field(p))),
        _kernel(tx, state, params),
        any(link.preconditions for link in links),
        any(link.clips for link in links),
    )


def per_param(tx: Any, params: Any) -> float:
    """Returns the bytes of state for each element of the params."""
    return size(jax.eval_shape(tx.init, params)) / sum(x.size for x in jax.tree.leaves(params))


def _taken(tx: Any) -> tuple[str, Any]:
    """Returns the first params of TAKEN that a transformation does not refuse for their shapes or paths."""
    for words, params in TAKEN.items():
        try:
            jax.eval_shape(tx.init, params)
            return words, params
        except ValueError as e:
            if "matri" not in str(e) and "in no pair" not in str(e):
                raise
    raise ValueError(f"TAKEN has no params for {tx}")


def _is_field(place: Any) -> bool:
    return place.slot is not None and hasattr(place.path[-1], "name")


def _kernel(tx: Any, state: Any, params: Any) -> tuple[str, ...]:
    """Returns the operations of the kernel that does the same as `update`, if there is one."""
    found: list[str] = []

    def record(state: Any, params: Any) -> None:
        found.extend(op.name for op in tx.as_kernel(state, params) or ())

    def record_steps(state: Any, params: Any) -> None:
        updates, _ = tx.update(params, state, params)
        for operations, results in recorder.steps:  # the outermost is the last
            if list(map(id, jax.tree.leaves(updates))) == list(map(id, results)):
                found[:] = [op.name for op in operations]

    jax.eval_shape(record, state, params)
    if not found:  # an update may describe itself only when it is called, as that of MultiSteps
        recorder = _Recorder()
        kernels.install(recorder)
        try:
            jax.eval_shape(record_steps, state, params)
        except (TypeError, ValueError):
            pass  # it needs other arguments
        finally:
            kernels.install(fo.native.CPUKernels())
    return tuple(found)


class _Recorder(kernels.XLA):
    """Records the operations of each step for which there is a kernel, and the updates that the step gives."""

    def __init__(self):
        self.steps: list[tuple[tuple, list]] = []

    def step(self, operations, pure, updates, state, params):
        known = operations()
        updates, state = pure(updates, state, params)
        if known:
            self.steps.append((known, jax.tree.leaves(updates)))
        return updates, state


@functools.cache
def sent(name: str) -> str | None:
    """Returns what a device gets in an update of a layer split over this process's devices; None if unknown.

    All leaves are split along their first axis over all devices, as in FSDP.
    """
    on = NamedSharding(mesh(), PartitionSpec("data"))
    tx = example_of(name, getattr(fo, name))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), _taken(tx)[1])
    plan = Placed.of(tx, params, on.mesh)
    if plan.sent is None:
        return None
    whole = size(params)
    total = sum(plan.sent.values())
    kinds = ", ".join(plan.sent)
    if total == 0:
        return "nothing"
    share = f"{total / whole:.2g} times the size of the params" if total > whole / 100 else as_bytes(total)
    due = f"; {plan.due / whole:.2g} times their size more at the steps that refresh the factors" if plan.due else ""
    return f"{share} ({kinds}){due}"
