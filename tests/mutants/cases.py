"""The mutants, by room of the library: each is a mistake that a reviewer would fear."""

from .mutant import Mutant

# shorter names of tests
BASE, LEAVES, VALUE = (
    "tests/core/test_transformation.py::",
    "tests/core/test_leaves.py::",
    "tests/core/test_value.py::",
)
OPTIMIZERS, NUMBERS = "tests/test_optimizers.py::", "tests/conformance/test_numbers.py::"
PAPER = f"{NUMBERS}test_float64_is_the_paper"
NATIVE, GUARDS = "tests/native/test_native.py::", "tests/native/test_guards.py::"
KERAS3 = "tests/keras/test_keras3_methods.py::"

CORE = [
    Mutant(  # a count that overflows
        "core/transformation.py",
        "return jnp.where(count < count.dtype.type(jnp.iinfo(count.dtype).max), count + 1, count)",
        "return count + 1",
        f"{BASE}test_counts",
    ),
    Mutant(  # a leaf without gradient that loses its slots
        "core/leaves.py",
        "results = (None, *row[1:n])",
        "results = (None, *(0 * x for x in row[1:n]))",
        f"{LEAVES}test_map_leaves_keeps_the_slot_of_no_update",
    ),
    Mutant(  # arithmetic in 16 bits
        "core/leaves.py",
        "dtype.itemsize < 4",
        "dtype.itemsize < 2",
        f"{LEAVES}test_map_leaves_computes_in_float32",
    ),
    Mutant(  # a sum that is rounded twice
        "core/leaves.py",
        "return cast_like(widen(x) + widen(u), x)",
        "return x + cast_like(u, x)",
        f"{BASE}test_apply_updates_rounds_once",
    ),
    Mutant(  # slots of 16-bit params in 16 bits
        "core/leaves.py",
        "else jnp.promote_types(wide, jnp.float32)",
        "else wide",
        f"{LEAVES}test_slots",
    ),
    Mutant(  # the sums of some leaves given to others
        "core/norms.py",
        "return in_turn if places == sorted(places) else in_turn[np.argsort(places)]",
        "return in_turn",
        f"{LEAVES}test_sums_of_squares_of_many_leaves_stand_in_their_order",
    ),
    Mutant(  # an open bound that is closed
        "core/ranges.py",
        "(x < self.high if self.open_high else x <= self.high)",
        "x <= self.high",
        f"{VALUE}test_the_ends_of_a_range",
    ),
    Mutant(  # the same in an annotation: a mean that never moves
        "core/ranges.py",
        'Decay = Annotated[Scalar, Range("[0, 1)")]',
        'Decay = Annotated[Scalar, Range("[0, 1]")]',
        f"{OPTIMIZERS}test_arguments_out_of_range",
    ),
    Mutant(  # the sum of other params
        "core/kernels.py",
        "found[0]() is update and found[1] is param",
        "found[0]() is update",
        f"{NATIVE}test_updates_may_be_used_for_anything[32]",
    ),
    Mutant(  # the last rule that matches, not the first
        "core/paths.py",
        "values.append(hits[0][1] if hits else default)",
        "values.append(hits[-1][1] if hits else default)",
        "tests/core/test_paths.py::test_the_first_match_wins",
    ),
    Mutant(  # a mask that is the same where no rule matches
        "core/paths.py",
        "default = not said.pop()",
        "default = said.pop()",
        "tests/core/test_paths.py::test_a_mask_of_one_kind_of_rules_is_the_opposite_elsewhere",
    ),
]

SCHEDULES = [
    Mutant(  # a schedule that starts before it begins
        "core/schedule.py",
        "return jnp.maximum(jnp.asarray(count) - begin, 0).astype(float)",
        "return (jnp.asarray(count) - begin).astype(float)",
        "tests/schedules/test_schedules.py::test_same_numbers_as_optax",
    ),
    Mutant(  # a step that comes one too late
        "schedules/pieces.py",
        "jnp.where(count < step, 1.0, scale)",
        "jnp.where(count <= step, 1.0, scale)",
        "tests/schedules/test_schedules.py::test_pieces",
    ),
    Mutant(  # a joined schedule that counts from the start
        "schedules/pieces.py",
        "schedule(jnp.maximum(count - boundary, 0))",
        "schedule(count)",
        "tests/schedules/test_schedules.py::test_plain_functions_in_a_join",
    ),
]

