# Everything that a person types here. `make demo` needs only the installation of the README.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
BIN := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
# One thread a process: two test workers on two cores would otherwise fight over them.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false AWS_EC2_METADATA_DISABLED=true
PYTEST := $(TEST_ENVIRONMENT) $(PYTHON) -m pytest
NEEDS_MORE := prefect or distributed or s3 or e2e or browser
ELSEWHERE := gpu or network

.PHONY: demo check test test-long lint contracts types unit

demo: ## text to a chat model that answers, on two CPU cores, in minutes
	$(BIN)/nanochat run demo

check: ## lint, import contracts, types and the fast tests, in a minute
	$(MAKE) --no-print-directory -j 4 --output-sync=target lint contracts types unit

test: check ## check, and the tests with servers, ranks and kills: what CI runs
	$(PYTEST) -n 2 --dist loadgroup -m "($(NEEDS_MORE)) and not (long or $(ELSEWHERE))"

test-long: test ## test, and the kill matrices and the whole demo
	$(PYTEST) -m "long and not ($(ELSEWHERE))"

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTHON) tests/long_functions.py

contracts:
	$(BIN)/lint-imports

types:
	$(BIN)/mypy

unit:
	$(PYTEST) -n 2 -m "not ($(NEEDS_MORE) or long or $(ELSEWHERE))"
