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
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal
PIP := $(RUN) -m pip --disable-pip-version-check --quiet

# A variable becomes a flag only when it is given, so every default stays in the experiment.
omniglot_flags = \
	$(if $(METHOD),--method '$(METHOD)') \
	$(if $(PROTOCOL),--protocol '$(PROTOCOL)') \
	$(if $(STEPS),--steps '$(STEPS)') \
	$(if $(SEED),--seed '$(SEED)') \
	$(if $(N_WAY),--n-way '$(N_WAY)') \
	$(if $(HEAD_STD),--head-std '$(HEAD_STD)') \
	$(if $(DATA),--data '$(DATA)') \
	$(if $(OUT),--out '$(OUT)') \
	$(if $(filter-out 0 no false,$(RESUME)),--resume)
metric_flags = \
	$(if $(METHOD),--method '$(METHOD)') \
	$(if $(K_SHOT),--k-shot '$(K_SHOT)') \
	$(if $(PROTOCOL),--protocol '$(PROTOCOL)') \
	$(if $(DATA),--data '$(DATA)')
table_flags = \
	$(if $(METHODS),--methods '$(METHODS)') \
	$(if $(CELLS),--cells '$(CELLS)') \
	$(if $(SEEDS),--seeds '$(SEEDS)') \
	$(if $(PROTOCOL),--protocol '$(PROTOCOL)') \
	$(if $(STEPS),--steps '$(STEPS)') \
	$(if $(DATA),--data '$(DATA)') \
	$(if $(OUT),--out '$(OUT)')
evolve_flags = \
	$(if $(TASK),--task '$(TASK)') \
	$(if $(PROPOSER),--proposer '$(PROPOSER)') \
	$(if $(CURRICULUM),--curriculum '$(CURRICULUM)') \
	$(if $(FILTERS),--filters '$(FILTERS)') \
	$(if $(VIEWS),--views '$(VIEWS)') \
	$(if $(GATE),--gate '$(GATE)') \
	$(if $(DAMAGE),--damage '$(DAMAGE)') \
	$(if $(ROUNDS),--rounds '$(ROUNDS)')
