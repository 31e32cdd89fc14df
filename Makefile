# Two commands are enough: `make demo` and `make test`. Both make .venv and install on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SMOLLM2 = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dopd_vlm/smollm2-135m-instruct
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false


.PHONY: install install-dev demo demo-text demo-llm test test-slow test-lmms test-exports test-vllm compare-harnesses lint bench gpu-check clean

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[eval,viz]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	rm -rf runs/demo
	$(BIN)/dopd train demo

demo-text: install
	rm -rf runs/demo_text
	$(BIN)/dopd train demo_text

# SmolLM2-135M from a package: ten steps as its own teacher, then with a gap of zero.
demo-llm: install
	rm -rf runs/demo_llm runs/demo_llm_dopd
	$(BIN)/pip install --quiet --disable-pip-version-check gguf
	$(BIN)/python scripts/make/smollm2.py
	$(BIN)/dopd train demo_llm
	$(BIN)/dopd train demo_llm name=demo_llm_dopd method.name=dopd

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# One thread per worker: two workers with two threads each are slower than one.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

# bfcl-eval pins old versions of everything; only its rows and checker are wanted.
test-slow: install-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps bfcl-eval==2026.3.23
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

# lmms-eval, in an environment of its own in ~/.cache/dopd_vlm, has our accuracy on the same questions.
test-lmms: install
	$(BIN)/python scripts/checks/lmms.py

# vLLM (for CPUs) in an environment of its own: every version's samples scored again, and a run that trains there.
test-vllm: install
	$(BIN)/python scripts/checks/vllm_versions.py

# Our answers in the files of bfcl-eval and VLMEvalKit, scored by these programs.
test-exports: install
	$(BIN)/python scripts/checks/exports.py

# lm-eval on real weights: SmolLM2-135M, 40 programs and 200 word problems, about 15 minutes on two cores.
compare-harnesses: install-dev
	$(BIN)/python scripts/make/smollm2.py
	$(BIN)/python scripts/checks/harnesses.py $(SMOLLM2) --out runs/harnesses

# Is the GPU path right, and how fast? Builds no environment; PYTHON needs torch >= 2.9 and Triton.
gpu-check:
	$(PYTHON) scripts/checks/gpu.py $(GPU_CHECK)

bench: install
	$(BIN)/dopd bench loss

clean:
	rm -rf runs build dist *.egg-info