TRANSFORMS = [
    Mutant(  # a window that is closed before the first gradient
        "transforms/wrapping/accumulate.py",
        "return (state.mini_step == 0) & (state.gradient_step > 0)",
        "return state.mini_step == 0",
        "tests/transforms/wrapping/test_accumulate.py::test_nothing_has_updated_before_the_first_window_closes",
    ),
    Mutant(  # a window that is one too long
        "transforms/wrapping/accumulate.py",
        "~skip & (state.mini_step + 1 >= k)",
        "~skip & (state.mini_step >= k)",
        "tests/transforms/wrapping/test_accumulate.py::test_the_sum_on_request",
    ),
    Mutant(  # a loss scale without a lower bound
        "transforms/wrapping/loss_scale.py",
        "jnp.maximum(scale / 2, jnp.minimum(min_scale, scale))",
        "scale / 2",
        "tests/transforms/wrapping/test_loss_scale.py::test_halves_and_doubles",
    ),
    Mutant(  # a loss scale that a bad step lifts
        "transforms/wrapping/loss_scale.py",
        "jnp.minimum(min_scale, scale)",
        "min_scale",
        "tests/transforms/wrapping/test_loss_scale.py::test_a_scale_that_starts_below_its_bound_is_not_lifted_by_a_bad_step",
    ),
    Mutant(  # weights of zero that stay so for ever
        "transforms/scaling/trust_ratio.py",
        "apart = (of_w > 0) & (of_g > 0)",
        "apart = of_g > 0",
        "tests/transforms/scaling/test_trust_ratio.py::test_weights_of_zero_take_the_update_as_it_is",
    ),
    Mutant(  # an optimizer that starts again where the params were
        "transforms/wrapping/lookahead.py",
        "start = matching(apply_updates(w, fast), s)",
        "start = matching(w, s)",
        "tests/transforms/wrapping/test_evaluate.py::test_a_reset_optimizer_starts_at_the_new_params",
    ),
    Mutant(  # extra arguments that do not arrive
        "transforms/combining/select.py",
        "tx, chosen, updates, new_updates, state.inner_states[label], params, more",
        "tx, chosen, updates, new_updates, state.inner_states[label], params, {}",
        "tests/transforms/combining/test_select.py::test_extra_arguments_of_the_same_structure",
    ),
    Mutant(
        "transforms/combining/chain.py",
        "t.update(updates, state, params, **extra)",
        "t.update(updates, state, params)",
        "tests/transforms/combining/test_chain.py::test_extra_arguments_go_all_the_way_down",
    ),
    Mutant(  # links in 16 bits
        "transforms/combining/chain.py",
        'updates, params = widen_tree(updates, "updates"), widen_params(params)',
        "params = widen_params(params)",
        "tests/transforms/combining/test_chain.py::test_the_first_link_sees_float32",
    ),
    Mutant(  # a mask the other way round
        "transforms/scaling/decay.py",
        "return merge(chosen, decay(select_leaves(chosen, updates)), updates), state",
        "return merge(chosen, updates, decay(updates)), state",
        "tests/transforms/scaling/test_decay.py::test_masks",
    ),
    Mutant(  # a mask that the kernel does not see
        "transforms/scaling/decay.py",
        'kernels.KernelOp("decay", (rate,), only=chosen)',
        'kernels.KernelOp("decay", (rate,))',
        f"{NATIVE}test_same_numbers_donated[adamw, mask, named]",
    ),
    Mutant(  # the rate of the next step, in the kernel
        "transforms/scaling/learning_rate.py",
        'kernels.KernelOp("scale", (self.step_size_fn(state.count),))',
        'kernels.KernelOp("scale", (self.step_size_fn(state.count + 1),))',
        f"{NATIVE}test_same_numbers_donated[adagrad, eps outside]",
    ),
    Mutant(  # the same in a state
        "transforms/wrapping/inject.py",
        "numbers[name] = self.numbers[name](s, **extra)",
        "numbers[name] = self.numbers[name](self.numbers[name].update(s, **extra), **extra)",
        "tests/transforms/wrapping/test_inject.py::test_schedules_as_in_optax",
    ),
    Mutant(  # patience that ends a step too early
        "transforms/wrapping/guard.py",
        "errors > self.max_consecutive_errors",
        "errors >= self.max_consecutive_errors",
        "tests/transforms/wrapping/test_guard.py::test_as_in_optax_when_bad_steps_go_on",
    ),
    Mutant(  # a NaN that spreads over all leaves
        "transforms/clipping/clip.py",
        "jnp.where(jnp.isnan(squares), 0.0, squares)",
        "squares",
        "tests/transforms/clipping/test_clip.py::test_nan_stays_in_its_leaf",
    ),
    Mutant(  # small gradients that a clip makes larger
        "transforms/clipping/clip.py",
        "return jnp.minimum(1.0, largest / jnp.where(size == 0, 1.0, size))",
        "return largest / jnp.where(size == 0, 1.0, size)",
        "tests/transforms/clipping/test_clip.py::test_what_is_within_the_bound_stays_as_it_is",
    ),
    Mutant(  # the wrong axis
        "transforms/clipping/clip.py",
        "axis = 0 if x.ndim < 4 else",
        "axis = -1 if x.ndim < 4 else",
        "tests/transforms/clipping/test_clip.py::test_units",
    ),
    Mutant(  # a bias correction that lags behind
        "transforms/scaling/moments.py",
        "return m / (1 - self.decay**t) if self.debias else m, m",
        "return m / (1 - self.decay ** (t + 1)) if self.debias else m, m",
        "tests/transforms/scaling/test_moments.py::test_ema_of_a_constant_is_that_constant",
    ),
    Mutant(  # a leaf of the least size that is not stored in codes
        "transforms/precision/quantize.py",
        "np.size(x) >= max(self.min_size, 1)",
        "np.size(x) > max(self.min_size, 1)",
        "tests/transforms/precision/test_quantize.py::test_small_leaves_and_params_in_the_state_are_left_alone",
    ),
    Mutant(  # the mean over all micro-batches where some do not count
        "microbatching.py",
        "total / jnp.maximum(n_real, 1) if mean",
        "total / n if mean",
        "tests/test_microbatching.py::test_some_of_the_micro_batches_only",
    ),
    Mutant(  # JAX's gradient of complex params, which points uphill
        "train_step.py",
        "map(jnp.conj, grads)",
        "grads",
        "tests/test_train_step.py::test_leaves_that_are_not_trained",
    ),
]

