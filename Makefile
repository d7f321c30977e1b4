# Two commands on a fresh machine with Python 3.10+ and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
# More pip options, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a small CPU build of torch
PIP_ARGS ?=
# Tests run in so many processes, which share the cores
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock $(PIP_ARGS)

.PHONY: demo test soak lint format lock clean

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("fenlei needs Python 3.10 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...") if sys.version_info < (3, 10) else None'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing torch and the rest into $(VENV) (a few minutes the first time) ..."
	$(PIP) torch==2.13.0
	$(PIP) -e '.[check,serve]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

demo: $(VENV)/.installed  ## install, then train a small model on a sample of Chinese news
	$(BIN)/fenlei demo

test: $(VENV)/.installed-test  ## install, then run all tests
	$(BIN)/python -m pytest -m "not soak" -n $(WORKERS) --dist loadfile

soak: $(VENV)/.installed-test  ## the long tests
	$(BIN)/python -m pytest -m soak --timeout 14400

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## needs uv; torch stays at the version that exists for every platform
	(echo "# Versions that were tested together: pip reads this file as constraints (-c). Made by \`make lock\`."; \
	 echo "torch==2.13.0" | uv pip compile pyproject.toml --universal --python-version 3.10 --extra test \
	   --extra trackers --extra serve --constraint - --no-annotate --no-header -q) > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
