"""review: finds likely mistakes in a transformation. Has the rules of `explain`."""

import glob
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.leaves import Tree
from ..core.model_trees import named_leaves
from ..core.paths import Frozen, PathRules, matches
from ..core.schedule import Schedule, is_concrete
from ..optimizers.dog import scale_by_dog
from ..optimizers.prodigy import prodigy
from ..transforms.clipping.clip import clip_by_block_rms
from ..transforms.combining.nesting import children
from ..transforms.combining.select import masked, partition, set_to_zero
from ..transforms.precision.kahan import kahan
from ..transforms.precision.master_weights import master_weights
from ..transforms.precision.quantize import quantize_state
from ..transforms.precision.rounding import stochastic_round
from ..transforms.scaling.constrain import keep_params_nonnegative
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale, scale_by_learning_rate, scale_by_schedule
from ..transforms.scaling.moments import ema, trace
from ..transforms.scaling.plateau import reduce_on_plateau
from ..transforms.wrapping.accumulate import MultiSteps
from ..transforms.wrapping.evaluate import params_ema


class Note(NamedTuple):
    """A note of `explain`. `kind`: "warning" or "hint". `path`: that of the link. `message`: includes the remedy."""

    kind: str
    rule: str
    path: str
    message: str


def review(tx: Any, rows: tuple, params: Tree, steps: int | None = None) -> tuple[Note, ...]:
    """Returns the notes on a transformation, from its rows in `explain`; warnings come first."""
    notes = [note for rule in RULES for note in rule(tx, rows, params, steps)]
    return tuple(sorted(notes, key=lambda note: note.kind == "hint"))


def _pairs(rows: tuple, first: Callable, second: Callable) -> Iterator[tuple[Any, Any]]:
    """Yields pairs of links of two kinds, one before the other on leaves that they share; each second link once."""
    for i, b in enumerate(rows):
        shared = [a for a in rows[:i] if first(a.link) and set(a.leaves) & set(b.leaves)]
        before = [a for a in shared if second(b.link) and _in_turn(rows, a, b)]
        if second(b.link) and before:
            yield before[-1], b


def _in_turn(rows: tuple, a: Any, b: Any) -> bool:
    """Returns whether b gets the updates of a. Two optimizers side by side, as in `sam`, do not."""
    around = [r for r in rows if all(x.path == r.path or x.path.startswith(f"{r.path}.") for x in (a, b))]
    return around[-1] is a or around[-1].link.in_turn


def _descends(link: Any) -> bool:
    """Returns whether a link turns updates downhill."""
    if isinstance(link, scale):
        return is_concrete(link.step_size) and bool(link.step_size < 0)
    return isinstance(link, scale_by_learning_rate) and link.flip_sign


def _is_rate(link: Any) -> bool:
    return isinstance(link, scale_by_learning_rate)


def _decay_after_learning_rate(tx, rows, params, steps):
    for rate, decay in _pairs(rows, _descends, lambda x: isinstance(x, add_decayed_weights)):
        later = {name for row in rows[rows.index(decay) + 1 :] if _descends(row.link) for name in row.leaves}
        if (set(rate.leaves) & set(decay.leaves)) - later:
            yield Note(
                "warning",
                "decay_after_learning_rate",
                decay.path,
                f"{decay.link!r} comes after {rate.link!r}, which has flipped the sign: weights grow. Put it before",
            )


def _clip_after_preconditioner(tx, rows, params, steps):
    for rule, clipping in _pairs(rows, _preconditions, _clips):
        yield Note(
            "warning",
            "clip_after_preconditioner",
            clipping.path,
            f"{clipping.link!r} comes after {type(rule.link).__name__}, whose updates do not grow with gradients: "
            "a spike has already entered its state. Put it first",
        )


def _preconditions(link: Any) -> bool:
    return link.preconditions


def _clips(link: Any) -> bool:
    return link.clips and not isinstance(link, clip_by_block_rms)  # Adafactor's, on purpose


def _two_learning_rates(tx, rows, params, steps):
    for first, second in _pairs(rows, _is_rate, _is_rate):
        yield Note(
            "warning",
            "two_learning_rates",
            second.path,
            f"{second.link!r} comes after {first.link!r}: the rates are multiplied, and so are the signs. Drop one",
        )


