# Every command sets up what it needs: a fresh machine with python3, a C++ compiler and make is
# enough for `make demo` and `make test`. What stands already is not done again.

PYTHON ?= python3
VENV   ?= .venv
# Handed to pip. PyPI's Linux build for x86-64 brings CUDA (several GB); the CPU build is smaller:
# name its index, which pytorch.org tells, in PIP_EXTRA_INDEX_URL.
TORCH  ?= torch==2.13.0
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
CMAKE = CXX="$$($(BIN)/python build_tools/preflight.py compiler)" $(BIN)/cmake -S . -G Ninja \
	-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSEQ2SEQ_EXT_MODULE=OFF -DSEQ2SEQ_EXT_TESTS=ON

CMAKE_TESTS = $(CMAKE) -B build/tests -DSEQ2SEQ_EXT_CUDA_ON_CPU=ON \
	-DPython_EXECUTABLE=$(abspath $(BIN))/python
# What of the Python tests runs through the CUDA operators as well.
# The GRUs of one unit that are left out have gradients of one number, in which larger ones cancel:
# twice another implementation's rounding is no bound there.
CUDA_ON_CPU_TESTS := $(addprefix tests/,$(addsuffix .py,test_attention_decoder test_cells \
	test_cuda_decoder test_cuda_on_cpu test_fuzz_bad_input \
	test_layers test_ops test_properties test_recurrence test_variants)) -k 'not gru_reset_before-1-1-1-1'

BUILD_EXT = PATH="$(abspath $(BIN)):$$PATH" python setup.py --quiet build_ext --inplace

BUILD_FILES := pyproject.toml setup.py CMakeLists.txt $(wildcard cmake/* build_tools/*.py)
CXX_FILES := $(wildcard $(foreach suffix,cpp h cu cuh,csrc/*.$(suffix) csrc/*/*.$(suffix) \
	csrc/*/*/*.$(suffix)))
