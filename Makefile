# make reproduce            both documented tests, in about 20 seconds; SPEED=10 in a tenth
# make test                 the whole test suite, offline; ARGS="-k key" for a part of it
# make lint                 what needs no running: ruff and mypy
# make clean                away with all that can be made again; runs in results/ stay
#
# Each makes .venv and installs into it first, once, and again when pyproject.toml has changed.

PYTHON = python3
SPEED = 1
ARGS =

# Relative on purpose: the directory's own path may hold spaces.
IN = .venv/bin/python
PIP = $(IN) -m pip --disable-pip-version-check --quiet install --root-user-action ignore

.PHONY: help reproduce test lint clean
.NOTPARALLEL:

help:
	@sed -n 's/^# make/make/p' Makefile

reproduce: .venv/.installed
	@$(IN) -m kode_lab reproduce --speed $(SPEED)

# The tests start hundreds of processes, each of which would compile all there is, were it not kept.
test: .venv/.installed-dev
	PYTHONDONTWRITEBYTECODE= $(IN) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.installed-dev
	$(IN) -m ruff check
	$(IN) -m ruff format --check
	$(IN) -m mypy

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

# A .venv that works is kept; one cut short, or of an older Python, is made anew.
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
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
