# make run    the users application on this machine, nothing to install beforehand but Python 3.11 and make
# make test   every check: style, types, import directions, unit, integration and end-to-end tests
# make test-infra   the same for infra/: Terraform, against the AWS provider's schema (needs npm once, to fetch it)
# The rest is for developers: soak, bench, lock, format, clean.

VENV := .venv
DEV_VENV := .venv-dev
EMULATORS := .venv-emulators
SCANNERS := .venv-scanners
INFRA := .venv-infra
BIN := $(DEV_VENV)/bin
# Tests wait for processes and servers much of the time: one more at once than there are cores.
TEST_WORKERS ?= $(shell python3 -c 'import os; print((os.cpu_count() or 1) + 1)')

.PHONY: run test test-infra check pytest soak sbom scan bench bench-journals rolling lock format clean

run: $(VENV)/.ready
	@exec $(VENV)/bin/kiseki serve $(ARGS)

test: check pytest

check: $(DEV_VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

pytest: $(DEV_VENV)/.ready $(EMULATORS)/.ready $(SCANNERS)/.ready
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal --ignore tests/infra -m "not soak" $(ARGS)

test-infra: $(DEV_VENV)/.ready $(EMULATORS)/.ready $(INFRA)/.ready
	$(BIN)/python -m pytest tests/infra -n $(TEST_WORKERS) --dist worksteal $(ARGS)

soak: $(DEV_VENV)/.ready $(EMULATORS)/.ready
	$(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)

# The software bill of materials (CycloneDX), and known vulnerabilities of what the lock files name.
sbom: $(SCANNERS)/.ready
	$(SCANNERS)/bin/python tools/sbom.py --output dist/kiseki-sbom.json

scan: $(SCANNERS)/.ready
	$(SCANNERS)/bin/python tools/scan.py $(ARGS)

bench: $(DEV_VENV)/.ready
	$(BIN)/python -m benchmarks whole-path $(ARGS)
	$(BIN)/python -m benchmarks security $(SECURITY_ARGS)

bench-journals: $(DEV_VENV)/.ready $(EMULATORS)/.ready
	$(BIN)/python -m benchmarks journals $(ARGS)

rolling: $(DEV_VENV)/.ready
	$(BIN)/python -m benchmarks rolling $(ARGS)

$(VENV)/.ready: requirements.lock tools/make-venv.sh pyproject.toml
	@tools/make-venv.sh $(VENV) requirements.lock
	@touch $@

$(DEV_VENV)/.ready: requirements-dev.lock tools/make-venv.sh pyproject.toml
	@tools/make-venv.sh $(DEV_VENV) requirements-dev.lock
	@touch $@

# An emulator of AWS for tests; its requirements would not fit with ours.
$(EMULATORS)/.ready: requirements-emulators.lock tools/make-venv.sh
	@tools/make-venv.sh --alone $(EMULATORS) requirements-emulators.lock
	@touch $@

# What looks at kiseki from outside: TLS, the software bill of materials, known vulnerabilities.
$(SCANNERS)/.ready: requirements-scanners.lock tools/make-venv.sh
	@tools/make-venv.sh --alone $(SCANNERS) requirements-scanners.lock
	@touch $@

# What looks at infra/: Terraform's core, the schema of the AWS provider, checkov.
$(INFRA)/.ready: requirements-infra.lock tools/make-venv.sh tools/infra/extract.py tools/infra/setup.py
	@tools/make-venv.sh --alone $(INFRA) requirements-infra.lock
	@$(INFRA)/bin/python -m tools.infra setup
	@touch $@

# Pins what pyproject.toml asks for, with hashes; names no index.
lock: $(DEV_VENV)/.ready
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --group build -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --group build --group dev --all-extras -o requirements-dev.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --all-extras -c requirements-dev.lock -o requirements-image.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--group emulators -o requirements-emulators.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--group scanners -o requirements-scanners.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--group infra -o requirements-infra.lock

format: $(DEV_VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEV_VENV) $(EMULATORS) $(SCANNERS) $(INFRA) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
