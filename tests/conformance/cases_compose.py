"""Cases of the core transformations and combinators that hold others."""

import optax

import functional_opt as fo

from .case import both, case, halved, halved_leaf, split

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
]
