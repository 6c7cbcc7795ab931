# The index of commands. `make help` prints it.

PYTHON_VENV := .venv/bin/python
# Test files run side by side; each worker has a Triton of its own. TEST_WORKERS=0: one process.
TEST_WORKERS ?= logical
export INFERSCHED_TRITON_DIR ?= $(CURDIR)/.tools/triton
.DEFAULT_GOAL := help
.PHONY: help setup build build-debug build-asan serve run demo test test-asan test-lowest fuzz \
	lint format bench wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## system packages, .venv, build, embedded Triton; every target does it as needed
	@.ci/setup

build: ## compile what changed, in place
	@.ci/setup

build-debug: setup ## no optimization, assertions on; into build/debug/lib
	@INFERSCHED_DEBUG=1 $(PYTHON_VENV) setup.py --quiet build_ext --inplace
	@echo "use it with INFERSCHED_NATIVE_DIR=$(CURDIR)/build/debug/lib"

build-asan: setup ## AddressSanitizer and UBSan; into build/asan/lib
	@INFERSCHED_ASAN=1 $(PYTHON_VENV) setup.py --quiet build_ext --inplace

demo: ## digits through the scheduler and straight to Triton, compared
	@.ci/setup --require-triton
	@$(PYTHON_VENV) -m benchmarks.demo $(ARGS)

serve: ## the demo's model behind the scheduler, until Ctrl-C (ARGS="--listen HOST:PORT")
	@.ci/setup --require-triton
	@$(PYTHON_VENV) -m benchmarks.demo.serve $(ARGS)

run: serve

test: setup ## all tests (ARGS="tests/unit -k codec" goes to pytest)
	@$(PYTHON_VENV) -m pytest --numprocesses $(TEST_WORKERS) --maxprocesses 4 \
		--dist loadfile --no-loadscope-reorder $(ARGS)

test-asan: setup ## codec, engine and transport tests under ASan and UBSan
	@.ci/test-asan $(ARGS)

test-lowest: setup ## tests without Triton, with the oldest dependencies pyproject.toml allows
	@.ci/test-lowest $(ARGS)

fuzz: setup ## fuzz codec, HTTP/2 and engine without end, or for FUZZ_SECONDS=60
	@FUZZ_SECONDS=$(FUZZ_SECONDS) .ci/fuzz $(ARGS)

lint: setup ## ruff, mypy, clang-format and the tidy tests
	@$(PYTHON_VENV) -m pytest -q tests/tidy

format: setup ## rewrite the sources in the project's format
	@$(PYTHON_VENV) -m ruff format -q .
	@$(PYTHON_VENV) -m ruff check -q --fix .
	@find csrc -name "*.h" -o -name "*.cc" | xargs .venv/bin/clang-format -i

bench: ## all benchmarks, or NAME=throughput
	@.ci/setup --require-triton
	@$(PYTHON_VENV) -m benchmarks $(NAME) $(ARGS)

wheel: setup ## a wheel that carries libnghttp2, checked in a fresh environment, into dist/
	@.ci/wheel

clean: ## remove what the build made; .venv and .tools stay
	rm -rf build dist *.egg-info scheduler/v1 scheduler/_native/*.so
	find . -name __pycache__ -not -path './.venv/*' -not -path './.tools/*' -prune -exec rm -rf {} +
