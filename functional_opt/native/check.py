"""Checks the kernels once per process: compares small steps and Newton–Schulz with the same formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.kernels import AdamScalars, KernelOp, known_sum
from .library import NEWTON_SCHULZ, STEP, SUMS_OF_SQUARES, to_check
from .newton_schulz import carried as newton_schulz
from .plan import plan_of
from .step import carried as step

SIZES = 700, 3  # more than a block, and less than a vector
B1, B2, EPS, RATE, DECAY, LARGEST = 0.9, 0.99, 1e-3, -0.1, 0.01, 0.5
COEFFICIENTS = ((3.0, -3.0, 1.0),)


@to_check
def small_steps() -> None:
    """Compares AdamW with a clip, for new params and for updates, and a step of Newton–Schulz.

    The reference is in NumPy, because XLA would take half a second to compile it. Raises ValueError if numbers differ
    or if JAX did not use the kernels; errors from JAX pass through.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return  # without a CPU backend, nothing is lowered for the CPU
    rng = np.random.default_rng(0)
    g, w, m, v = ([rng.uniform(0.1, 1, n).astype(np.float32) for n in SIZES] for _ in range(4))
    matrices = rng.uniform(-0.1, 0.1, (2, 3, 9)).astype(np.float32)
    lowered = jax.jit(lambda *args: _with_kernels(*args)).lower(*jax.device_put((g, w, m, v, matrices), cpu))
    text = lowered.as_text()
    if not all(name in text for name in (STEP, SUMS_OF_SQUARES, NEWTON_SCHULZ)):
        raise ValueError(f"JAX {jax.__version__} does not use them in a program for one CPU")
    ours = lowered.compile()(*jax.device_put((g, w, m, v, matrices), cpu))
    updates, slots = _adamw(g, (m, v), w, np)
    expected = [p + u for p, u in zip(w, updates, strict=True)], slots, (updates, slots), [_iterate(matrices)] * 2
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        if not np.allclose(x, y, rtol=1e-4, atol=1e-5):
            raise ValueError(f"numbers differ by {np.abs(np.asarray(x) - y).max():.1g}")


def _with_kernels(g, w, m, v, matrices):
    """Returns new params and slots, then updates and slots, then matrices, orthogonalized in two ways."""
    operations = (
        KernelOp("scale", (LARGEST,), squares=lambda sums, largest: largest / jnp.sqrt(jnp.sum(sums))),
        KernelOp("adam", AdamScalars(B1, 1 - B1, B2, 1 - B2, 1.0, 1.0, 1.0, 0.0, EPS), (m, v)),
        KernelOp("decay", (DECAY,)),
        KernelOp("scale", (RATE,)),
    )
    found = plan_of(operations, g, [*m, *v], w, enough=0)
    if found is None:
        raise ValueError("there is no plan for a chain that the kernels support")
    plan, scalars = found
    plan = plan._replace(gives_updates=True)
    updates, slots = step(plan, scalars, _adamw, g, (m, v), w)
    added = [known_sum(p, u) for p, u in zip(w, updates, strict=True)]
    again = step(plan, scalars, _adamw, g, (m, v), w)
    orthogonal = [newton_schulz(matrices, COEFFICIENTS, _iterate, in_pairs) for in_pairs in (False, True)]
    return added, slots, again, orthogonal


def _adamw(g, slots, w, xp=jnp):
    factor = LARGEST / xp.sqrt(sum(xp.sum(x * x) for x in g))
    g = [factor * x for x in g]
    m = [B1 * m + (1 - B1) * x for m, x in zip(slots[0], g, strict=True)]
    v = [B2 * v + (1 - B2) * x * x for v, x in zip(slots[1], g, strict=True)]
    u = [RATE * (m / (xp.sqrt(v) + EPS) + DECAY * w) for m, v, w in zip(m, v, w, strict=True)]
    return u, (m, v)


def _iterate(x, rows=COEFFICIENTS):
    for a, b, c in rows:
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x
