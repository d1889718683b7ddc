# Every target sets up what it needs; `make help` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
UV     := 0.13.8

# What is trained on: a jsonl, csv or folder of labelled pairs, and the field with the label; other options of `labeler ingest`.
DATA   ?= data/clipart/pairs.jsonl
INGEST_OPTIONS ?=
SEED   ?= 0
PRESET ?= embedded
# the whole path, `?` in the place of blanks, which make takes for the end of a name
blank  := $(subst ,, )
PLACE  := $(abspath $(subst $(blank),?,$(DATA)))
# the same below this folder, which may be moved
FROM   := $(subst $(CURDIR)/,,$(PLACE))
SUFFIXES_OF_TABLES := .jsonl .ndjson .json .csv .tsv .parquet
# What is labelled by `make predict`, with which run, into which file.
ifeq ($(PLACE),$(abspath data/clipart/pairs.jsonl))
LABEL  ?= category
NAME   ?= clipart-$(LABEL)
INPUT  ?= data/clipart/unseen
REPORT ?= report
OUT    ?= $(REPORT)/unseen-labels.jsonl
else
NAME   ?= $(subst ?,-,$(if $(filter $(SUFFIXES_OF_TABLES),$(suffix $(PLACE))),$(basename $(notdir $(PLACE))),$(notdir $(PLACE))))
ifneq ($(filter predict demo,$(MAKECMDGOALS)),)
$(if $(INPUT),,$(error name what is to be labelled, too: INPUT=FOLDER))
endif
REPORT ?= report/$(NAME)
OUT    ?= $(REPORT)/labels.jsonl
endif
MODEL  ?= $(RUNS)/visualbert-coattn

RECORDS := data/$(NAME)/records
STORE   := data/$(NAME)/store
RUNS    := checkpoints/$(NAME)
LABELER := $(BIN)/labeler
# Exit code 4 means done, with rejects that were counted and listed.
INGEST   = $(LABELER) ingest '$(DATA)' --out $(RECORDS) $(if $(LABEL),--label '$(LABEL)') $(INGEST_OPTIONS) --seed $(SEED) \
               || test $$? -eq 4
TRAIN    = $(LABELER) train $(1) $(STORE) --out $(RUNS)/$(1) --seed $(SEED)
EVALUATE = $(LABELER) evaluate $(RUNS)/$(1) --data $(STORE)
PREDICT  = $(LABELER) predict '$(INPUT)' --model $(MODEL) --out $(OUT) || test $$? -eq 4

.DEFAULT_GOAL := help
.PHONY: help setup demo ingest preprocess inspect train-baseline train-late-fusion train-visualbert train-coattn evaluate report predict \
        test lint check bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  with your own pairs:  make train-coattn DATA=my.jsonl [LABEL=field] [NAME=name] [SEED=0] [PRESET=embedded]"
	@echo "                        [INGEST_OPTIONS='--map text=title --group-by user'] [REPORT=folder] [PYTHON=python3]"
	@echo "  and then:             make predict DATA=my.jsonl INPUT=FOLDER [MODEL=run] [OUT=file]"

# Bytecode is compiled at once, in 40 s: where PYTHONDONTWRITEBYTECODE is set, as in many containers, every command that
# imports transformers would otherwise compile it again, for 13 s.
setup: $(READY) ## make .venv from the lock file

$(READY): requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/uv uv==$(UV)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(VENV)/uv/bin/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(VENV)/uv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: report ## the whole job on data/clipart: train three models, compare them, label unseen pictures
	@$(PREDICT)
	@echo
	@echo "The report:  $(REPORT)/index.html   (its figures: $(REPORT)/comparison.json)"
	@echo "The data, and what looks wrong in it:  $(REPORT)/data.html"
	@echo "The labels of $(INPUT), which no stage has seen:  $(OUT)"
	@echo
	@echo "Next, with your own pairs:"
	@echo "  make train-coattn DATA=my.jsonl"
	@echo "  $(LABELER) predict my-photos/ --model $(MODEL) --out labels.jsonl"

ingest: $(READY) ## read DATA into records, with leakage-free splits
	@case '$(NAME)' in *' '*|'') echo "NAME='$(NAME)': name the data in one word, NAME=name"; exit 2;; esac
	@test ! -f data/$(NAME)/source || grep -qxF '$(FROM)' data/$(NAME)/source || \
	    { echo "data/$(NAME) was made of $$(cat data/$(NAME)/source); give these data another name: NAME=name"; exit 2; }
	@$(INGEST)
	@echo '$(FROM)' > data/$(NAME)/source

preprocess: ingest ## decode every picture once and store what the frozen towers see
	@$(LABELER) preprocess $(RECORDS) --out $(STORE) --preset $(PRESET)

inspect: preprocess ## show what is in the data, suspicious pictures and likely label errors
	@$(LABELER) inspect $(STORE)

train-baseline: preprocess ## train and evaluate resnet-gru
	@$(call TRAIN,resnet-gru)
	@$(call EVALUATE,resnet-gru)

train-late-fusion: preprocess ## train and evaluate late-fusion
	@$(call TRAIN,late-fusion)
	@$(call EVALUATE,late-fusion)

train-visualbert: preprocess ## train and evaluate visualbert
	@$(call TRAIN,visualbert)
	@$(call EVALUATE,visualbert)

train-coattn: preprocess ## train and evaluate visualbert-coattn
	@$(call TRAIN,visualbert-coattn)
	@$(call EVALUATE,visualbert-coattn)

evaluate: train-baseline train-visualbert train-coattn ## train what is not trained yet, measure all three on the test split

report: evaluate ## compare the runs, look through the data: report/index.html, data.html, comparison.json, comparison.md
	@$(LABELER) inspect $(STORE) >/dev/null
	@$(LABELER) report $(RUNS)/resnet-gru $(RUNS)/visualbert $(RUNS)/visualbert-coattn --out $(REPORT)

# a run that is named is there already
predict: $(if $(filter command environment,$(firstword $(origin MODEL))),$(READY),train-coattn) ## label INPUT with MODEL into OUT
	@$(PREDICT)

test: $(READY) ## run the tests
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

check: lint test ## lint and test

bench: report ## run the benchmarks (hours; figures as JSON in benchmarks/figures)
	@mkdir -p benchmarks/figures
	@$(BIN)/python -m benchmarks.training_speed $(STORE) > benchmarks/figures/training.json
	@$(BIN)/python -m benchmarks.prediction predict $(RUNS)/visualbert $(DATA) 1859 > benchmarks/figures/predict.json
	@$(BIN)/python -m benchmarks.prediction scale data/clipart/unseen > benchmarks/figures/scale.json
	@$(BIN)/python -m benchmarks.prediction startup $(RUNS)/visualbert $(firstword $(wildcard data/clipart/unseen/*.png)) \
	    > benchmarks/figures/startup.json
	@$(BIN)/python -m benchmarks.accuracy
	@$(BIN)/python -m benchmarks.weak_labels $(STORE) checkpoints/bench/weak-labels

lock: ## make requirements.lock again from setup.cfg
	$(VENV)/uv/bin/uv pip compile setup.cfg --extra dev --universal --python-version 3.10 --generate-hashes --no-annotate \
	    --no-header --upgrade --output-file requirements.lock

clean: ## remove what was made: data, runs and report (not .venv)
	rm -rf report data/*/records data/*/store data/*/store-baselines-* data/*/store-quality data/*/store-pixels-* data/*/source
	find data -mindepth 1 -maxdepth 1 -type d -empty -delete
	find checkpoints -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
