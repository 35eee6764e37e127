# Everything from a machine that has only make and Python 3.11 or newer:
#   make demo | test | coverage | check | bench | bench-peers | reliability | clean
PYTHON ?= python3
# EXTRAS=dev,executorch also installs ExecuTorch, 25 packages more, so that its tests run too
EXTRAS ?= dev
BIN := .venv/bin
READY := .venv/ready
PEERS := .venv-peers
SBOM := .venv-sbom
# pip says what it fetches; on a terminal each download has a bar with rate and time left. Python compiles a module when
# it is first imported: to compile all of them here would take as long as to install them
PIP_FLAGS := --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: help demo test coverage check bench bench-peers reliability sbom clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    the whole story on the sample log: ingest, train, patch, distill, evaluate'
	@echo 'make test    all tests, on two cores'
	@echo 'make coverage   the same, and how much of the package they run (at least 90 %); half as long again'
	@echo 'make check   style, types and the direction of imports'
	@echo "make bench   the figures of docs/performance.md; ten to fifteen minutes"
	@echo 'make bench-peers   dcclctl beside RecBole, which gets an environment of its own in .venv-peers'
	@echo 'make reliability   faults, crashes, hostile input; the figures of docs/reliability.md; an hour of one core'
	@echo 'make sbom    the wheel, its checksums and a list of all packages (CycloneDX) in dist/'
	@echo 'make clean   remove the environment and what the tools left behind; artifacts stay'
	@echo 'The first one makes an environment in .venv (PYTHON=python3.12 make ... takes another Python).'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'dcclctl needs Python 3.11 or newer: PYTHON=python3.12 make ...' >&2; exit 1; }
	@echo '1/3 making .venv, once' >&2
	$(PYTHON) -m venv .venv
	@echo '2/3 fetching torch, the largest package' >&2
	$(BIN)/python -m pip install $(PIP_FLAGS) torch
	@echo '3/3 fetching the rest' >&2
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[$(EXTRAS)]'
	@touch $@

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash pipelines/quickstart.sh

# Two workers with one thread each: torch would otherwise start a thread per core in both.
# A file's tests stay on one worker, so that what a module sets up is set up once.
test coverage: export OMP_NUM_THREADS = 1
test coverage: export MKL_NUM_THREADS = 1
test coverage: export POLARS_MAX_THREADS = 2
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

coverage: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov=dcclctl --cov-fail-under=90

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n 2
	cd benchmarks && ../$(BIN)/mypy -n 2 --cache-dir ../.mypy_cache --config-file ../pyproject.toml *.py
	$(BIN)/lint-imports

bench: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/run.py --json benchmarks/results.json

# RecBole 1.2.1 needs older numpy, pandas and setuptools than this package
$(PEERS)/ready: constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check \
	  "$$(grep '^torch==' constraints.txt)" 'numpy<2' 'pandas<3' 'setuptools<81' recbole==1.2.1
	@touch $@

bench-peers: $(READY) $(PEERS)/ready
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py \
	  --peer $(PEERS)/bin/python --json benchmarks/peers.json

reliability: $(READY)
	$(BIN)/python -m tests.reliability --json tests/reliability/results.json

# the generator of the list gets an environment of its own, so that it does not list itself
$(SBOM)/ready: constraints.txt
	$(PYTHON) -m venv $(SBOM)
	$(SBOM)/bin/python -m pip install --disable-pip-version-check 'cyclonedx-bom>=7.5,<8'
	@touch $@

sbom: $(READY) $(SBOM)/ready
	rm -rf dist
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps -w dist .
	$(SBOM)/bin/cyclonedx-py environment --output-reproducible --of JSON -o dist/sbom.json $(BIN)/python
	cd dist && sha256sum -- *.whl sbom.json > SHA256SUMS

clean:
	rm -rf .venv .venv-peers .venv-sbom .venv-atheris .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
