# `make demo` and `make test` do all the set-up on a fresh machine; nothing else has to be installed first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH ?= torch==2.13.0
MINUTES ?= 5

PHOTOGRAPHS ?=

.PHONY: demo test test-page test-scale test-lower-bound test-common fuzz chaos lint clean figures

demo: $(VENV)/.installed
	$(BIN)/python shapes/demo.py --out out/demo

test: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	-$(BIN)/python tests/text_tools.py fetch  # CLIP's whole vocabulary; without it the tests use an excerpt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --durations=10

# The batch job through kills, a full disk and a broken shard, and its speed (half an hour of two cores). With
# PHOTOGRAPHS=FOLDER some of the pictures are photographs.
test-scale: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/scale/long.py $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS))

# The oldest transformers that the package admits, in an environment of its own.
test-lower-bound:
	$(MAKE) test VENV=.venv-lower EXTRA="transformers==5.17.0"

# The web page in a real browser: Debian's chromium, driven by Playwright.
test-page: $(VENV)/.installed
	command -v chromium > /dev/null || (apt-get update && apt-get install -y chromium)
	$(BIN)/python -m pytest -q tests/page/drive_page.py

# transformers' own common tests on our classes; downloads its source distribution, nothing of it is kept here.
test-common: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet parameterized
	OMP_NUM_THREADS=1 $(BIN)/python tests/common/run.py

# Hostile pictures, words, checkpoints and files, and results against a plain post-processing, for MINUTES.
fuzz: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzzing.py --minutes $(MINUTES)

# Kills, full disks and hostile servers, each a function with a name (two to five minutes).
chaos: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/disasters.py

# Every figure of models/shapes that README, its card and docs quote, measured again (three minutes).
figures: $(VENV)/.installed
	$(BIN)/python shapes/figures.py

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# torch first and alone: the CPU wheel; any other order may fetch gigabytes of CUDA packages.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[test]" $(EXTRA)
	touch $@

clean:
	rm -rf .venv .venv-lower out build *.egg-info
