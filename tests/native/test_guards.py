"""Nothing about JAX, jaxlib, the build or a chain can make the kernels give other numbers, or an error."""

import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt import native
from functional_opt.native import check, jax_internals, library, plan, switch
from functional_opt.native.step import step_p

from .sanitize import __main__ as sanitize
from .test_native import KERNEL, assert_close, built, orthogonal, purely, stepper, tree, uses_kernel

ROWS = {"big": (16, 1024), "odd": (17,)}


@built
def test_a_clip_that_is_not_the_first():
    """Its factor comes from a norm that nobody knows before; run with a constant, it would be off by 0.1."""
    clip, params, grads = fo.clip_by_global_norm(1.0), tree(0), tree(1)
    for tx in (
        fo.chain(fo.scale_by_adam(), clip, fo.scale(-0.1)),
        fo.MultiSteps(fo.chain(fo.clip(0.5), clip, fo.sgd(0.1)), 1),
        fo.chain(clip, fo.scale_by_adam(), clip, fo.scale(-0.1)),
    ):
        args = params, tx.init(params), grads
        assert not uses_kernel(stepper(tx), *args)
        assert_close(jax.jit(stepper(tx))(*args), purely(stepper(tx), *args), 1)


@built
@pytest.mark.parametrize(
    "tx",
    [
        fo.chain(
            fo.quantize_state(fo.scale_by_rms(), block_size=32), fo.quantize_state(fo.trace(0.9)), fo.scale(-0.1)
        ),
        fo.quantize_state(fo.lion(1e-2), block_size=1024),
    ],
    ids=["two sizes of blocks", "larger blocks than what they are worked on in"],
)
def test_blocks_that_kernels_cannot_do(tx):
    """The codes of such slots are left to XLA, and a kernel may do the chain inside."""
    params, grads = tree(0, sizes=ROWS), tree(1, sizes=ROWS)
    args = params, tx.init(params), grads
    ours, pure = jax.jit(stepper(tx))(*args), purely(stepper(tx), *args)
    assert_close(ours[0], pure[0], 8)
    for x, y in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(pure[1]), strict=True):
        far = ~np.isclose(np.asarray(x, "float32"), np.asarray(y, "float32"), rtol=1e-5, atol=0)
        assert far.mean() < 1e-3  # a number may be between two codes


@built
def test_slots_that_are_one_array():
    tx, params, grads = fo.adam(1e-2), tree(0), tree(1)

    def step(params, grads, m):
        adam, rate = tx.init(params)
        updates, state = tx.update(grads, (adam._replace(mu=m, nu=m), rate), params)
        return fo.apply_updates(params, updates), state

    args = params, grads, jax.tree.map(jnp.abs, tree(2))
    assert not uses_kernel(step, *args)
    assert_close(jax.jit(step)(*args), purely(lambda *args: step(*args), *args), 1)


@built
def test_more_slots_than_kernels_have():
    params, grads = tree(0), tree(1)
    for links, fits in ((fo.trace(0.9), fo.trace(0.9), fo.scale_by_adan()), True), ((fo.trace(0.9),) * 7, False):
        tx = fo.chain(*links, fo.scale(-0.1))
        args = params, tx.init(params), grads
        assert uses_kernel(stepper(tx), *args) == fits
        assert_close(jax.jit(stepper(tx))(*args), purely(stepper(tx), *args), 1)


def test_arrays_of_other_shapes():
    """A kernel would read and write past their ends."""
    tx, params, grads, other = (
        fo.sgd(0.1, 0.9),
        tree(0, sizes=ROWS),
        tree(1, sizes=ROWS),
        tree(2, sizes=ROWS | {"odd": (16,)}),
    )
    for w, slots, fit in (params, params, True), (params, other, False), (other, params, False):
        state = tx.init(slots)
        found = plan.plan_of(tx.as_kernel(state, w), grads, jax.tree.leaves(state), w)
        assert (found is not None) == fit


@built
def test_numbers_that_are_no_float32():
    """XLA multiplies by float64 and rounds once."""
    with jax.enable_x64(True):
        params, grads = tree(0), tree(1)
        for rate, fits in (jnp.asarray(1 / 3, "float32"), True), (jnp.asarray(1 / 3, "float64"), False):
            tx = fo.sgd(rate)
            args = params, tx.init(params), grads
            assert uses_kernel(stepper(tx), *args) == fits
            assert_close(jax.jit(stepper(tx))(*args), purely(stepper(tx), *args), 0)


@built
def test_codes_of_an_empty_leaf():
    sizes = {"big": (64, 512), "none": (0, 3)}
    tx, params, grads = fo.quantize_state(fo.adam(1e-2), min_size=0), tree(0, sizes=sizes), tree(1, sizes=sizes)
    args = params, tx.init(params), grads
    assert_close(jax.jit(stepper(tx))(*args)[0], purely(stepper(tx), *args)[0], 8)


# What is other than expected turns the kernels off, with one warning, and XLA gives the same numbers.


def another_signature(patch):
    rules = jax_internals.pe.dce_rules
    rule = rules[step_p]
    patch.setitem(rules, step_p, lambda *args: rule(*args[:-1], *["new"] * (4 - len(args)), args[-1]))


def named_arguments(patch):
    rules = jax_internals.pe.dce_rules
    rule = rules[step_p]
    patch.setitem(rules, step_p, lambda *args: rule(used=args[0], eqn=args[-1]))