FORMATTED_FILES := $(CXX_FILES) $(wildcard examples/*/*.cpp)

# Stamps: an empty file in the environment per step that is done.
TORCH_STAMP := $(VENV)/.stamp-$(subst /,-,$(subst =,-,$(firstword $(TORCH))))
DEMO_STAMP := $(VENV)/.stamp-demo
DEV_STAMP := $(VENV)/.stamp-dev
EXTENSION_STAMP := $(VENV)/.stamp-extension

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-cpp test-cuda-on-cpu test-python lint format sanitize bench wheel sdist check-wheel \
	cross-check cuda-check build setup clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- what a newcomer runs -------------------------------------------------------------------------

demo: $(DEMO_STAMP) ## learn English plurals in a minute, and show what was learnt
	$(BIN)/seq2seq-ext demo plural

test: test-cpp test-cuda-on-cpu test-python ## every test: the C++ kernels, then the Python package

# --- development ----------------------------------------------------------------------------------

setup: $(EXTENSION_STAMP) ## the development environment in .venv, nothing more

build: $(DEV_STAMP) ## compile what changed, in place
	$(BUILD_EXT)

test-cpp: $(DEV_STAMP) ## the kernels alone, on every instruction set of this machine
	$(CMAKE_TESTS)
	$(BIN)/cmake --build build/tests
	$(BIN)/ctest --test-dir build/tests --output-on-failure

test-cuda-on-cpu: $(EXTENSION_STAMP) ## the CUDA operators without a GPU: layers and operators through the kernels
	$(CMAKE_TESTS)
	if grep -q '^SEQ2SEQ_EXT_CUDA_CPU:BOOL=ON' build/tests/CMakeCache.txt; then \
		$(BIN)/cmake --build build/tests --target cuda_on_cpu && \
		$(BIN)/python -m pytest -q --cuda-on-cpu build/tests/cuda_on_cpu.so $(CUDA_ON_CPU_TESTS); \
	else echo "test-cuda-on-cpu: the CUDA toolkit's headers are not there; nothing is run"; fi

test-python: $(EXTENSION_STAMP) ## pytest; PYTEST_ARGS="-k lstm -x" chooses
	$(BIN)/python -m pytest $(PYTEST_ARGS)

sanitize: $(DEV_STAMP) ## the kernel tests under sanitizers: addresses, undefined behaviour; CUDA: races
	$(CMAKE) -B build/sanitize -DSEQ2SEQ_EXT_SANITIZE=address,undefined \
		-DCMAKE_BUILD_TYPE=Debug
	$(BIN)/cmake --build build/sanitize
	UBSAN_OPTIONS=print_stacktrace=1 $(BIN)/ctest --test-dir build/sanitize --output-on-failure
	$(CMAKE) -B build/sanitize-thread -DSEQ2SEQ_EXT_SANITIZE=thread -DCMAKE_BUILD_TYPE=Debug
	$(BIN)/cmake --build build/sanitize-thread --target cuda_tests
	$(BIN)/ctest --test-dir build/sanitize-thread --output-on-failure -L cuda_cpu

lint: $(DEV_STAMP) ## ruff, clang-format and mypy --strict; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED_FILES)
	$(BIN)/mypy --strict seq2seq_ext benchmarks

format: $(DEV_STAMP) ## let ruff and clang-format write
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED_FILES)

bench: $(EXTENSION_STAMP) ## ours, the peers and the machine's limits; BENCH_ARGS="--shapes quick" chooses
	$(BIN)/seq2seq-ext bench $(BENCH_ARGS)

cross-check: $(DEV_STAMP) ## compile the kernels for aarch64, and test them where qemu-user is there
	$(CMAKE) -B build/aarch64 --toolchain cmake/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build build/aarch64
	if command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null; then \
		$(BIN)/ctest --test-dir build/aarch64 --output-on-failure; fi

cuda-check: $(DEV_STAMP) ## compile the CUDA kernels for every GPU, and list what they take; wants nvcc
	$(BIN)/python build_tools/cuda_check.py --output docs/cuda_resources.md

# --- packages -------------------------------------------------------------------------------------

wheel: $(TORCH_STAMP) ## dist/*.whl
	rm -f dist/*.whl
	$(BIN)/python -m pip --disable-pip-version-check wheel --no-deps --wheel-dir dist .

sdist: $(DEV_STAMP) ## dist/*.tar.gz
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --no-isolation --sdist --outdir dist

check-wheel: wheel ## test the wheel in a fresh environment, away from the source tree
	rm -rf build/check-wheel
	$(PYTHON) -m venv build/check-wheel/venv
	build/check-wheel/venv/bin/python -m pip --disable-pip-version-check install $(TORCH)
	build/check-wheel/venv/bin/python -m pip --disable-pip-version-check install \
		"$$(echo dist/*.whl)[test]"
	mkdir build/check-wheel/run
	cp -r tests pyproject.toml build/check-wheel/run
	cd build/check-wheel/run && ../venv/bin/python -m pytest tests $(PYTEST_ARGS)

clean: ## remove what was built
	rm -rf build dist *.egg-info seq2seq_ext/_C.*.so seq2seq_ext/_cuda.so \
		$(EXTENSION_STAMP) $(DEV_STAMP) $(DEMO_STAMP)
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## remove the environment and the tools' caches as well
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

# --- set-up ---------------------------------------------------------------------------------------

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
		echo "'$(PYTHON)' is not in PATH. Install Python 3.10 or newer, or name another:" \
			"make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
			"Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments: its module ensurepip is missing." \
			"On Debian and Ubuntu: apt install python3-venv. Or name another Python:" \
			"make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) build_tools/preflight.py compiler >/dev/null
	$(PYTHON) -m venv $(VENV)

$(TORCH_STAMP): | $(BIN)/pip
	$(PIP) 'pip>=21.3' $(TORCH)
	@rm -f $(VENV)/.stamp-*
	@touch $@

$(DEMO_STAMP): $(TORCH_STAMP) $(BUILD_FILES) $(CXX_FILES)
	$(PIP) -e '.[demo]'
	@touch $@

$(DEV_STAMP): $(TORCH_STAMP) $(BUILD_FILES)
	$(PIP) -e '.[dev]'
	@touch $@

$(EXTENSION_STAMP): $(DEV_STAMP) $(CXX_FILES)
	$(BUILD_EXT)
	@touch $@
