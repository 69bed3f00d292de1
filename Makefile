# make demo    see the whole path on real images
# make check   formatting, lint, types and the quick tests         make test    run all tests
# make docs    the documentation as a site
# All install what they need first (scripts/setup.sh); when that is there, they start at once.

PYTHON ?=
DATA ?=
PY := .venv/bin/python
# Tests run in one process more than there are CPUs, because some of them wait, but not in more than 8,
# because each takes 1 to 2 GB. The tests of one file stay in one process.
PROCESSES := $(shell cpus=$$(nproc); echo $$((cpus < 8 ? cpus + 1 : 8)))
PARALLEL := -n $(PROCESSES) --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo check lint test test-gpu sanitize docs setup wheel clean

help:
	@echo 'make demo               convert, train both stages, evaluate: Fashion-MNIST, a few minutes on 2 CPU cores'
	@echo 'make demo DATA=FOLDER   the same on your images, one folder per class'
	@echo 'make check              formatting, lint, types and the quick tests: about 2 minutes on 2 CPU cores'
	@echo 'make test               run all tests; installs chromium for those of web pages'
	@echo 'make test-gpu           on a machine with a GPU: its tests and all benchmarks; ends with a table, and gpu.json'
	@echo 'make sanitize           run the tests of the native library under AddressSanitizer and UBSan'
	@echo 'make docs               build the documentation: build/site/index.html; a broken link ends it'
	@echo 'make setup              only install: system packages (apt), .venv, Python packages'
	@echo 'make wheel              build dist/llcodes-*.whl, which installs without a compiler, and the sdist'
	@echo 'make clean              remove build outputs and caches (runs, data and .venv stay)'
	@echo
	@echo 'make PYTHON=python3.12 ...   make .venv with this interpreter (Python 3.10 or newer) instead of python3'

demo:
	@PYTHON='$(PYTHON)' bash scripts/setup.sh $(if $(DATA),,--fashion-mnist)
	@$(PY) scripts/demo.py $(if $(DATA),--data='$(DATA)')

check: lint
	@$(PY) -m pytest --quiet -m quick tests

lint: setup
	@$(PY) -m ruff format --check --quiet . || { echo 'run: $(PY) -m ruff format .'; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

test:
	@PYTHON='$(PYTHON)' bash scripts/setup.sh --browser
	@$(PY) -m pytest --quiet --durations=10 $(PARALLEL) tests

test-gpu: setup
	@$(PY) -m tests.gpu $(ARGS)

sanitize: setup
	@bash tests/native/sanitize.sh

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo 'build/site/index.html; with the search: $(PY) -m http.server --directory build/site'

setup:
	@PYTHON='$(PYTHON)' bash scripts/setup.sh

wheel: setup
	@PYTHON=$(PY) bash scripts/wheel.sh

clean:
	rm -rf build dist llcodes.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis __pycache__
	find llc tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
	find llc \( -name '*.so' -o -name '*.o' \) -type f -delete