RULES = [
    Mutant(  # a weight of the rate now, not of the largest so far
        "optimizers/schedule_free.py",
        "jnp.maximum(state.max_lr, rate_at(self.learning_rate, state.step_count - 1))",
        "jnp.asarray(rate_at(self.learning_rate, state.step_count - 1))",
        "tests/optimizers/test_schedule_free.py::test_a_step_weighs_by_the_rate_that_moved_it",
    ),
    Mutant(  # a threshold that does not count itself
        "optimizers/radam.py",
        "adaptive = rho >= self.threshold",
        "adaptive = rho > self.threshold",
        "tests/optimizers/test_radam.py::test_a_step_is_adaptive_from_the_threshold_on",
    ),
    Mutant(  # the bias correction of the next step
        "optimizers/adam.py",
        "of_m, of_v = 1 - b1**t, 1 - b2**t",
        "of_m, of_v = 1 - b1 ** (t + 1), 1 - b2**t",
        f"{OPTIMIZERS}test_the_first_step_is_the_rate",
    ),
    Mutant(  # an epsilon outside of its root
        "optimizers/adam.py",
        "jnp.sqrt(v / of_v + self.eps_root) + eps",
        "jnp.sqrt(v / of_v) + self.eps_root + eps",
        f"{PAPER}[adam-eps]",
    ),
    Mutant(  # decay that Adam scales
        "optimizers/adam.py",
        "return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))",
        "return chain(add_decayed_weights(weight_decay, mask), rule, scale_by_learning_rate(learning_rate))",
        f"{PAPER}[adamw-decay]",
    ),
    Mutant(  # 0 / 0
        "optimizers/adagrad.py",
        "jnp.where(s > 0, g / jnp.where(s > 0, root, 1.0), 0.0)",
        "g / root",
        f"{OPTIMIZERS}test_adagrad_with_nothing_seen_stands_still",
    ),
    Mutant(  # the root of a negative number
        "optimizers/rmsprop.py",
        "jnp.maximum(v / weight - abs_sq(m / weight), 0.0)",
        "v / weight - abs_sq(m / weight)",
        f"{OPTIMIZERS}test_centered_rmsprop_of_a_gradient_that_stays",
    ),
    Mutant(  # the wrong sign
        "optimizers/yogi.py",
        "jnp.where(squares < v, -squares, squares)",
        "jnp.where(squares > v, -squares, squares)",
        f"{PAPER}[yogi]",
    ),
    Mutant(  # a direction from the new mean
        "optimizers/lion.py",
        "return shape[self.mode](c), new",
        "return shape[self.mode](new), new",
        "tests/optimizers/test_lion.py::test_the_direction_is_from_the_old_mean_whatever_the_decays",
    ),
    Mutant(  # the wrong axis, where the rows are behind the columns
        "optimizers/adafactor.py",
        "jnp.mean(r, i - (i > j), keepdims=True)",
        "jnp.mean(r, min(i, r.ndim - 1), keepdims=True)",
        "tests/optimizers/test_adafactor.py::test_rows_behind_the_columns",
    ),
    Mutant(  # a first step like any other
        "optimizers/novograd.py",
        "jnp.where(state.count == 0, size,",
        "jnp.where(state.count < 0, size,",
        f"{PAPER}[novograd]",
    ),
]

