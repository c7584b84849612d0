"""Optax's states: k steps there and then here, within rounding of all steps there, and back."""

import jax
import optax
import pytest

import functional_opt as fo
from functional_opt.interop.optax import from_optax, to_optax

from ..conformance.cases import CASES
from ..conformance.programs import quick
from ..helpers import assert_close, at, make_grads, make_params

REFUSED = {  # where Optax, or the peer of the case, keeps something else
    *("galore", "galore-low", "scale_by_galore"),  # a projector for vectors, too
    *("lookahead", "lookahead-anew"),  # the slow params beside the state
    "with_metrics",  # nothing
}
WITH_PEER = [case for case in CASES if case.peer is not None]
BEFORE, AFTER = 4, 2


def steps(case, tx, params, state, numbers):
    grads = make_grads(BEFORE + AFTER)
    for i in numbers:
        updates, state = tx.update(at(grads, i), state, params)
        params = fo.apply_updates(params, jax.tree.map(lambda u: case.pace * u, updates))
    return params, state


@pytest.mark.parametrize("case", WITH_PEER, ids=repr)
def test_there_here_and_back(case):
    theirs, ours, params = case.peer(**case.args), quick(case), make_params()
    params, state = steps(case, theirs, params, theirs.init(params), range(BEFORE))
    expected, _ = steps(case, theirs, params, state, range(BEFORE, BEFORE + AFTER))
    if repr(case) in REFUSED:
        with pytest.raises(ValueError, match="which .* does not (keep|have)"):
            from_optax(state, ours, params)
        return
    here = from_optax(state, ours, params)
    actual, _ = steps(case, ours, params, here, range(BEFORE, BEFORE + AFTER))
    assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    back, _ = steps(case, theirs, params, to_optax(here, theirs, params), range(BEFORE, BEFORE + AFTER))
    assert_close(back, expected, rtol=1e-4, atol=1e-6)


def test_wrappers():
    """Masks, partitions, schedules and injected hyperparameters, one inside the other."""

    def build(o):
        adam = o.inject_hyperparams(o.adamw)(learning_rate=o.linear_schedule(0.1, 0.01, 9))
        parts = {"dense": o.chain(o.clip_by_global_norm(1.0), adam), "rest": o.sgd(0.1, momentum=0.9)}
        labels = {"dense": {"bias": "dense", "kernel": "dense"}, "scale": "rest"}
        return o.apply_if_finite(o.chain(o.partition(parts, labels), o.masked(o.trace(0.5), without_the_scale)), 3)

    case, theirs, ours = WITH_PEER[0], build(optax), build(fo)
    params, state = steps(case, theirs, make_params(), theirs.init(make_params()), range(BEFORE))
    expected, _ = steps(case, theirs, params, state, range(BEFORE, BEFORE + AFTER))
    here = from_optax(state, ours, params)
    assert_close(steps(case, ours, params, here, range(BEFORE, BEFORE + AFTER))[0], expected, rtol=1e-5)
    back = to_optax(here, theirs, params)
    assert_close(steps(case, theirs, params, back, range(BEFORE, BEFORE + AFTER))[0], expected, rtol=1e-5)


def without_the_scale(params):
    return {"dense": {"bias": True, "kernel": True}, "scale": False}


def test_weights_of_a_window_are_not_lost_in_silence():
    theirs = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    ours, params = fo.MultiSteps(fo.sgd(0.1), 3).gradient_transformation(), make_params()
    _, state = ours.update(params, ours.init(params), params, weight=2.0)
    with pytest.raises(ValueError, match="gradients with weights in its window"):
        to_optax(state, theirs, params)
    with pytest.raises(ValueError, match="tx keeps .*#0/nu, of a ScaleByRmsState, which the"):
        from_optax(optax.sgd(0.1).init(params), fo.rmsprop(0.1), params)
