# `make demo` and `make test` need Python 3.11 or newer and an internet connection for the first set-up; nothing else.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
WORKERS ?= 2
CORPUS ?= ../shared/dicom
DATASET ?= ../shared/dataset
TRAINING_SET := build/training-set
FUZZ_SECONDS ?= 600
CORE := plan journal execute files metadata classify
CORE_TESTS := $(patsubst %,tests/test_%.py,archives archives_crash archives_later beneath classify config copying costs crossed_runs crossing doctor faults files full_disk interrupted_runs journal lock long_names losses meanwhile metadata metrics names no_inodes operator placing plan races review review_crash review_later review_odd review_plan room settling sort sort_edges state undo_failing undo_folders undo_later unseen_sources whole_copies)

.PHONY: help setup demo test torture fuzz coverage check lint wheel bench bench-million evaluate model docs lock clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv from requirements.lock (the other targets do it too)

# The stamp is written last, so a set-up that failed is done again. --no-deps: the lock is whole, and pip would look for
# newer releases of what a package asks for with an extra (coverage[toml]), which have no hash here.
$(STAMP): requirements.lock pyproject.toml
	@echo "Setting up $(VENV) from requirements.lock (about 1 GB to fetch the first time; some minutes)"
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "expected Python 3.11 or newer, received $(PYTHON); set PYTHON=…" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check --disable-pip-version-check
	@touch $@

demo: $(STAMP) ## sort sample_data/inbox into outbox/ and show the manifest
	$(BIN)/python -m dicomsort sort --archives open sample_data/inbox outbox || [ $$? -eq 3 ]
	@$(BIN)/python sample_data/show_manifest.py outbox/manifest.csv
	@echo "see what was held, with pictures:  $(BIN)/dicomsort report --html morning.html outbox"
	@echo "decide it, with a key per class:   $(BIN)/dicomsort review outbox"
	@echo "take all of it back:               $(BIN)/dicomsort undo outbox"

test: $(STAMP) ## the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# The suite itself has at least fifty kills and a sample of the bytes; this has three hundred, and every byte of the journal.
torture: $(STAMP) ## crash at every change on disk, tear every byte of the journal, kill -9 300 times, damage every state file (about an hour)
	$(BIN)/python tests/torture.py $(if $(SEED),--seed $(SEED))

fuzz: $(STAMP) ## mutate headers and pixels for FUZZ_SECONDS each (600), guided by coverage
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3.0'
	$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS)

# What placing rests on has no branch that no test takes. The crash matrix (test_crash.py) takes none that the others do
# not, and twice the time under coverage: `make check` runs it with the rest.
coverage: $(STAMP) ## branch coverage of plan, journal, execute, files, metadata, classify: 100 % or it fails
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(CORE_TESTS) $(CORE:%=--cov=dicomsort.%) --cov-branch \
	  --cov-report=term-missing:skip-covered --cov-fail-under=100

# Each test once: those of the core measure its coverage.
check: lint coverage ## lint, types, the import rule, coverage and all other tests; CI runs this
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(CORE_TESTS:%=--ignore=%)

lint: $(STAMP) ## ruff, mypy strict, the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# BENCH holds options: --folder DIR, --rows a,b, --repeat 5, --paste (into benchmarks/RESULTS.md); run.py --help tells all.
bench: $(STAMP) ## measure beside cp, rename and other sorters (half an hour, 13 GB of disk); correctness where CORPUS is
	$(BIN)/python benchmarks/run.py $(BENCH)
	@if command -v storescp >/dev/null; then $(BIN)/python benchmarks/sending.py; $(BIN)/python benchmarks/receiving.py; \
	 else echo "sending and receiving skipped: DCMTK is not installed"; fi
	@if [ -d "$(CORPUS)" ]; then $(BIN)/python benchmarks/corpus.py --corpus "$(CORPUS)"; \
	 else echo "corpus skipped: no folder $(CORPUS); set CORPUS=…"; fi
	@if [ -d "$(DATASET)" ]; then $(BIN)/python benchmarks/training.py "$(DATASET)"; \
	 else echo "training skipped: no folder $(DATASET); set DATASET=…"; fi

bench-million: $(STAMP) ## measure 10,000, 100,000 and 1,000,000 files (half an hour, 7 GB of disk)
	$(BIN)/python benchmarks/run.py --rows c --million --repeat 1 $(BENCH)

# What models/default is trained on: links to DATASET and to the DICOM files of CORPUS, if there is one.
$(TRAINING_SET): $(STAMP) FORCE
	@test -d "$(DATASET)" || { echo "expected a data set in $(DATASET), received nothing there; set DATASET=…" >&2; exit 1; }
	@rm -rf $(TRAINING_SET)
	@$(BIN)/python models/training_set.py "$(DATASET)" "$(CORPUS)" $(TRAINING_SET)

FORCE:

evaluate: $(STAMP) ## measure models/default by sources held out of DATASET, and write its card anew
	@if [ -d "$(DATASET)" ]; then $(MAKE) --no-print-directory $(TRAINING_SET) && \
	   $(BIN)/python -m dicomsort evaluate $(TRAINING_SET) --model models/default --groups models/groups.csv \
	     --cross-validate source --folds 5 --shortcuts --update --out evaluation; \
	 else echo "evaluate skipped: no folder $(DATASET); set DATASET=…"; fi

# What the shipped bundle is made by; sort needs only these of its files.
model: $(TRAINING_SET) ## train models/default anew from DATASET and CORPUS (about 90 minutes on two cores)
	$(BIN)/python -m dicomsort train $(TRAINING_SET) --arch efficientnet-lite0 --augment strong --groups models/groups.csv \
	  --epochs 12 --batch-size 64 --learning-rate 0.0005 --seed 0 --out build/model/default
	mkdir -p models/default
	cd build/model/default && cp bundle.json model.tflite evaluation.npz metrics.json card.md history.csv *.png ../../../models/default/

docs: $(STAMP) ## build the manual as pages with a search, in build/site (opens without a network)
	$(BIN)/python docs/make_site.py
	$(BIN)/uv run --no-project --quiet --with-requirements requirements-docs.txt \
	  env NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict --config-file docs/mkdocs.yml
	@echo "build/site/index.html"

wheel: $(STAMP) ## build dist/dicomsort-*.whl, which contains the default model
	$(BIN)/python -m build --wheel --no-isolation

# requirements-sort.txt is what pyproject.toml's group "sort" needs, in the releases of the lock; requirements-docs.txt is
# what the group "docs" needs, which is installed for `make docs` alone.
lock: ## write requirements.lock and requirements-sort.txt from pyproject.toml (after a set-up, which brings uv; remove the old ones to upgrade)
	$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --extra dev \
	  --no-header --no-annotate --quiet --output-file requirements.lock
	$(BIN)/uv pip compile --group pyproject.toml:sort --constraint requirements.lock --universal --generate-hashes \
	  --python-version 3.11 --no-header --no-annotate --quiet --output-file requirements-sort.txt
	$(BIN)/uv pip compile --group pyproject.toml:docs --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-annotate --quiet --output-file requirements-docs.txt

clean: ## remove what the other targets made, .venv too
	rm -rf $(VENV) outbox dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
