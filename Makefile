# What CI runs, and what to run before a commit. Every target sets up what is missing.
.PHONY: setup check test slow quickstart clean
PYTHON_VENV := .venv/bin/python
export OMP_NUM_THREADS ?= 1

setup:
	@./run_pipeline.sh --setup-only

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON_VENV) tests/sizes.py

# Two workers; a test with two ranks may share the two cores with another test, which its time limit allows for.
test: setup
	$(PYTHON_VENV) -m pytest -q -n 2 --dist worksteal -m "not slow"

slow: setup
	$(PYTHON_VENV) -m pytest -q -m slow
	env -u OMP_NUM_THREADS ./run_pipeline.sh configs/compare.yaml

quickstart:
	env -u OMP_NUM_THREADS ./run_pipeline.sh

clean: setup
	.venv/bin/minicodformer clean
