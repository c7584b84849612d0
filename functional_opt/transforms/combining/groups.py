"""groups: different hyperparameters for some of the leaves, by path rules in one argument."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...core.checks import checked
from ...core.names import did_you_mean
from ...core.paths import PathRules
from ...core.ranges import Range
from ...core.transformation import GradientTransformation, Transformation
from ..scaling.learning_rate import scale
from .chain import chain, identity
from .nesting import children, walk, with_children
from .select import partition, set_to_zero

FACTOR, FROZEN, TRAINED, REST = "learning_rate_factor", "frozen", "trained", "the rest"


@checked
def groups(tx: Transformation, rules: Mapping[str, Any]) -> GradientTransformation:
    """Gives some leaves other hyperparameters, by path rules; the first rule that matches a leaf applies.

    Only a link with an argument that a rule names becomes a `partition`. All other links still act on all leaves
    together, so a global norm is that of all gradients, and there is one count.

    Args:
        tx: any transformation, usually a complete optimizer.
        rules: a dict from path pattern (see `PathRules`) to the settings there: a dict, or "frozen". The dict may
            name any argument of any link (`weight_decay`, `b2`, `learning_rate` ...), and sets it in all links that
            have it. It may also hold `learning_rate_factor`, ≥ 0, which multiplies the updates at the end. A
            `weight_decay` here applies whatever the mask of the decay says. `{}` exempts a leaf from later rules.
            Frozen leaves do not move, have no state, and do not count in norms.

    Raises ValueError for an argument that no link has and, at `init`, for a rule that matches no leaf, naming the
    nearest paths; TypeError for a rule of another kind; and what a link raises for a value out of range.

    >>> from functional_opt import adamw
    >>> tx = groups(adamw(1e-3, weight_decay=0.1), {"*/bias": {"weight_decay": 0.0}})
    >>> tx.transforms[1].transforms["*/bias"], tx.transforms[1].param_labels
    (add_decayed_weights(), PathRules({'*/bias': '*/bias', '**': 'the rest'}))

    Layers closer to the input learn more slowly, and the embedding not at all:

    >>> from functional_opt import scale
    >>> tx = groups(scale(-1.0), {"embed/*": "frozen", "layer_0/*": {"learning_rate_factor": 0.1}})
    >>> params = {"embed": {"w": 1.0}, "layer_0": {"w": 1.0}, "layer_1": {"w": 1.0}}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> {layer: round(float(u["w"]), 3) for layer, u in updates.items()}
    {'embed': 0.0, 'layer_0': -0.1, 'layer_1': -1.0}

    Differs from Optax, which only has partition: there, clipping by a global norm works group by group.
    """
    settings = _settings(rules)
    for pattern, own in settings.items():
        for name in own or ():
            _check_name(tx, pattern, name)

    def by_group(default: GradientTransformation, special: Mapping[str, GradientTransformation]) -> Any:
        if not special:
            return default
        labels = {pattern: pattern if pattern in special else REST for pattern in (*settings, "**")}
        by_label = {**special, REST: default} if REST in labels.values() else special
        return partition(dict(sorted(by_label.items())), PathRules(labels))

    def edit(link: GradientTransformation) -> GradientTransformation:
        link = with_children(link, edit)
        special = {pattern: _replaced(link, own, pattern) for pattern, own in settings.items() if own}
        return by_group(link, {pattern: other for pattern, other in special.items() if other is not link})

    new = edit(tx)
    factors = {p: scale(_factor(p, own[FACTOR])) for p, own in settings.items() if own and FACTOR in own}
    if factors:
        links = new.transforms if isinstance(new, chain) else (new,)
        new = chain(*links, by_group(identity(), factors))
    if frozen := [pattern for pattern, own in settings.items() if own is None]:
        labels = {pattern: FROZEN if pattern in frozen else TRAINED for pattern in (*settings, "**")}
        new = partition({FROZEN: set_to_zero(), TRAINED: new}, PathRules(labels))
    return new


def _settings(rules: Any) -> dict[str, dict[str, Any] | None]:
    """Returns the settings of each pattern, None for frozen."""
    if not isinstance(rules, Mapping) or not rules:
        raise TypeError(f'rules must be a dict such as {{"*/bias": {{"weight_decay": 0.0}}}}, got {rules!r}')
    for pattern, own in rules.items():
        if not isinstance(pattern, str):
            raise TypeError(f"rules: a path pattern must be a string, got {pattern!r}")
        if own != FROZEN and not isinstance(own, Mapping):
            raise TypeError(f'rules[{pattern!r}] must be a dict of arguments or "frozen", got {own!r}')
    return {pattern: None if own == FROZEN else dict(own) for pattern, own in rules.items()}


def _factor(pattern: str, x: Any) -> Any:
    return Range("[0, inf)").check(f"rules[{pattern!r}][{FACTOR!r}]", x)


def _arguments(link: Any) -> set[str]:
    """Returns the names of a link's arguments, except those that hold transformations or select leaves."""
    if not dataclasses.is_dataclass(link):
        return set()
    held = {path.removeprefix(".").split("[")[0] for path, _ in children(link)}
    return (
        {f.name for f in dataclasses.fields(link)} - held - {"names", "mask", "param_labels", "init_fn", "update_fn"}
    )


def _check_name(tx: GradientTransformation, pattern: str, name: Any) -> None:
    there = sorted({FACTOR}.union(*(_arguments(link) for _, _, link, _ in walk(tx))))
    if name not in there:
        raise ValueError(f"rules[{pattern!r}]: no link has an argument {name!r}{did_you_mean(str(name), there)}")


def _replaced(link: Any, own: dict[str, Any], pattern: str) -> Any:
    """Returns the link with the arguments that a rule sets; the same object if it has none of them."""
    changes = {name: x for name, x in own.items() if name in _arguments(link)}
    if not changes:
        return link
    if "weight_decay" in changes and hasattr(link, "mask"):
        changes["mask"] = None
    try:
        return dataclasses.replace(link, **changes)
    except (TypeError, ValueError) as e:
        raise type(e)(f"rules[{pattern!r}]: {e}") from e
