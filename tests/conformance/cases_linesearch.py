"""Cases of the line searches, of L-BFGS and of Polyak's step size: what is told the loss."""

import functools
from typing import Any

import functional_opt as fo

from . import references_linesearch as ref
from .case import both, case, with_a_loss, with_a_parabola, with_an_objective


def polyak_sgd(o: Any, max_learning_rate: float, eps: float) -> Any:
    return with_a_loss(o.polyak_sgd(max_learning_rate, eps=eps))


def scale_by_backtracking_linesearch(o: Any, **args: Any) -> Any:
    return with_an_objective(o.scale_by_backtracking_linesearch(15, **args))


def lbfgs(**args: Any) -> Any:
    """Its line search held to a slope a tenth of that at the start, so that few first guesses will do."""
    search = fo.scale_by_zoom_linesearch(20, curv_rtol=0.1, initial_guess_strategy="one")
    return with_a_parabola(fo.lbfgs(linesearch=search, **args))


def zoom(o: Any, scale: float, **args: Any) -> Any:
    return with_a_parabola(o.chain(o.scale(-scale), o.scale_by_zoom_linesearch(15, **args)))


POLYAK = {"max_learning_rate": 0.6, "eps": 0.1}
STOP_AT_ROUNDING = ("scale_by_backtracking_linesearch",)
"""What makes no step where rounding hides that the loss falls, which in 16 bits comes sooner."""
BACKTRACKING = both(scale_by_backtracking_linesearch)
SLOPE = {"slope_rtol": 0.3, "rtol": 0.1}
PLAIN = functools.partial(fo.lbfgs, linesearch=None)
IDENTITY = {"learning_rate": 0.02, "memory_size": 2, "scale_init_precond": False}

IN_FLOAT64 = [
    case("polyak_sgd", *both(polyak_sgd), ref.polyak_sgd, **POLYAK),
    case("scale_by_backtracking_linesearch", *BACKTRACKING, ref.backtracking),
    case("scale_by_backtracking_linesearch-slope", *BACKTRACKING, ref.backtracking, **SLOPE),
    case("lbfgs", lbfgs, None, ref.lbfgs_on_parabolas, memory_size=3),
    case("lbfgs-identity", PLAIN, None, ref.lbfgs, **IDENTITY),
]
"""With references, for a few steps in float64: what they divide by may come near zero later, as in float32."""

TRANSFORMATIONS = [
    case("polyak_sgd", *both(polyak_sgd), None, "max_learning_rate eps", **POLYAK),
    case("scale_by_backtracking_linesearch", BACKTRACKING[0]),  # ends in rounding errors, where Optax goes on
    case("scale_by_backtracking_linesearch-slope", *BACKTRACKING, **SLOPE),
    case("scale_by_lbfgs", fo.scale_by_lbfgs, None, memory_size=3),
    case("scale_by_lbfgs-identity", fo.scale_by_lbfgs, None, scale_init_precond=False),
    case("lbfgs", lbfgs, memory_size=3),
    case("scale_by_zoom_linesearch", *both(zoom), scale=0.1),
    case("scale_by_zoom_linesearch-bound", *both(zoom), scale=0.01, max_learning_rate=20.0, approx_dec_rtol=None),
]
