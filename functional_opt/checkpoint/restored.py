"""Restores a checkpoint, and migrates its state if another transformation is to go on with it."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ..core.leaves import Tree
from .migrate import migrate
from .plan import OtherSlotsError, Plan, plan_of


def restored(
    manifest: Any, tx: Any, params: Tree, read: Callable[[Plan], Mapping[str, Any]]
) -> tuple[Any, Tree, Any]:
    """Returns the `(tx, params, state)` of a checkpoint, whose arrays `read` returns; see `from_arrays`."""
    try:
        plan = plan_of(manifest, tx, params)
    except OtherSlotsError as e:
        if tx is None or manifest["config"] is None:
            raise
        plan = plan_of(manifest, None, params)
        old_tx, params, state = plan.filled(read(plan))
        try:
            state, report = migrate(state, old_tx, tx, params, strict=True)
        except ValueError as lost:
            raise ValueError(f"{e}; it would lose what was saved. {lost}") from lost
        if set(report) != set(report.of("kept")):
            warnings.warn(f"the state was migrated to another transformation:\n{report}", stacklevel=4)
        return tx, params, state
    return plan.filled(read(plan))