def no_debug_info(patch):
    def fails(closed):
        raise AttributeError("debug_info")

    patch.setattr(jax_internals, "_with_arguments", fails)


def no_axis_context(patch):
    def fails(*_):
        raise AttributeError("axis_context")

    patch.setattr(plan.Plan, "run", fails)


CHANGES = {  # and what the warning says
    another_signature: "rules of dead code",
    named_arguments: "rules of dead code",
    no_debug_info: "debug_info",
    no_axis_context: "axis_context",
}


def another_ffi(patch, tmp_path):
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 99\n")
    patch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    patch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: pytest.fail("registered before it was compared"))


def no_header(patch, tmp_path):
    patch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))


def no_registration(patch, _):
    def refuses(*_, **__):
        raise RuntimeError("incompatible")

    patch.setattr(jax.ffi, "register_ffi_target", refuses)


def other_sources(patch, _):
    patch.setattr(library, "checksum", lambda: 1)


def another_operation(patch, _):
    swapped = {"adam": "nadam", "nadam": "adam"}
    patch.setattr(plan, "OPS", tuple(swapped.get(op, op) for op in plan.OPS))


def another_product(patch, _):
    patch.setattr(check, "_iterate", lambda x, rows=None: x * 1.01)


def kernels_that_jax_ignores(patch, _):
    patch.setattr(check, "STEP", "functional_opt_nothing")


LOADS = {
    another_ffi: "and the installed jaxlib has 0.99; rebuild with `pip install --no-build-isolation",
    no_header: "cannot be determined",
    no_registration: "incompatible",
    other_sources: "other C++ sources",
    another_operation: "numbers differ",
    another_product: "numbers differ",
    kernels_that_jax_ignores: "does not use them",
}


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not used the kernels yet."""
    monkeypatch.setattr(switch, "_reason", [])
    monkeypatch.setattr(library, "_done", [])
    return monkeypatch


def assert_off(says):
    """Two steps and two stacks of matrices give XLA's numbers and one warning."""
    tx, args = fo.chain(fo.clip_by_global_norm(1.0), fo.adam(1e-2)), (tree(0), tree(1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 6)), "float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = tx.init(args[0])
        ours = [jax.jit(stepper(tx))(args[0], state, args[1]) for _ in range(2)]
        matrices = jax.jit(lambda x: orthogonal(x))(x)
    told = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(told) == 1 and says in told[0], told
    assert says in native.status() and not native.available()
    pure = purely(stepper(tx), args[0], state, args[1])
    for new in ours:
        assert_close(new, pure, 0)
    np.testing.assert_array_equal(matrices, purely(orthogonal, x))


@built
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("checked", [True, False], ids=["at the check", "afterwards"])
def test_a_change_of_jax_turns_them_off(fresh, change, checked):
    if not checked:
        assert native.available()
    change(fresh)
    assert_off(CHANGES[change])


@built
@pytest.mark.parametrize("change", LOADS)
def test_a_library_that_does_not_fit_is_not_used(fresh, change, tmp_path):
    change(fresh, tmp_path)
    assert_off(LOADS[change])


@built
def test_first_used_while_tracing_under_any_context(fresh):
    tx, params, grads = fo.adam(1e-2), tree(0), tree(1)
    state, mesh = tx.init(params), jax.sharding.Mesh(np.array(jax.devices()[:1]), "x")
    with jax.transfer_guard("disallow"), jax.checking_leaks(), jax.set_mesh(mesh):
        assert KERNEL in jax.jit(stepper(tx)).lower(params, state, grads).as_text()


def test_missing_interfaces_at_import():
    code = """
import warnings
import jax, jax.numpy as jnp
import jax.interpreters.partial_eval as pe
del pe.dce_rules
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import functional_opt as fo
    w = {"w": jnp.ones((128, 256))}
    tx = fo.adam(0.1)
    u, state = jax.jit(tx.update)(w, tx.init(w), w)
assert [str(x.message) for x in caught if "dce_rules" in str(x.message)] == [str(x.message) for x in caught], caught
assert len(caught) == 1 and "dce_rules" in fo.native.status(), (caught, fo.native.status())
assert abs(float(u["w"][0, 0]) + 0.1) < 1e-6
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_status_of_what_was_not_built(fresh, tmp_path):
    fresh.setattr(library, "HERE", tmp_path)
    (tmp_path / library.NOT_BUILT).write_text("command 'g++' failed\n")
    with native.disabled():
        assert native.status() == "kernels off: inside native.disabled()"
    assert native.status().startswith("kernels off: the extension was not built (command 'g++' failed); rebuild")
    assert not native.enabled()  # without a warning: those are errors here


@built
def test_status_of_what_is_on():
    assert (
        native.status().startswith("kernels on (") and "FFI {}.{}".format(*library.installed_ffi()) in native.status()
    )


@pytest.mark.parametrize("name", sanitize.SANITIZERS)
def test_random_programs_under_sanitizers(name, tmp_path):
    why = sanitize.why_not(sanitize.SANITIZERS[name], tmp_path)
    if why is not None:
        pytest.skip(why)
    done = sanitize.run(sanitize.SANITIZERS[name], Path(tmp_path), seed=0, count=100, quick=True)
    assert done.returncode == 0, done.stderr[:3000]
