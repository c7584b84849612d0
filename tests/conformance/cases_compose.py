"""Cases of the core transformations and combinators that hold others."""

import optax

import functional_opt as fo

from .case import (
    both,
    case,
    halved,
    halved_leaf,
    halving,
    injected,
    late,
    looking_ahead,
    matrices,
    monitors,
    selective,
    split,
)


def two_levels(rate, outer):
    return fo.outer_steps(fo.adam(rate), fo.adam(outer), sync_period=3)


def snoo_of_adam(rate, outer):
    return fo.snoo(fo.adam(rate), outer, sync_period=3)


OPTIMIZERS = []

TRANSFORMATIONS = [
    case("stateless", *both(lambda o: o.stateless(halved)), None),
    case("stateless_with_tree_map", *both(lambda o: o.stateless_with_tree_map(halved_leaf)), None),
    case("centralize", fo.centralize, optax.centralize),
    case("normalize", fo.normalize, optax.contrib.normalize),
    case("normalize_by_update_norm", fo.normalize_by_update_norm, optax.normalize_by_update_norm, None, "eps"),
    case("normalize_by_update_norm-eps", fo.normalize_by_update_norm, None, None, "scale_factor eps", eps=0.1),
    case("keep_params_nonnegative", fo.keep_params_nonnegative, optax.keep_params_nonnegative),
    case("zero_nans", fo.zero_nans, optax.zero_nans),
    case("apply_every", fo.apply_every, optax.apply_every, None, "k", k=3),
    case("split_real_and_imaginary", *both(split), None, "d", d=0.9),
    case("conditionally_transform", *both(lambda o, r: o.conditionally_transform(o.adam(r), late)), None, "r", r=0.1),
    case("conditionally_mask", *both(lambda o, r: o.conditionally_mask(o.adam(r), late)), None, "r", r=0.1),
    case("selective_transform", *both(selective), None, "rate", rate=0.1, mask=matrices),
    case("selective_transform-all", *both(selective), rate=0.1, mask=True),
    case("flatten", *both(lambda o, d: o.flatten(o.trace(d))), None, "d", d=0.9),
    case("snapshot", lambda: fo.snapshot("norm", fo.global_norm)),
    case("monitor", monitors, None, None, "decay", decay=0.9),
    case("measure_with_ema", lambda: fo.monitor({"norm": fo.measure_with_ema(fo.global_norm, 0.9, debias=False)})),
    case("lookahead", *both(looking_ahead), None, "rate slow", rate=0.1, slow=0.7),
    case("outer_steps", two_levels, None, None, "rate outer", rate=0.1, outer=0.05),
    case("snoo", snoo_of_adam, None, None, "rate outer", rate=0.1, outer=0.7),
    case("lookahead-anew", *both(looking_ahead), None, "k", rate=0.1, slow=0.7, k=3, reset_state=True),
    case("params_ema", fo.params_ema, None, None, "decay", decay=0.9),
    case("params_ema-schedule", fo.params_ema, decay=halving, debias=False),
    case("adam-injected", *both(injected), None, "learning_rate b1", learning_rate=0.1, b1=0.9),
]
