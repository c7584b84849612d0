"""Configs with one thing wrong: what a file that was edited, cut, mixed up or made to do harm may hold."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np


def nested(levels: int, kind: type = list) -> Any:
    node: Any = 0.5
    for _ in range(levels):
        node = [node] if kind is list else {"type": "masked", "inner": node, "mask": True}
    return node


def within_itself() -> list:
    node: list = []
    node.append(node)
    return node


WRONG = [
    *(None, True, False, 0, -1, 1, 7, 2**31, -(2**40), 10**400, -(10**4000)),
    *(0.5, -0.5, 1.0, 1e39, 1e308, float("inf"), float("-inf"), float("nan"), 1j, 1 + 0j),
    *(
        "",
        "0.5",
        "inf",
        "os.system",
        "__import__('os').system('true')",
        "adam",
        "scale_by_adam",
        "float32",
        "x" * 9999,
    ),
    *(
        "O",
        "V8",
        "S10",
        "M8",
        "x" * 9999,
        "complex64",
        "int8",
        "bool",
        b"bytes",
        b"",
        object(),
        object,
        print,
        {1},
        range(3),
    ),
    *([], {}, [[]], [0.5, 0.5], ["a", 1], [[["a"]]], {"a": 1}, {1: 2}, {None: []}, {"type": None}, {"type": []}),
    *({"type": "chain"}, {"type": "scale", "step_size": 0.5}, {"type": "constant_schedule", "value": 0.1}),
    {"type": "constant_schedule", "value": {"type": "number", "number": "inf"}},
    *({"type": "number", "number": n} for n in ("inf", "nan", "1", 10**4000)),
    *({"type": "dtype", "name": name} for name in ("float32", "int8", "complex64", "bool", "object", None)),
    *({"type": "function", "name": name} for name in ("skip_not_finite", "os.system", "global_norm", 3)),
    *({"type": "constructor", "name": name} for name in ("adam", "sgd", "chain", "register", None)),
    *({"type": "list", "items": x} for x in ([], [1], "ab", None)),
    *({"type": "dict", "items": x} for x in ([], [[1, 2]], [[[], 2]], [["a", 1], ["b"]], {"a": 1}, [[10**4000, 1]])),
    {"type": "partial", "function": {"type": "function", "name": "global_norm"}, "args": [], "keywords": {}},
    {"type": "partial", "function": {"type": "constructor", "name": "adam"}, "args": [[]], "keywords": {"b3": 1}},
    *(
        {"type": "array", "kind": kind, "dtype": dtype, "shape": shape, "data": data}
        for kind in ("jax", "numpy", "scalar", "weak")
        for dtype, shape, data in [
            *(("float32", [], [[x]]) for x in (0.5, -1.0, "nan", "inf", 10**400)),
            *(("float32", [2], [[0.5, 0.5]]), ("bool", [], [[True]]), ("int32", [], [[1]]), ("int8", [], [[999]])),
            *(("complex64", [], [[0.5], [0.5]]), ("object", [], [[1]]), ("float32", [10**9], [[1.0]])),
            *(("float32", [[]], [[1.0]]), ("float32", {}, {}), ("uint32", [2], [[1, 2]])),
        ]
    ),
    *({"type": "key", "impl": impl, "data": [1, 2]} for impl in ("threefry2x32", [], None, 3)),
    *(nested(150), nested(10_000), nested(250, dict), within_itself()),
    {"type": "dict", "items": [[nested(300), 1]]},
    {"class_name": "Adam"},
    {"class_name": [], "config": {}},
    {"class_name": "ExponentialDecay"},
    {"class_name": "ExponentialDecay", "config": {"initial_learning_rate": "x", "decay_steps": 1, "decay_rate": 1}},
    {"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.1, "decay_steps": 0}},
    {"class_name": "SGD", "config": {"learning_rate": {"class_name": "SGD", "config": {}}}},
]
KEYS = [
    "type",
    "version",
    "value",
    "b1",
    "learning_rate",
    "class_name",
    "config",
    "registered_name",
    "name",
    "",
    3,
    None,
]


def mutated(configs: list[Any], n: int, seed: int) -> Iterator[Any]:
    """n copies of configs, each changed in one place or two; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    pick = lambda of: of[rng.integers(len(of))]  # noqa: E731
    parts = [node for config in configs for _, node in _places(config)]
    for _ in range(n):
        holder = [copy.deepcopy(pick(configs))]
        places = [(at, node) for at, node in _places(holder) if at is not None]  # before what is put in joins them
        for _ in range(rng.integers(1, 3)):
            at, node = pick(places)
            _change(*at, node, rng.integers(6), pick, parts)
        yield holder[0]


def _change(parent: Any, key: Any, node: Any, how: int, pick: Any, parts: list[Any]) -> None:
    if how == 0 and isinstance(parent, dict):
        parent.pop(key, None)
    elif how == 1 and isinstance(node, dict):
        node[pick(KEYS)] = pick(WRONG)
    elif how == 2 and isinstance(node, list):
        node.append(pick(WRONG))
    elif how == 3:
        parent[key] = copy.deepcopy(pick(parts))
    elif how == 4:
        parent[key] = [node]
    else:
        parent[key] = pick(WRONG)


def _places(config: Any) -> list[tuple[Any, Any]]:
    """All nodes with their parent and their key there; None for the root. Those that were put in are not entered."""
    found, todo = [], [(None, config, 0)]
    while todo:
        at, node, depth = todo.pop()
        found.append((at, node))
        if depth < 20 and type(node) in (dict, list):
            pairs = node.items() if isinstance(node, dict) else enumerate(node)
            todo += [((node, k), x, depth + 1) for k, x in pairs]
    return found
