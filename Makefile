# Each command does all its own set-up; a second run finds it done.
PYTHON ?=
export PYTHON

.PHONY: help demo test check matrix bench pins format clean

help:
	@echo 'make demo    the whole way, for real: orders, kills, and a ledger that balances'
	@echo 'make test    everything that CI checks (the same as make check)'
	@echo 'make matrix  the tests on each Python found: 3.11, 3.12, 3.13'
	@echo 'make bench   the measurements behind the claims'
	@echo 'make format  let ruff rewrite what it can'
	@echo 'make pins    renew requirements/*.txt (needs uv)'
	@echo 'make clean   remove what these commands made'

demo:
	@scripts/venv .venv demo
	@.venv/bin/python manage.py demo $(ARGS)

test check:
	@scripts/venv .venv dev
	@scripts/servers
	@scripts/check .venv

matrix:
	@scripts/servers
	@scripts/matrix $(ARGS)

bench:
	@scripts/venv .venv dev
	@scripts/servers
	@.venv/bin/python -m benchmarks.run $(ARGS)

format:
	@scripts/venv .venv dev
	@.venv/bin/ruff check --fix --quiet .
	@.venv/bin/ruff format .

pins:
	@scripts/pins

clean:
	rm -rf .venv .venv-* .make .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
