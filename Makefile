# Set-up, training, tests and checks. The two that a newcomer needs: make train, make test.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first interpreter of a supported version; another one: make PYTHON=/path/to/python3.12 train
SUPPORTED := import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13)
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$python && break; done)

# An interpreter that was named, and whose version isn't .venv's: the environment is made anew.
VERSION := import sys; print(sys.version_info[:2])
ifeq ($(origin PYTHON),command line)
STALE := $(shell test -x $(BIN)/python && test "$$($(BIN)/python -c '$(VERSION)')" != "$$("$(PYTHON)" -c '$(VERSION)')" && echo stale)
endif

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

.PHONY: train
train: $(READY)  ## train, test and draw the default model; overrides in ARGS="model.latent_dim=2 trainer.max_epochs=3"
	$(BIN)/python -m vae_lightning.train $(ARGS)

RUN := outputs/vqvae

.PHONY: vqvae
vqvae: $(READY)  ## train a VQ-VAE and then a prior over its codes, in about seven minutes; the directory in RUN=outputs/vqvae
	$(BIN)/python -m vae_lightning.train experiment=vqvae hydra.run.dir=$(RUN)/codes
	$(BIN)/python -m vae_lightning.train experiment=prior data.run=$(RUN)/codes hydra.run.dir=$(RUN)/prior

.PHONY: test
test: $(READY)  ## run the tests, on up to four cores; pytest's options in ARGS="-k objectives", a debugger with ARGS="-n 0 --pdb"
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

.PHONY: test-fast
test-fast: $(READY)  ## run the tests without the slow ones, in under two minutes
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not slow" $(ARGS)

OLDEST := .venv-oldest

.PHONY: test-oldest
test-oldest:  ## run the tests with the oldest versions of the dependencies, in an environment of their own
	test -x $(OLDEST)/bin/python || "$(PYTHON)" -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --root-user-action=ignore --editable '.[dev]' --constraint constraints-oldest.txt
	$(OLDEST)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

BROWSER := $(VENV)/.browser

.PHONY: test-browser
test-browser: $(BROWSER)  ## run the dashboards and the explorer in Chromium; pictures in outputs/browser
	$(BIN)/python -m pytest tests/browser $(ARGS)

.PHONY: test-cluster
test-cluster:  ## run sweeps, processes and storage on a real SLURM, Ray and S3 server here; installs nothing, says what is missing
	@test -x $(BIN)/python || { echo "No $(VENV) here: make setup first" >&2; exit 1; }
	$(BIN)/python -m pytest tests/cluster $(ARGS)

# On a GPU machine with an environment of its own, no other is made.
GPU_PYTHON := $(shell test -x $(BIN)/python && echo $(BIN)/python || echo "$(PYTHON)")

.PHONY: test-gpu
test-gpu:  ## run the tests that ask for a CUDA GPU, in .venv or else in the environment that is active
	PYTHONPATH=src $(GPU_PYTHON) -m pytest tests/gpu $(ARGS)

.PHONY: bench-gpu
bench-gpu:  ## measure the speed on the CUDA GPUs there are, against a bare loop, in the same environment
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py $(ARGS)

.PHONY: setup
setup: $(READY)  ## create .venv and install the project with its pinned dependencies

.PHONY: lint
lint: $(READY)  ## check style with ruff
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs

.PHONY: format
format: $(READY)  ## mend style with ruff
	$(BIN)/ruff check --fix src tests benchmarks docs
	$(BIN)/ruff format src tests benchmarks docs

.PHONY: typecheck
typecheck: $(READY)  ## check types with mypy
	$(BIN)/mypy

.PHONY: tensorboard
tensorboard: $(READY)  ## open the dashboards of all runs below outputs/
	$(BIN)/tensorboard --logdir outputs --samples_per_plugin images=500

DOCS := $(VENV)/.docs

.PHONY: docs
docs: $(DOCS)  ## build the documentation into build/docs; a warning or a broken internal link is an error
	$(BIN)/python -m sphinx -b html -n -W --keep-going -E -q docs build/docs
	@echo "The documentation: open build/docs/index.html"

.PHONY: linkcheck
linkcheck: $(DOCS)  ## ask the network for each external link of the documentation
	$(BIN)/python -m sphinx -b linkcheck -E -q docs build/linkcheck