pretrained_flags = \
	$(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') \
	$(if $(UPDATE),--update '$(UPDATE)') \
	$(if $(VERIFIER),--verifier '$(VERIFIER)') \
	$(if $(GATE),--gate '$(GATE)') \
	$(if $(ROUNDS),--rounds '$(ROUNDS)')
common_flags = \
	$(if $(STEPS),--steps '$(STEPS)') \
	$(if $(SEED),--seed '$(SEED)') \
	$(if $(OUT),--out '$(OUT)') \
	$(if $(filter-out 0 no false,$(RESUME)),--resume)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-all lint omniglot omniglot-metric omniglot-table sinusoid data-weighting shakespeare test-time-training meta-lora evolve evolve-paper evolve-pretrained evolve-programs bench bench-memory bench-transformer bench-checkpoints bench-lm soak clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'
	@echo
	@echo "  Variables: STEPS= SEED= OUT= RESUME= for the experiments; for omniglot also"
	@echo "  PROTOCOL=fast|paper METHOD= N_WAY= HEAD_STD= DATA=<folder with Omniglot's zips>; for"
	@echo "  omniglot-metric METHOD= K_SHOT=; for omniglot-table METHODS=protonet,maml CELLS=20w1s SEEDS=;"
	@echo "  for evolve TASK= PROPOSER= CURRICULUM= FILTERS= VIEWS= GATE= DAMAGE= ROUNDS=; for"
	@echo "  evolve-pretrained CHECKPOINT= UPDATE=grpo|maml VERIFIER=exact GATE= ROUNDS=."
	@echo "  RESUME=1 goes on from the last checkpoint. PYTHON= names the interpreter (3.11 or newer)"
	@echo "  for .venv."

install: $(INSTALLED) ## set up .venv (every other target does it when needed)

demo: $(INSTALLED) ## meta-train on embedded glyphs: minutes, no download
	$(RUN) -m experiments.fewshot.demo $(common_flags)

test: $(INSTALLED) $(if $(PARITY),$(PARITY_INSTALLED)) ## run the tests that aren't slow, and the docstrings' examples
	$(PYTEST) -m 'not slow'

test-all: $(INSTALLED) $(if $(PARITY),$(PARITY_INSTALLED)) ## run all of them (PARITY=1: beside PyTorch too)
	$(PYTEST)

lint: $(INSTALLED) ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

omniglot: $(INSTALLED) ## second-order MAML on Omniglot until it has the paper's number
	$(RUN) -m experiments.fewshot.omniglot.train $(omniglot_flags)

omniglot-metric: $(INSTALLED) ## Prototypical Networks (METHOD=matching, relation, r2d2) on Omniglot
	$(RUN) -m experiments.fewshot.omniglot.metric $(metric_flags) $(common_flags)

omniglot-table: $(INSTALLED) ## ten learners beside their papers, cell by cell; the same command goes on
	$(RUN) -m experiments.fewshot.omniglot.table $(table_flags)

data-weighting: $(INSTALLED) ## learn which training labels to trust, through whole trainings
	$(RUN) -m experiments.bilevel.data_weighting $(common_flags)

sinusoid: $(INSTALLED) ## MAML on sinusoid regression
	$(RUN) -m experiments.fewshot.sinusoid $(common_flags)

shakespeare: $(INSTALLED) ## train a small language model on Shakespeare (DATA=<another text>)
	$(RUN) -m experiments.language.shakespeare $(if $(DATA),--data '$(DATA)') $(common_flags)

test-time-training: $(INSTALLED) ## adapt a language model to each task's examples before it answers
	$(RUN) -m experiments.language.test_time_training $(if $(BASE),--base '$(BASE)') $(common_flags)

meta-lora: $(INSTALLED) ## meta-learn from where a language model adapts (BASE=<another run's base/model>)
	$(RUN) -m experiments.language.meta_lora $(if $(BASE),--base '$(BASE)') $(common_flags)

evolve: $(INSTALLED) ## a model teaches itself longer strings (TASK=reverse, TASK=addition, PROPOSER=model)
	$(RUN) -m experiments.evolution.strings $(evolve_flags) $(common_flags)

evolve-paper: $(INSTALLED) ## the same at the published size, for a GPU
	$(RUN) -m experiments.evolution.strings --size paper $(evolve_flags) $(common_flags)

evolve-pretrained: $(INSTALLED) ## a Hugging Face model teaches itself longer sums (CHECKPOINT=<folder or hub id>)
	$(RUN) -m experiments.evolution.pretrained $(pretrained_flags) $(common_flags)

evolve-programs: $(INSTALLED) ## a model invents programs, and learns from what an interpreter makes of them
	$(RUN) -m experiments.evolution.programs $(if $(ROUNDS),--rounds '$(ROUNDS)') $(common_flags)

bench: $(BENCH_INSTALLED) ## time metajax beside PyTorch and ordinary Flax (twenty minutes)
	$(RUN) -m experiments.benchmarks.meta_step $(if $(OUT),--out '$(OUT)')
	$(RUN) -m experiments.benchmarks.prototypical $(if $(OUT),--out '$(OUT)')

bench-memory: $(INSTALLED) ## memory and time by gradient mode, inner steps and tasks
	$(RUN) -m experiments.benchmarks.memory $(if $(OUT),--out '$(OUT)')

bench-transformer: $(INSTALLED) ## the same for inner Adam steps on a transformer
	$(RUN) -m experiments.benchmarks.transformer $(if $(OUT),--out '$(OUT)')

bench-checkpoints: $(INSTALLED) ## what checkpoints cost, and how long a long run takes to go on
	$(RUN) -m experiments.benchmarks.checkpoints $(if $(OUT),--out '$(OUT)')

bench-lm: $(PARITY_INSTALLED) ## generation beside transformers, and LoRA on many tasks beside peft
	$(RUN) -m experiments.benchmarks.generation $(if $(OUT),--out '$(OUT)')
	$(RUN) -m experiments.benchmarks.lora $(if $(OUT),--out '$(OUT)')

soak: $(INSTALLED) ## kill a training 100 times (KILLS=), and check that nothing is lost
	$(RUN) -m experiments.benchmarks.soak $(if $(KILLS),--kills '$(KILLS)') $(if $(SEED),--seed '$(SEED)') $(if $(OUT),--out '$(OUT)')

clean: ## remove .venv and the tools' caches (runs/ stays)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
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
	@$(PIP) install -c constraints.txt -e '.[experiments,lm,tensorboard]' --group dev
	@touch $@

$(PARITY_INSTALLED): $(INSTALLED)
	@echo "Installing PyTorch, transformers and peft, which language models are compared with, into $(VENV) (once) ..."
	@$(PIP) install -c constraints.txt --group parity
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@echo "Installing the benchmark's peers (PyTorch, higher, TorchOpt) into $(VENV) (once) ..."
	@$(PIP) install -c constraints.txt -e '.[bench]'
	@touch $@
