# make reproduce            both documented tests, in about 20 seconds; SPEED=10 in a tenth
# make test                 the whole test suite, offline; ARGS="-k key" for a part of it
# make mutants              change the source in 300 places; each change must fail a specification
# make bench                every figure of speed; NAMES="turn append" for some, ARGS=--save to keep
# make bench-peers          a turn beside other frameworks; downloads them into .venv-peers
# make lint                 ruff and mypy
# make clients              real clients against the simulated model; downloads them, writes a table
# make notebooks            every notebook in JupyterLab in a real browser; writes a table
# make machines             load from several machines with clocks apart; Linux, root; writes a table
# make traces               real instrumentations, audited; downloads them, writes a table
# make clean                remove what can be made again; runs in results/ stay
#
# Each target creates .venv and installs into it first, and again when pyproject.toml has changed.

PYTHON = python3
SPEED = 1
ARGS =
NAMES =

# Relative on purpose: the directory's own path may hold spaces.
IN = .venv/bin/python
PIP = $(IN) -m pip --disable-pip-version-check --quiet install --root-user-action ignore

.PHONY: help reproduce test mutants bench bench-peers lint clients notebooks machines traces clean
.NOTPARALLEL:

help:
	@sed -n 's/^# make/make/p' Makefile

reproduce: .venv/.installed
	@$(IN) -m kode_lab reproduce --speed $(SPEED)

# The tests start many processes; each would compile every module if bytecode were not cached.
PYTEST = PYTHONDONTWRITEBYTECODE= $(IN) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: .venv/.installed-dev
	$(PYTEST) $(ARGS)

mutants: .venv/.installed-dev
	$(PYTEST) -m mutants $(ARGS)

bench: .venv/.installed-dev
	@$(IN) -m benchmarks $(NAMES) $(ARGS)

bench-peers: .venv/.installed-dev .venv-peers/.installed
	@$(IN) -m benchmarks.peers .venv-peers $(ARGS)

.venv-peers/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check --quiet install -r benchmarks/peers.txt
	@touch $@

lint: .venv/.installed-dev
	$(IN) -m ruff check
	$(IN) -m ruff format --check
	$(IN) -m mypy

# Twenty minutes and 3 GB, in a temporary directory; needs Python, Node 20 and the registries.
clients: .venv/.installed
	$(IN) tests/clients/run.py --table results/clients.md $(ARGS)

notebooks: .venv/.installed-dev
	$(IN) tests/notebooks/run.py --table results/notebooks.md $(ARGS)

machines: .venv/.installed
	$(IN) tests/machines/run.py --table results/loadtests/machines.md $(ARGS)

# Five minutes and 2 GB, in a temporary directory; needs Python and its registry.
traces: .venv/.installed
	$(IN) tests/traces/run.py --table docs/audit.md $(ARGS)

.venv/.installed: pyproject.toml
	$(MAKE_VENV)
	@echo "Installing kode_lab into .venv (a minute or two, once) ..."
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml
	$(MAKE_VENV)
	@echo "Installing kode_lab and what its tests need into .venv (a minute or two, once) ..."
	@$(PIP) -e ".[dev]"
	@touch .venv/.installed $@

# A working .venv is kept; an incomplete one, or one of an older Python, is created again.
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
define MAKE_VENV
@$(IN) -c "import pip; $(NEW_ENOUGH)" 2>/dev/null || { \
	$(PYTHON) -c "$(NEW_ENOUGH)" || { \
		echo "kode_lab needs Python 3.11 or newer, which '$(PYTHON)' is not:" \
			"name one, as in  make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -m venv --clear .venv || { \
		echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu, apt install python3-venv" >&2; \
		rm -rf .venv; exit 1; }; }
endef

clean:
	rm -rf .venv .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
