# Two commands are enough: `make demo` and `make test`. Both make .venv and install on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: install demo demo-text test test-slow lint bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[eval,dev]'
	touch $@

demo: install
	rm -rf runs/demo
	$(BIN)/python scripts/train.py scripts/recipes/demo.yaml

demo-text: install
	rm -rf runs/demo_text
	$(BIN)/python scripts/train.py scripts/recipes/demo_text.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest -q

test-slow: install
	$(BIN)/python -m pytest -q -m slow

bench: install
	$(BIN)/python scripts/bench.py loss

clean:
	rm -rf runs build dist *.egg-info
