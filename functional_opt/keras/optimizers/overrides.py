"""overrides: which methods of an optimizer are a script's own."""

import functools


@functools.cache
def overrides(cls: type, *names: str) -> tuple[str, ...]:
    """Returns the methods among these that a class outside of this library defines for `cls`."""
    cls = getattr(cls, "_facade", cls)  # what it was before the real Keras took it

    def is_theirs(name: str) -> bool:
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        return owner is not None and not owner.__module__.startswith("functional_opt.")

    return tuple(name for name in names if is_theirs(name))


RULES = (
    *("update_step", "_resource_apply_dense", "_resource_apply_sparse", "_resource_apply_sparse_duplicate_indices"),
    *("_prepare", "_prepare_local", "_decayed_lr", "_create_slots"),
)
"""The methods that make up the rule of an optimizer. If a class overrides one, its step runs them all."""
STAGES = "_transform_unaggregated_gradients", "_aggregate_gradients", "_transform_gradients", "_clip_gradients"
"""The methods that gradients pass before a step, in their order."""
DIFFERENTIATES = "minimize", "compute_gradients", "_compute_gradients", "_get_gradients", "get_gradients"
"""The methods that may differentiate a loss in a way of their own."""