def _no_learning_rate(tx, rows, params, steps):
    def rated(link):
        return hasattr(link, "learning_rate") or isinstance(link, scale | scale_by_schedule)

    moves = [row for row in rows if _preconditions(row.link) or isinstance(row.link, trace | ema)]
    covered = {name for row in rows if rated(row.link) for name in row.leaves}
    bare = [row for row in moves if set(row.leaves) - covered]
    if children(tx) and bare:
        yield Note(
            "warning",
            "no_learning_rate",
            bare[0].path,
            f"nothing scales the updates of {type(bare[0].link).__name__}, which point uphill. "
            "End the chain with scale_by_learning_rate(...)",
        )


def _uphill(tx, rows, params, steps):
    def turns(row):
        rate = getattr(row.link, "step_size_fn", None)
        values = None if rate is None else _values(rate, 10**6)
        unknown = (
            isinstance(row.link, scale) and not is_concrete(row.link.step_size) or rate is not None and not values
        )
        known = isinstance(row.link, scale | scale_by_schedule | scale_by_learning_rate)
        own = hasattr(row.link, "learning_rate") and not known  # a rule with a rate goes downhill by itself
        return unknown or own or _descends(row.link) or values is not None and bool((values[1] < 0).any())

    sized = [row for row in rows if isinstance(row.link, scale | scale_by_schedule | scale_by_learning_rate)]
    moves = any(_preconditions(row.link) or isinstance(row.link, trace | ema) for row in rows)
    if moves and sized and not any(map(turns, rows)):
        link = sized[-1].link
        message = (
            f"{link!r} has a positive sign, and so updates go uphill. End the chain with scale_by_learning_rate(...)"
        )
        yield Note("warning", "uphill", sized[-1].path, message)


def _odd_masks(tx, rows, params, steps):
    for i, row in enumerate(rows):
        mask = getattr(row.link, "mask", None)
        if isinstance(row.link, masked | add_decayed_weights) and mask is not None:
            everywhere = isinstance(mask, Frozen) and mask.thaw() is True
            name = type(row.link).__name__
            seen = set(rows[i + 1].seen) if isinstance(row.link, masked) else set(row.leaves)
            if not seen:
                message = f"the mask of {name} is False for all leaves: it does nothing"
                yield Note("warning", "mask_of_nothing", row.path, message)
            elif seen >= set(row.seen) and not everywhere and isinstance(mask, PathRules | Frozen):
                message = f"the mask of {name} is True for all leaves: it leaves nothing out. Drop it, or correct it"
                yield Note("warning", "mask_of_everything", row.path, message)
        if isinstance(row.link, partition):
            after = rows[i + 1 :]
            end = next((j for j, r in enumerate(after) if r.depth <= row.depth), len(after))
            inside = [r for r in after[:end] if r.depth == row.depth + 1]
            for label, group in zip(row.link.transforms, inside, strict=True):
                if not group.seen:
                    message = f"no leaf has the label {label!r} of partition: its transformation does nothing"
                    yield Note("warning", "group_of_nothing", group.path, message)


def _decay_of_vectors(tx, rows, params, steps):
    axes = {name: len(x.shape) for name, x in named_leaves(params)}
    for row in rows:
        if not isinstance(row.link, add_decayed_weights) or _is_zero(row.link.weight_decay):
            continue
        flat = [name for name in row.leaves if axes[name] < 2]
        if row.link.mask is None and flat and max(axes[name] for name in row.leaves) > 1:
            some = ", ".join(flat[:3]) + ", ..." * (len(flat) > 3)
            message = f"{len(flat)} of the {len(row.leaves)} leaves that decay have fewer than two axes ({some}): "
            message += f"biases and norms are often left out, with mask={_mask_without(flat, list(row.leaves))}"
            yield Note("hint", "decay_of_vectors", row.path, message)


def _mask_without(flat: list[str], names: list[str]) -> str:
    """Returns code for a mask that is False for these leaves only: by their last names, or else by their axes."""
    last = dict.fromkeys(glob.escape(name.split("/")[-1]) for name in flat)
    rules = {f"**/{part}": False for part in last}
    off = [name for name in names if any(matches(pattern, name) for pattern in rules)]
    return repr(rules) if off == flat else "lambda params: jax.tree.map(lambda x: jnp.ndim(x) > 1, params)"


def _is_zero(x: Any) -> bool:
    return is_concrete(x) and x == 0