.PHONY: notebook
notebook: $(DOCS)  ## execute docs/walk.ipynb anew, on the newest run below outputs/train
	$(BIN)/python docs/execute.py

RESULTS := outputs/results
FEWER_PASSES := 'optimizer.schedule_passes=[1,1,2,3,4,6,9,14]' trainer.max_epochs=40

.PHONY: results
results: $(READY)  ## run the campaigns of docs/results.md again, into outputs/results: most of a day on two cores
	$(BIN)/python -m vae_lightning.train --multirun experiment=aevb model.latent_dim=3,5,10,20,200 hydra.sweep.dir=$(RESULTS)/aevb
	$(BIN)/python benchmarks/figure2.py docs/images/figure2.png $(RESULTS)/aevb/[0-9]
	$(BIN)/python -m vae_lightning.train experiment=aevb data.binarization=stochastic hydra.run.dir=$(RESULTS)/aevb_binarized
	for k in 1 5 50; do \
	  $(BIN)/python -m vae_lightning.train experiment=iwae model.num_samples=$$k $(FEWER_PASSES) hydra.run.dir=$(RESULTS)/iwae_$$k && \
	  $(BIN)/python -m vae_lightning.evaluate checkpoint=$(RESULTS)/iwae_$$k hydra.run.dir=$(RESULTS)/iwae_$${k}_measured || exit 1; done
	for steps in 5000 10000; do \
	  $(BIN)/python -m vae_lightning.train experiment=jaanli trainer.max_steps=$$steps hydra.run.dir=$(RESULTS)/jaanli_$$steps && \
	  $(BIN)/python -m vae_lightning.evaluate checkpoint=$(RESULTS)/jaanli_$$steps/checkpoints/last.ckpt split=val samples=1000 \
	    hydra.run.dir=$(RESULTS)/jaanli_$${steps}_measured || exit 1; done
	for model in vae convolutional conditional; do \
	  $(BIN)/python -m vae_lightning.train model=$$model hydra.run.dir=$(RESULTS)/$$model && \
	  $(BIN)/python -m vae_lightning.evaluate checkpoint=$(RESULTS)/$$model 'metrics=[bound,mutual_information,sample_quality]' \
	    hydra.run.dir=$(RESULTS)/$${model}_measured || exit 1; done
	$(BIN)/python benchmarks/estimator_variance.py $(RESULTS)/vae

BENCH := $(VENV)/.bench

.PHONY: bench
bench: $(BENCH)  ## measure the speed as ratios, side by side; some of it with ROWS=step,epoch, a short form with QUICK=1
	$(BIN)/python benchmarks/bench.py $(if $(ROWS),--rows '$(ROWS)') $(if $(QUICK),--quick) $(ARGS)

.PHONY: chaos
chaos: $(READY)  ## kill, signal, damage and starve runs by the hundred: the table of docs/reliability.md, in half an hour or more
	for campaign in $$(grep -l '^if __name__' benchmarks/chaos/*.py); do \
	  echo "$$campaign" && OMP_NUM_THREADS=1 $(BIN)/python $$campaign || failed=1; done; exit $${failed:-0}

.PHONY: clean
clean:  ## remove .venv, .venv-oldest, caches and build files; never outputs/ or the data
	rm -rf $(VENV) $(OLDEST) build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew when the dependencies change; a set-up that was broken off is repeated, for the stamp comes last.
$(READY): pyproject.toml constraints.txt $(STALE)
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(SUPPORTED)' || { \
	  echo "No supported Python found: 3.11, 3.12 and 3.13 are. Name one with make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -z "$(STALE)" && $(BIN)/python -c '$(SUPPORTED); import pip' >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --root-user-action=ignore --editable '.[dev]' --constraint constraints.txt
	@touch $@

# What only the documentation needs, on top of it.
$(DOCS): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --root-user-action=ignore --editable '.[docs]' --constraint constraints.txt
	@touch $@

# JAX, which the project is held against.
$(BENCH): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --root-user-action=ignore --editable '.[bench]' --constraint constraints.txt
	@touch $@

# Playwright's package brings no browser; the tests say what to install where they find none.
$(BROWSER): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --root-user-action=ignore --editable '.[browser]' --constraint constraints.txt
	@touch $@

.PHONY: stale
stale:
