# Two commands tell the story: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3.11
# Address of PyTorch's own CPU index, needed where no other index offers torch's CPU build; see docs/quickstart.md, "Set-up".
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
DEMO := runs/demo
# Debian packages of what tests start. Where they are missing and cannot be installed, these tests say so and are skipped.
TEST_PACKAGES := redis-server chromium

.PHONY: setup demo test test-packages lint docs soak bench bench-setup lock clean

setup: $(VENV)/.installed

# --no-deps: the lock is complete, and torchrec's metadata would bring the CUDA wheel of fbgemm.
$(VENV)/.installed: requirements/cpu.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps $(INDEX) -r requirements/cpu.txt || { echo "If torch's CPU build was not found, give the address of PyTorch's CPU index: make setup TORCH_INDEX=..." >&2; exit 1; }
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	test -f $(DEMO)-catalog/catalog.json || { rm -rf $(DEMO)-catalog && $(BIN)/tesserec sample $(DEMO)-catalog; }
	$(BIN)/tesserec run workflows/definitions/demo.yaml --set catalog=$(DEMO)-catalog --run-dir $(DEMO)

test: setup test-packages
	$(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile --no-loadscope-reorder

test-packages:
	@dpkg -s $(TEST_PACKAGES) >/dev/null 2>&1 || test "$$(id -u)" != 0 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TEST_PACKAGES); } >/dev/null 2>&1 || true

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The documentation at http://127.0.0.1:8001, rebuilt as its pages change.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

soak: setup
	$(BIN)/python -m pytest -m soak

bench: setup
	test -f $(DEMO)-catalog/catalog.json || { rm -rf $(DEMO)-catalog && $(BIN)/tesserec sample $(DEMO)-catalog; }
	$(BIN)/python -m benchmarks.stages --data $(DEMO)-catalog
	test ! -d data/movielens || $(BIN)/python -m benchmarks.stages --workflow workflows/definitions/movielens.yaml --data data/movielens

bench-setup:
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(INDEX) -r requirements/cpu.txt
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements/bench.txt
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .

lock: setup
	$(BIN)/python requirements/lock.py

clean:
	rm -rf $(VENV) .venv-bench runs build site .artifacts *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
