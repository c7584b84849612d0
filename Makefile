# make demo: sets everything up and trains on real data.  make characters: compares eleven
# optimizers on a character transformer.  make distributed: trains it on two processes of four
# devices each.  make test: sets everything up and tests.
# make test-versions: a selection of the tests on the newest Python and JAX, and on the lowest.
# make check: ruff, pyright and the doctests.  make sanitize: the kernels under ASan, UBSan and TSan, and on ARM.
# make docs: builds the documentation into out/docs and runs all of its code.
# make mutants: puts mistakes into a copy of the library, one at a time, and runs the tests that must notice.
# make bench: speed, side by side with peers.
# PYTHON=... runs any of them with another Python, in an environment of its own.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN = $(VENV)/bin
# flags with which XLA compiles several times faster; tests/native is about the code it makes with all optimizations
QUICK = $$($(BIN)/python -m tests.xla_flags)

.PHONY: demo characters distributed test test-versions check docs sanitize mutants bench clean
demo: $(VENV)/demo
	$(BIN)/python examples/digits.py

characters: $(VENV)/demo
	$(BIN)/python examples/characters.py

distributed: $(VENV)/demo
	$(BIN)/python examples/distributed.py

test: $(VENV)/test
	XLA_FLAGS="$(QUICK)" $(BIN)/python -m pytest -n auto --dist loadgroup --ignore tests/native
	$(BIN)/python -m pytest -n auto tests/native

test-versions: $(VENV)/test
	$(BIN)/nox

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	XLA_FLAGS="$(QUICK)" $(BIN)/python -m pytest -n auto --doctest-modules functional_opt

docs: $(VENV)/docs
	$(BIN)/python -m docs._site

sanitize:
	$(PYTHON) -m tests.native.sanitize

mutants: $(VENV)/test
	QUICK="$(QUICK)" $(BIN)/python -m tests.mutants

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.facade
	$(BIN)/python -m benchmarks.sparse
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.compile
	$(BIN)/python -m benchmarks.muon
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.plot

# One environment; each stamp adds the packages that its job needs.
$(VENV)/demo: EXTRA = examples
$(VENV)/test: EXTRA = test
$(VENV)/docs: EXTRA = docs
$(VENV)/bench: EXTRA = bench
$(VENV)/%: pyproject.toml setup.py $(wildcard functional_opt/native/cpp/*) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[$(EXTRA)]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .pytest_cache out build *.egg-info functional_opt/native/*.so