def _schedules(tx, rows, params, steps):
    for row in rows:
        for name in ("learning_rate", "step_size_fn"):
            rate = getattr(row.link, name, None)
            within = any(hasattr(r.link, name) for r in rows if r.path.startswith(row.path + "."))
            if within or not (isinstance(rate, Schedule) or _is_zero(rate)):
                continue
            updates = steps
            for outer in rows:
                if isinstance(outer.link, MultiSteps) and row.path.startswith(outer.path) and updates is not None:
                    k = outer.link.every_k_schedule
                    updates = max(updates // k, 1) if is_concrete(k) else updates
            values = _values(rate, 10**6 if updates is None else updates)
            if values is None:
                continue
            counts, values = values
            who = f"{name} of {type(row.link).__name__}"
            if not values.any():
                yield Note(
                    "warning", "schedule_of_zeros", row.path, f"the {who} is 0 at every step: no update has an effect"
                )
            elif updates is not None and values[-2:].any() == 0:
                last = int(counts[np.nonzero(values)[0][-1]])
                message = f"the {who} is 0 after step {last} or so of {updates}. Make the schedule longer"
                yield Note("warning", "schedule_that_ended", row.path, message)


def _not_last(tx, rows, params, steps):
    for early, later in _pairs(rows, lambda x: isinstance(x, params_ema | keep_params_nonnegative), _resizes):
        yield Note(
            "warning",
            "not_last",
            early.path,
            f"{early.link!r} reads the updates as they will be added to the params, but {type(later.link).__name__} "
            "after it changes them. Put it last",
        )


def _resizes(link: Any) -> bool:
    """Returns whether a link gives updates another size or sign, as opposed to one that only looks at them."""
    kinds = scale | scale_by_schedule | scale_by_learning_rate | add_decayed_weights | trace | ema | reduce_on_plateau
    return isinstance(link, kinds) or link.preconditions or link.clips


def _decay_of_frozen(tx, rows, params, steps):
    for zeros, decay in _pairs(
        rows, lambda x: isinstance(x, set_to_zero), lambda x: isinstance(x, add_decayed_weights)
    ):
        if not _is_zero(decay.link.weight_decay):
            some = ", ".join([name for name in zeros.leaves if name in decay.leaves][:3])
            message = f"set_to_zero comes before {decay.link!r}, which moves the leaves all the same ({some}). "
            message += 'Put freeze(...) last, or use groups(tx, {pattern: "frozen"})'
            yield Note("warning", "decay_of_frozen", zeros.path, message)


def _steps_below_rounding(tx, rows, params, steps):
    short = {name for name, x in named_leaves(params) if getattr(x, "dtype", None) in ("bfloat16", "float16")}
    keepers = [row.path for row in rows if isinstance(row.link, master_weights | kahan | stochastic_round)]
    for row in rows:
        kept = any(row.path.startswith(path) for path in keepers)
        if isinstance(row.link, prodigy | scale_by_dog) and short & set(row.leaves) and not kept:
            name = type(row.link).__name__
            message = (
                f"{name} begins with steps of about 1e-6, which 16-bit params round away, so that it never starts. "
            )
            yield Note("warning", "steps_below_rounding", row.path, message + "Wrap the optimizer in master_weights")


def _kept_slots(tx, rows, params, steps):
    places, treedef = jax.tree_util.tree_flatten_with_path(params)
    for row in rows:
        if not isinstance(row.link, quantize_state):
            continue
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in places]
        seen = [x if name in row.seen else None for name, (_, x) in zip(names, places, strict=True)]
        if kept := row.link.uncoded(treedef.unflatten(seen)):
            yield Note("hint", "kept_slots", row.path, f"quantize_state does not quantize {', '.join(kept)}")


def _values(rate: Any, steps: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns up to 512 steps, including the first and last ones, and a rate's values there; None if unknown."""
    counts = np.unique(np.concatenate([np.arange(min(steps, 16)), np.linspace(0, steps - 1, 496).astype(int)]))
    if not isinstance(rate, Schedule):
        return counts, np.full(counts.shape, rate)
    try:
        return counts, np.broadcast_to(np.asarray(jax.vmap(rate)(counts.astype("int32"))), counts.shape)
    except (TypeError, ValueError, jax.errors.JAXTypeError):
        return None


RULES = (
    _decay_after_learning_rate,
    _clip_after_preconditioner,
    _two_learning_rates,
    _no_learning_rate,
    _uphill,
    _odd_masks,
    _schedules,
    _not_last,
    _decay_of_frozen,
    _steps_below_rounding,
    _decay_of_vectors,
    _kept_slots,
)
