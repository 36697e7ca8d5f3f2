# Everything that a person types here. `make demo` needs only the installation of the README.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
BIN := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
QUIET_SERVICES := DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false AWS_EC2_METADATA_DISABLED=true

.PHONY: demo check test test-long

demo: ## text to a chat model that answers, on two CPU cores, in minutes
	$(BIN)/nanochat run demo

check: ## lint, import contracts, types and the fast tests, in a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(PYTHON) tests/long_functions.py
	$(QUIET_SERVICES) $(PYTHON) -m pytest -n 2 -m "not prefect and not distributed and not s3 and not e2e and not browser and not gpu and not network and not long"

test: check ## check, and the tests with servers, ranks and kills: what CI runs
	$(QUIET_SERVICES) $(PYTHON) -m pytest -n 2 --dist loadgroup -m "(prefect or distributed or s3 or e2e or browser) and not long and not gpu and not network"

test-long: test ## test, and the kill matrices and the whole demo
	$(QUIET_SERVICES) $(PYTHON) -m pytest -m "long and not gpu and not network"
