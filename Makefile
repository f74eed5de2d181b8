# `make demo` and `make test` work in a fresh clone with nothing active: they make .venv themselves.
#
# One environment, two sizes. The demo needs NumPy, SciPy and a reader of weights, which install in seconds; the tests need
# torch, JAX and the linters, which take a minute or more. So `make demo` installs the small set, and `make test` completes
# the same .venv; where torch or JAX are there already, the demo runs on them too. A stamp for each size is older than
# pyproject.toml, constraints.txt or the C sources when it has to be done again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

# Named in the same command as what needs it, so that pip takes a local CPU build of just this version where it is
# configured to look in a folder that has one, and never a newer release with a GPU toolkit.
TORCH := $(shell sed -n 's/^torch==/&/p' constraints.txt)

# Compiled where there is a C compiler, as the project is installed.
KERNEL := backends/cpu_kernel.c backends/cpu_stage.h backends/cpu_xla.h

# Two workers share the cores, so that each library keeps to one thread.
CORES ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1

# Tests hand over what the types forbid, to see it refused.
TESTS_MAY := arg-type call-overload index misc no-any-return type-var

.DEFAULT_GOAL := help
.PHONY: help demo test lint types-of-diffcore types-of-tests format bench docs dist upgrade clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## draw new clips from the shipped model, in a minute or two
	$(BIN)/python -m diffcore.demo $(ARGS)

test: lint  ## lint, type-check, run every test and doctest
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(CORES) $(ARGS)

lint: $(VENV)/.dev  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 2 types-of-diffcore types-of-tests

types-of-diffcore: $(VENV)/.dev
	$(BIN)/mypy diffcore

# In a cache of their own: mypy drops what it kept under other options.
types-of-tests: $(VENV)/.dev
	$(BIN)/mypy tests --cache-dir .mypy_cache/of-tests --no-warn-unused-ignores $(addprefix --disable-error-code=,$(TESTS_MAY))

format: $(VENV)/.dev  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## time what benchmarks/README.md lists; ARGS="--help" tells more
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.dev  ## build the site, pages and reference, into .cache/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open .cache/docs/index.html"

dist: $(VENV)/.dev  ## build the source archive and the wheel into dist/
	$(BIN)/python -m build --no-isolation

upgrade:  ## resolve anew and rewrite constraints.txt, all but torch
	rm -rf .cache/upgrade && $(PYTHON) -m venv .cache/upgrade
	.cache/upgrade/bin/python -m pip install --quiet --upgrade setuptools wheel
	.cache/upgrade/bin/python -m pip install --quiet --no-build-isolation $(TORCH) --editable '.[dev]'
	{ sed -n '/^#/p' constraints.txt; .cache/upgrade/bin/python -m pip freeze --all --exclude-editable --exclude pip \
	    | sed 's/+[^+]*$$//'; } > .cache/constraints.txt
	mv .cache/constraints.txt constraints.txt && rm -rf .cache/upgrade

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks build dist demo-output *.egg-info
	rm -f backends/*.so backends/*.pyd
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing or older than Python 3.11; name another one, as in: make PYTHON=python3.12 test" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# setuptools comes first, pinned, and builds the project without a second, isolated environment.
$(VENV)/.build: constraints.txt | $(BIN)/python
	$(PIP) --upgrade setuptools wheel
	touch $@

$(VENV)/.demo: pyproject.toml $(KERNEL) $(VENV)/.build
	$(PIP) --no-build-isolation --editable '.[demo,progress]'
	touch $@

$(VENV)/.dev: pyproject.toml $(KERNEL) $(VENV)/.build
	$(PIP) --no-build-isolation $(TORCH) --editable '.[dev]'
	touch $@ $(VENV)/.demo