FACADE = [
    Mutant(  # a clock that goes on between the rounds of one step
        "keras/engine/step.py",
        "step(numbers, here, state, clock, rest, gs)",
        "step(numbers, here, state, after, rest, gs)",
        "tests/keras/test_apply_gradients.py::test_listed_twice_bias_correction_counts_one_step",
    ),
    Mutant(  # a constraint at every micro-step
        "keras/engine/step.py",
        "new = _constrain(plan, new, grads, update_now)",
        "new = _constrain(plan, new, grads, True)",
        f"{KERAS3}test_a_constraint_waits_for_the_update",
    ),
    Mutant(  # float64 variables that lose digits beside others
        "keras/engine/step.py",
        "in_float64 = any(x.dtype",
        "in_float64 = all(x.dtype",
        "tests/keras/test_hyper.py::test_float64_variables_keep_their_digits_beside_others",
    ),
    Mutant(  # a running mean that starts at zero steps with a share of the first value
        "keras/engine/step.py",
        "m = jnp.where(updates_done == 0, 0.0, numbers.ema_momentum)",
        "m = numbers.ema_momentum",
        f"{KERAS3}test_running_means",
    ),
    Mutant(  # a count that starts from zero after many steps
        "keras/engine/by_variable.py",
        "fresh = shift_counts(tx.init(values), state.counted)",
        "fresh = tx.init(values)",
        "tests/keras/test_custom.py::test_a_count_that_comes_later_is_that_of_the_steps_done",
    ),
    Mutant(  # weights that wait, and that the caller may write to meanwhile
        "keras/optimizers/weights.py",
        "array = np.array(x)",
        "array = np.asarray(x)",
        "tests/keras/test_weights.py::test_weights_that_wait_are_copies",
    ),
    Mutant(  # memory that is reused while somebody holds it
        "keras/engine/donation.py",
        "return [jnp.copy(x) if n > _OWNED else x for n, x in zip(counts, arrays, strict=True)]",
        "return arrays",
        "tests/keras/test_copy_on_write.py::test_what_was_taken_stays_valid",
    ),
    Mutant(  # rows that pad a list and are written over the first one
        "keras/variables/indexed_slices.py",
        "size=n, fill_value=rows, return_inverse=True",
        "size=n, fill_value=0, return_inverse=True",
        "tests/keras/test_custom.py::test_rows",
    ),
    Mutant(  # a field that a config drops
        "keras/optimizers/shared.py",
        '    "ema_overwrite_frequency": None,\n',
        "",
        "tests/keras/test_config.py::test_each_shared_argument_that_is_set_is_in_the_config",
    ),
    Mutant(  # all decay but those that are to
        "keras/optimizers/optimizer.py",
        "if v not in self._undecayed]",
        "if v in self._undecayed]",
        f"{KERAS3}test_weight_decay_and_what_is_kept_from_it",
    ),
    Mutant(  # a boundary of the core for one of Keras
        "keras/optimizers/schedules.py",
        "[b + 1 for b in self.boundaries]",
        "self.boundaries",
        "tests/keras/test_schedules.py::test_formula",
    ),
    Mutant(  # infinity that is taken for a gradient
        "keras/engine/scaled.py",
        "jnp.all(jnp.isfinite(g)) for g in floats",
        "~jnp.any(jnp.isnan(g)) for g in floats",
        "tests/keras/test_wrappers.py::test_a_gradient_that_is_not_finite",
    ),
]

