# Every target installs what it needs first: a clone, Python 3.11 or newer, and `make search`.
# PYTHON=/path/to/python chooses the interpreter, VENV=folder the environment's place, ARGS="..." goes to the program.
# JOBS=number says how many tests run at a time.

VENV ?= .venv
ARGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: search test test-all test-hosts lint check format benchmarks clean

search: $(VENV)/.installed
	$(BIN)/python -m tuner.search $(ARGS)

# Every capability once, in about 13 minutes on two cores.
test: $(VENV)/.installed-dev
	$(PYTEST) -n $(JOBS) -m "not extensive and not cluster" $(ARGS)

# All cases, and a cluster of hosts where this machine can make them: about half an hour.
test-all: $(VENV)/.installed-dev
	$(PYTEST) -n $(JOBS) $(ARGS)

# `ray up`, a search, a job and a lost worker on test hosts; skipped where this machine cannot make them.
test-hosts: $(VENV)/.installed-dev
	$(PYTEST) -m "cluster and not extensive" $(ARGS) tests/cluster

# All four run, whichever of them fails.
lint: $(VENV)/.installed-dev
	@status=0; for check in "ruff format --check ." "ruff check ." mypy lint-imports; do \
		echo "$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

check: lint test

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	find notebooks -name '*.ipynb' -exec $(BIN)/nbstripout {} +

# All benchmarks with small settings, to see that they run; benchmarks/README.md has those that figures come from.
benchmarks: $(VENV)/.installed-dev
	mkdir -p build/benchmarks
	$(BIN)/python -m benchmarks.optimizer_step --repeats 5 --steps 5 --out build/benchmarks/optimizer_step.json
	$(BIN)/python -m benchmarks.loop --repeats 10 --random-repeats 2 --images 512 --out build/benchmarks/loop.json
	$(BIN)/python -m benchmarks.streaming --steps 2 --batch-size 8 --out build/benchmarks/streaming.json
	$(BIN)/python -m benchmarks.nonsmooth --seeds 8 --tuning-seeds 4 --steps 100 --out build/benchmarks/nonsmooth.json
	$(BIN)/python -m benchmarks.default_points --workload digits --epochs 1 --seeds 0 --variants sgdm adamw \
		--folder build/benchmarks/default_points --picture build/benchmarks/default_points.png \
		--out build/benchmarks/default_points.json
	$(BIN)/python -m benchmarks.share --out build/benchmarks/share.json -- --trials 2 --epochs 2 --confirm-seeds 1
	$(BIN)/python -m benchmarks.overhead --trials 8 --repeats 1 --skip-slow --out build/benchmarks/overhead.json
	$(BIN)/python -m benchmarks.calibration --races 10 --searches 2 --intervals 50 --out build/benchmarks/calibration.json
	$(BIN)/python -m benchmarks.checkpoints --models resnet8 --saves 3
	$(BIN)/python -m benchmarks.growth --trials 2 5 --databases sqlite --folder build/benchmarks/growth \
		--picture build/benchmarks/growth.png --out build/benchmarks/growth.json
	$(BIN)/python -m benchmarks.planted_faults --models resnet8 --noise 1 --seeds 1 --draws 1 --epochs 2 --repair 1 \
		--out build/benchmarks/planted_faults.json
	$(BIN)/python -m benchmarks.diagnosis --errors 50 100 --repeats 1 --out build/benchmarks/diagnosis.json
	$(BIN)/python -m benchmarks.repair --variants sgdm --seeds 2 --set epochs=1 --repair-epochs 1 \
		--folder build/benchmarks/repairs --out build/benchmarks/repair.json
	$(BIN)/python -m benchmarks.importance --studies 10 --out build/benchmarks/importance.json
	$(BIN)/python -m benchmarks.memory --trials 1 --epochs 2 --out build/benchmarks/memory.json

# The environment and the results of searches stay.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .ipynb_checkpoints
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Makes the environment where there is none, or one whose making was broken off.
# Interpreters are run, not looked up: a name on the PATH may be a shim without a Python behind it.
define make_environment
@$(BIN)/python -c 'import sys, pip; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null && exit; \
for python in $(or $(PYTHON),python3.12 python3.11 python3.13 python3); do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	$$python -c 'import venv, ensurepip' 2>/dev/null && exec $$python -m venv $(VENV); \
	lacking=$${lacking:-$$($$python -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')}; \
done; \
if [ -n "$$lacking" ]; then \
	echo "This Python cannot make virtual environments: install the Debian package $$lacking." >&2; \
else \
	echo "No Python 3.11 or newer was found: install the Debian packages python3 and python3-venv." >&2; \
fi; \
exit 1
endef

define install
@echo "Installing $(1) into $(VENV): some minutes and 6 GB where nothing is there yet."
@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(make_environment)
	$(call install,.[optimizers])
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(make_environment)
	$(call install,.[dev])
	@touch $(VENV)/.installed $@
