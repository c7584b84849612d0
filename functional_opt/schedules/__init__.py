"""Schedules: functions of the step count. They are also values, so their numbers can be traced.

A schedule gets the count before it is incremented: 0 at the first step. An argument that takes a schedule also
takes a plain function of the count. The function is held as structure, so a new function means a new compilation.

Names, arguments and results are Optax's. In all schedules

- `t` is the count: an integer ≥ 0, or an array of them of any shape, which is then the shape of the result;
- `..._steps`, `transition_begin` and boundaries are in steps, `..._value` is in units of the result;
- the result is float32 (float64 under x64), and stays constant after the last step of a schedule;
- zero steps (`transition_steps=0`), negative steps and numbers out of range raise ValueError, and a value that is not
  a number raises TypeError. Optax accepts most of these, and stays at the initial value. A warm-up may have 0 steps.

Steps are leaves like any number: to differentiate with respect to them, give them as floats (`100.0`).

>>> import jax, jax.numpy as jnp
>>> decays = jax.tree.map(lambda *x: jnp.stack(x), cosine_decay_schedule(0.1, 100), cosine_decay_schedule(0.2, 50))
>>> print(jax.vmap(lambda schedule: schedule(25))(decays).round(3))
[0.085 0.1  ]
"""

from typing import Any

from ..core.schedule import OrSchedule as OrSchedule
from ..core.schedule import Rate as Rate
from ..core.schedule import Schedule as Schedule
from ..core.schedule import as_schedule as as_schedule
from ..core.schedule import to_schedule as to_schedule
from .decay import averaging_decay as averaging_decay
from .decay import constant_schedule as constant_schedule
from .decay import cosine_decay_schedule as cosine_decay_schedule
from .decay import cosine_restarts_schedule as cosine_restarts_schedule
from .decay import exponential_decay as exponential_decay
from .decay import inverse_sqrt_schedule as inverse_sqrt_schedule
from .decay import inverse_time_decay as inverse_time_decay
from .decay import linear_schedule as linear_schedule
from .decay import polynomial_schedule as polynomial_schedule
from .decay import warmup_stable_decay_schedule as warmup_stable_decay_schedule
from .pieces import cosine_onecycle_schedule as cosine_onecycle_schedule
from .pieces import join_schedules as join_schedules
from .pieces import linear_onecycle_schedule as linear_onecycle_schedule
from .pieces import piecewise_constant_schedule as piecewise_constant_schedule
from .pieces import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from .pieces import proportional_schedule as proportional_schedule
from .pieces import sgdr_schedule as sgdr_schedule
from .pieces import warmup_constant_schedule as warmup_constant_schedule
from .pieces import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from .pieces import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule

# Optax has these here. They need transformations, which this package must not import: the top `__init__` sets them.
InjectHyperparamsState: Any
InjectStatefulHyperparamsState: Any
StatefulSchedule: Any
WrappedSchedule: Any
inject_hyperparams: Any
inject_stateful_hyperparams: Any