KERNELS = [
    Mutant(  # zero updates in place of the gradients at steps that are left out
        "transforms/wrapping/guard.py",
        "if otherwise is not jnp.zeros_like:",
        "if otherwise is None:",
        f"{NATIVE}test_left_to_xla",
    ),
    Mutant(  # sums that are rounded less than in the state
        "core/kernels.py",
        "or any(x.dtype != np.float32 for x in jax.tree.leaves(sums))",
        "",
        f"{NATIVE}test_same_numbers_donated[mean of two in 16 bits]",
    ),
    Mutant(  # a clip whose factor nobody has computed
        "native/plan.py",
        'if found is not None or [k.name for k in before] not in ([], ["accumulate"]):',
        "if found is not None:",
        f"{GUARDS}test_a_clip_that_is_not_the_first",
    ),
    Mutant(  # blocks of two sizes at one time
        "native/plan.py",
        "and len(scales) <= 1 and all(map(_is_known, self.slots))",
        "and all(map(_is_known, self.slots))",
        f"{GUARDS}test_blocks_that_kernels_cannot_do",
    ),
    Mutant(  # more slots than the kernel has room for
        "native/plan.py",
        "return len(self.slots) <= MAX_SLOTS and",
        "return",
        f"{GUARDS}test_more_slots_than_kernels_have",
    ),
    Mutant(  # blocks that do not fit into the kernel's memory
        "native/plan.py",
        "and blocks > 0 and -(-row // blocks) <= BLOCK",
        "and blocks > 0",
        f"{GUARDS}test_blocks_that_kernels_cannot_do",
    ),
    Mutant(  # two slots in one memory
        "native/plan.py",
        "if len(places) != len(state) or not all",
        "if not all",
        f"{GUARDS}test_slots_that_are_one_array",
    ),
    Mutant(  # reads and writes past the end of a slot
        "native/plan.py",
        "if not floats or any(x.shape != self.grad.shape for x in (self.param, *self.slots)):",
        "if not floats:",
        f"{GUARDS}test_arrays_of_other_shapes",
    ),
    Mutant(  # arrays of other dtypes read as floats
        "native/plan.py",
        "if not floats or any(",
        "if any(",
        f"{NATIVE}test_left_to_xla",
    ),
    Mutant(  # slots of other dtypes
        "native/plan.py",
        "return slot.kind in KINDS[:2]",
        "return True",
        f"{NATIVE}test_left_to_xla",
    ),
    Mutant(  # numbers that are rounded to float32
        "native/plan.py",
        " or not all(map(is_float32, scalars)):",
        ":",
        f"{GUARDS}test_numbers_that_are_no_float32",
    ),
    Mutant(  # updates written over gradients of another size
        "native/plan.py",
        "if not adds and all(grads[i].dtype == params[i].dtype for i in call.leaves):",
        "if not adds:",
        f"{NATIVE}test_updates_in_the_dtype_of_params",
    ),
    Mutant(  # a NaN that becomes the bound
        "native/cpp/rules.h",
        "return x > largest ? largest : x < -largest ? -largest : x;",
        "return x > largest ? largest : x > -largest ? x : -largest;",
        f"{NATIVE}test_nan_stays_where_it_is[clip]",
        rebuild=True,
    ),
    Mutant(  # a NaN that stands still
        "native/cpp/rules.h",
        "return c > 0 ? 1.0f : c < 0 ? -1.0f : c;",
        "return c > 0 ? 1.0f : c < 0 ? -1.0f : 0.0f;",
        f"{NATIVE}test_nan_stays_where_it_is[lion]",
        rebuild=True,
    ),
    Mutant(  # 0 / 0
        "native/cpp/rules.h",
        "return sum > 0 ? g / (sum > 0 ? root : 1.0f) : 0.0f;",
        "return g / root;",
        f"{NATIVE}test_adagrad_with_nothing_seen_stands_still",
        rebuild=True,
    ),
    Mutant(  # an epsilon that the bias correction makes larger
        "native/cpp/rules.h",
        "g * (1 / std::sqrt(by * v + eps))",
        "g * (1 / std::sqrt(by * (v + eps)))",
        f"{NATIVE}test_an_epsilon_is_not_corrected",
        rebuild=True,
    ),
    Mutant(  # equal steps
        "native/cpp/arrays.h",
        "2 * y / (1 + y) * 127",
        "y * 127",
        f"{NATIVE}test_every_code_and_scale",
        rebuild=True,
    ),
    Mutant(  # the last block of a row, if it is shorter
        "native/cpp/arrays.h",
        "if (i < n) f(i, n - i, k);",
        "if (i < n) f(i, block, k);",
        f"{NATIVE}test_codes[adamw-8-None-companded]",
        rebuild=True,
    ),
]

MUTANTS = [*CORE, *SCHEDULES, *TRANSFORMS, *RULES, *FACADE, *KERNELS]
