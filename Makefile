# Everything a developer runs. `make` alone lists the targets.
#
# A .venv of its own is made once from constraints.txt and again when the versions change. Where
# there is no .venv, `make gpu` uses PYTHON of the machine as it is and installs nothing.

PYTHON ?= python3
OUT    ?= bench/results
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
SECONDS ?= 3600

VENV  := .venv
STAMP := $(VENV)/made
BIN   := $(abspath $(VENV))/bin
PY    := $(BIN)/python

CPP_FILES = git ls-files -co --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh'

.DEFAULT_GOAL := help
.PHONY: help venv build demo test pytest ctest lint format bench bench-baseline bench-compare \
        gpu ptx peer-tests docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

# ---- environment and build ------------------------------------------------------------------
# cmake decides what is stale, so `build` always asks it; with nothing to do that takes a moment.
# $(call build,python): the module goes into snnkernels/ of this tree, and a failure stops make.

define build
	dir=build/$$($(1) -c 'import sys; print(sys.implementation.cache_tag)') && \
	ninja=$$(command -v ninja || true) && \
	cmake -S . -B $$dir $${ninja:+-GNinja -DCMAKE_MAKE_PROGRAM=$$ninja} \
	  -DPython_EXECUTABLE=$$($(1) -c 'import sys; print(sys.executable)') $(CMAKE_ARGS) >/dev/null && \
	cmake --build $$dir --parallel $(JOBS) && \
	cmake --install $$dir --component core --prefix . >/dev/null && \
	{ { cmake --build $$dir --target cuda_module --parallel $(JOBS) && \
	    cmake --install $$dir --component cuda --prefix . >/dev/null; } || \
	  { rm -f snnkernels/_cuda.*; \
	    echo '*** The CUDA kernels were not built (see above); all else works. ***' >&2; }; }
endef

# --no-deps: spikingjelly asks for torchvision and torchaudio, of which no release loads beside the
# pinned torch; its neurons do without.
PEERS := snntorch spikingjelly norse sinabs nir nirtorch loguru h5py pbr

$(STAMP): constraints.txt pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt setuptools wheel cmake ninja pybind11
	$(PY) -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(PY) -m pip install -q -c constraints.txt --no-deps $(PEERS)
	touch $@

venv: $(STAMP)  ## the environment in .venv

build venv demo test pytest ctest lint format bench bench-% docs: export PATH := $(BIN):$(PATH)

build: $(STAMP)  ## the C++ core, incrementally, into snnkernels/
	@$(call build,$(PY))

# ---- what users and developers run -------------------------------------------------------------

demo: build  ## trains a spiking network on real digits and shows what the fused kernel is worth
	$(PY) -m snnkernels demo

test: ctest pytest  ## all tests: C++ under sanitizers, then Python

ctest: $(STAMP)
	cmake -S . -B build/sanitize -GNinja -DSNN_PYTHON=OFF -DSNN_TESTS=ON -DSNN_SANITIZE=ON $(CMAKE_ARGS) >/dev/null
	cmake --build build/sanitize --parallel $(JOBS)
	ctest --test-dir build/sanitize --output-on-failure --no-tests=error

# A file's tests stay together: many share what is costly to make.
pytest: build
	$(PY) -m pytest -n $(JOBS) --dist loadfile

lint: $(STAMP)  ## ruff and clang-format, without changing a file
	ruff check .
	ruff format --check .
	$(CPP_FILES) | xargs -r clang-format --dry-run -Werror

format: $(STAMP)  ## what lint asks for, done
	ruff check --fix .
	ruff format .
	$(CPP_FILES) | xargs -r clang-format -i

bench: build  ## times every kernel; JSON and a table under bench/results/
	$(PY) -m bench kernels

# A baseline belongs to one machine, so it is no part of the repository.
BASELINE ?= .benchmarks/baseline.json

bench-baseline: build  ## times the ops for later `make bench-compare`; writes BASELINE
	@mkdir -p $(dir $(BASELINE))
	$(PY) -m pytest -q tests/benchmarks/bench_lif.py --benchmark-json=$(BASELINE)

bench-compare: build  ## times the ops again; a ratio to BASELINE for each case
	@test -f $(BASELINE) || { echo 'There is no $(BASELINE): `make bench-baseline` writes it.'; exit 1; }
	$(PY) -m pytest -q tests/benchmarks/bench_lif.py --benchmark-json=build/benchmarks.json
	$(PY) -m tests.benchmarks.ratios $(BASELINE) build/benchmarks.json

gpu: PY := $(if $(wildcard $(STAMP)),$(PY),$(PYTHON))
gpu: export PATH := $(if $(wildcard $(STAMP)),$(BIN):,)$(PATH)
gpu: export PYTHONPATH := $(CURDIR)
gpu:  ## all that a GPU is for, into OUT, in ten minutes; installs nothing
	@start=$$(date +%s); \
	{ $(call build,$(PY)); } || echo '*** The C++ core was not built (see above). ***' >&2; \
	$(PY) bench/gpu.py --out $(OUT) --seconds $$((560 - $$(date +%s) + start))

ptx: build  ## runs the compiled GPU kernels without a GPU, for SECONDS (an hour); goes on the next time
	$(PY) -m tests.tools.ptx --seconds $(SECONDS)

peer-tests: export PYTHONPATH := $(CURDIR):$(CURDIR)/tests/tools
peer-tests: build  ## tests in a checkout of another library, DIR, as they are and accelerated; TESTS=paths
	-cd $(DIR) && $(PY) -m pytest -q -p no:cacheprovider $(TESTS)
	cd $(DIR) && $(PY) -m pytest -q -p no:cacheprovider -p peer_tests $(TESTS)

docs: build  ## HTML under docs/_build/
	$(PY) -m pip install -q -c constraints.txt -e '.[docs]' --no-build-isolation
	$(PY) -m sphinx -W -b html docs docs/_build

clean:  ## removes builds and caches; keeps .venv
	rm -rf build dist *.egg-info docs/_build .pytest_cache .ruff_cache .hypothesis snnkernels/_c*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
