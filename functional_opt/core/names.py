"""did_you_mean, meant_by: which argument a name that is not one may stand for; no_attribute: an error for modules."""

import difflib
import sys
from collections.abc import Iterable

ELSEWHERE = {
    "lr": ("learning_rate", "peak_learning_rate"),
    "step_size": ("learning_rate",),
    "betas": ("b1", "b2", "beta_1", "beta_2"),
    "beta1": ("b1", "beta_1", "beta"),
    "beta2": ("b2", "beta_2"),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "epsilon": ("eps",),
    "eps": ("epsilon",),
    "rho": ("decay",),
    "alpha": ("decay", "rho"),
    "momentum": ("beta", "decay", "b1"),
    "wd": ("weight_decay",),
    "history_size": ("memory_size",),
    "every_k": ("every_k_schedule",),
    "every_k_steps": ("every_k_schedule",),
}
"""Names that torch, Keras and papers use, and the arguments here that mean the same; those that exist are meant."""


def meant_by(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Returns the known names that one probably stands for: the same under another name, or one spelled alike."""
    known = list(known)
    same = [x for x in ELSEWHERE.get(name, ()) if x in known]
    if "clipnorm" in known and "decay" in same:  # Keras's `decay` is that of the learning rate
        same.remove("decay")
    return same or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message about an argument that does not exist: the likely one, and all there are.

    >>> did_you_mean("lr", ["learning_rate", "b1"])
    '; did you mean learning_rate? The arguments are learning_rate, b1'
    >>> did_you_mean("weight_decay", ["learning_rate"])
    '; put add_decayed_weights(...) into the chain, before the learning rate. The arguments are learning_rate'
    """
    known = list(known)
    if meant := meant_by(name, known):
        hint = f"; did you mean {' and '.join(meant)}?"
    elif name == "weight_decay":
        hint = "; put add_decayed_weights(...) into the chain, before the learning rate."
    else:
        hint = "."
    return f"{hint} The arguments are {', '.join(known)}"


def no_attribute(module: str, name: str, hint: str | None = None) -> AttributeError:
    """Returns the error for a name that a module lacks, with what Python needs to suggest another."""
    why = "" if hint is None else f"; {hint}"
    return AttributeError(f"module {module!r} has no attribute {name!r}{why}", name=name, obj=sys.modules[module])
