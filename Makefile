# make demo    see the whole path on real images          make test    run the tests
# Both install what they need first (scripts/setup.sh); run again, they start at once.

PYTHON ?=
DATA ?=
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu setup clean

help:
	@echo 'make demo               convert, train both stages, evaluate: Fashion-MNIST, a few minutes on 2 CPU cores'
	@echo 'make demo DATA=FOLDER   the same on your images, one folder a class'
	@echo 'make test               run the tests'
	@echo 'make test-gpu           on a machine with a GPU: its tests and all benchmarks; ends with a table, and gpu.json'
	@echo 'make setup              only install: system packages (apt), .venv, Python packages'
	@echo 'make clean              remove build outputs and caches (runs, data and .venv stay)'
	@echo
	@echo 'make PYTHON=python3.12 ...   make .venv with this interpreter (Python 3.10 or newer) instead of python3'

demo:
	@PYTHON='$(PYTHON)' bash scripts/setup.sh $(if $(DATA),,--fashion-mnist)
	@$(PY) scripts/demo.py $(if $(DATA),--data='$(DATA)')

test: setup
	@$(PY) -m pytest --quiet --durations=10 tests

test-gpu: setup
	@$(PY) -m tests.gpu $(ARGS)

setup:
	@PYTHON='$(PYTHON)' bash scripts/setup.sh

clean:
	rm -rf build dist llc.egg-info .pytest_cache .hypothesis __pycache__
	find llc tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
	find llc \( -name '*.so' -o -name '*.o' \) -type f -delete
