# The verbs of a person working here. Each sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed has the hashes of a lock, and nothing else is: `make lock` writes them.
INSTALL := tools/locked $(BIN)/python install locks/dev.txt
# This checkout itself, built by what has been installed.
INSTALL_SELF := -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation --editable .
# What the image holds; `make image EXTRAS=xgboost,sklearn,s3` is half the size.
EXTRAS ?= xgboost,sklearn,torch,serving,s3,local
# Or gpu: the builds of XGBoost and PyTorch with CUDA.
VARIANT ?= cpu
# Three on the two processors that this is made for: much of the time tests wait for limits, containers and each other.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist worksteal
# The fast ones wait for nothing.
PYTEST_FAST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# pytest rewrites what each test module asserts, and keeps that: half of the time that a worker needs to begin.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv venv-incumbent venv-hosting venv-sdk venv-py312 demo test test-fast test-all test-ci test-gpu lock freeze lint format docs docs-site bench bench-image bench-health bench-torch bench-xgboost bench-wide bench-tune bench-serving fuzz fuzz-faults image-sizes bench-install wheelhouse image clean

help: ## list these verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

venv: $(VENV)/.dev ## .venv with everything for development

$(VENV)/.pip: pyproject.toml locks/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) pip --quiet
	@touch $@

# What `make demo` needs is less than what development needs, and there a minute sooner.
$(VENV)/.demo: $(VENV)/.pip
	$(INSTALL) 'trainbox[xgboost,local,demo] hatchling editables setuptools' --quiet
	$(BIN)/python $(INSTALL_SELF)
	@touch $@

$(VENV)/.dev: $(VENV)/.pip
	$(INSTALL) 'trainbox[xgboost,sklearn,torch,serving,s3,local,tuning,demo,dev] hatchling editables' --quiet
	$(BIN)/python $(INSTALL_SELF)
	@touch $@ $(VENV)/.demo

# sagemaker-training brings a `train` of its own, so it lives apart from ours. It comes as source, and is built by what
# the lock has. What only tests import is compiled when it is imported: pip, which compiles all, takes three times as long.
venv-incumbent: .venv-incumbent/.ready ## .venv-incumbent with sagemaker-training, to compare with

.venv-incumbent/.ready: locks/incumbent.txt
	$(PYTHON) -m venv .venv-incumbent
	tools/image/from-lock .venv-incumbent/bin/python install $< --quiet --no-compile
	@touch $@

# What the built-in's hosting loads models with: each file that is promised to it is loaded there.
venv-hosting: .venv-hosting-3.0/.ready .venv-hosting-1.7/.ready ## .venv-hosting-3.0 and .venv-hosting-1.7, the XGBoost of the built-in's hosting

.venv-hosting-%/.ready: locks/hosting-%.txt
	$(PYTHON) -m venv .venv-hosting-$*
	tools/image/from-lock .venv-hosting-$*/bin/python install $< --quiet --no-compile
	@touch $@

# SageMaker's SDKs of version 2 and 3 cannot share one environment, with each other or with us.
venv-sdk: .venv-sdk-v2/.ready .venv-sdk-v3/.ready ## .venv-sdk-v2 and .venv-sdk-v3, whose local modes drive the image

.venv-sdk-%/.ready: locks/sdk-%.txt
	$(PYTHON) -m venv .venv-sdk-$*
	tools/image/from-lock .venv-sdk-$*/bin/python install $< --quiet --no-compile
	@touch $@

# XGBoost 3.4 needs Python 3.12: what must be exact on it is tested there too. Without such a Python there is nothing to make.
venv-py312: .venv-py312/.ready ## .venv-py312 with the newest XGBoost, where there is a Python 3.12

.venv-py312/.ready: pyproject.toml locks/dev.txt
	@if python=$$(tools/python312); then \
	  "$$python" -m venv .venv-py312 && \
	  tools/locked .venv-py312/bin/python install locks/dev.txt \
	    'trainbox[xgboost,sklearn] hypothesis pytest pytest-timeout hatchling editables' --quiet --no-compile && \
	  .venv-py312/bin/python $(INSTALL_SELF); \
	fi
	@mkdir -p .venv-py312
	@touch $@

demo: $(VENV)/.demo ## train on 336,776 real flights, through the whole contract
	$(BIN)/python tools/flights.py --out demo-out/data
	$(BIN)/trainbox run xgboost --out demo-out/job --overwrite --job-name flights \
	  --channel train=demo-out/data/train --channel validation=demo-out/data/validation \
	  --hp objective=binary:logistic --hp num_round=150 --hp eta=0.1 --hp max_depth=8 --hp min_child_weight=20 \
	  --hp subsample=0.8 --hp colsample_bytree=0.6 --hp eval_metric=logloss,auc --hp early_stopping_rounds=30

test-fast: $(VENV)/.dev ## the tests that start no process, open no socket and do not sleep: a minute
	$(PYTEST_FAST) -m fast

test: test-environments ## every test but the longest: ten minutes and more
	$(PYTEST) -m 'not long'

test-all: test-environments ## every test
	$(PYTEST)

# What .ci/run runs: of what takes an engine, SDKs, namespaces or many kills one test of each kind.
test-ci: test-environments ## the fast tests, those of processes, and some of each kind of the others
	$(PYTEST) -m 'fast or representative or (process and not long)'

.PHONY: test-environments
test-environments: $(VENV)/.dev .venv-incumbent/.ready venv-hosting venv-sdk .venv-py312/.ready

test-gpu: ## what only an NVIDIA GPU shows: PYTHON has trainbox installed, and torch and XGBoost for that GPU
	$(PYTHON) -m pytest --override-ini addopts= --override-ini filterwarnings=default tests/gpu

lock: $(VENV)/.pip ## resolve locks/ anew, by hash; UPGRADE=name,name or UPGRADE=all takes newer versions
	$(INSTALL) uv --quiet
	$(BIN)/python -m tools.lock --uv $(BIN)/uv --upgrade '$(UPGRADE)' $(if $(TORCH_CPU_INDEX),--torch-index $(TORCH_CPU_INDEX)) $(LOCKS)

freeze: $(VENV)/.dev ## record anew what tests/frozen compares with; a commit of its own, with a line in CHANGELOG.md
	$(BIN)/python -m tools.freeze $(WHAT)

lint: $(VENV)/.dev ## ruff, mypy, the import rules, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: $(VENV)/.dev ## let ruff write what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## write the generated tables and the API reference of docs/ anew
	$(BIN)/python -m tools.docs

# What makes the site is no part of development: nothing else needs it.
docs-site: .venv-docs/.ready ## build/site from docs/, strictly: a broken link is an error
	rm -rf build/site build/site-source
	mkdir -p build/site-source
	cp docs/conf.py docs/*.md CHANGELOG.md CONTRIBUTING.md SECURITY.md THIRD_PARTY.md LICENSE build/site-source
	.venv-docs/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b dirhtml build/site-source build/site

.venv-docs/.ready: locks/docs.txt
	$(PYTHON) -m venv .venv-docs
	tools/image/from-lock .venv-docs/bin/python install $< --quiet --no-compile
	@touch $@

bench: $(VENV)/.dev .venv-incumbent/.ready ## start-up, memory and throughput beside sagemaker-training
	$(BIN)/python tools/bench.py

bench-image: $(VENV)/.dev ## start-up, a job and a rebuild of the image beside sagemaker-training and its SDKs
	tools/docker-engine start
	$(BIN)/python -m tools.bench_image

image-sizes: wheelhouse ## what the image weighs with fewer extras too, layer by layer, beside the budgets
	tools/docker-engine start
	tools/image/build "" cpu trainbox-sizes:core
	tools/image/build xgboost,sklearn cpu trainbox-sizes:trees
	tools/image/build "$(EXTRAS)" cpu trainbox-sizes:all
	$(BIN)/python tools/image/sizes.py trainbox-sizes:core trainbox-sizes:trees trainbox-sizes:all; \
	  status=$$?; docker rmi trainbox-sizes:core trainbox-sizes:trees trainbox-sizes:all >/dev/null; exit $$status

bench-health: $(VENV)/.dev ## healthy and faulty hosts, as network namespaces: time, what is named, false alarms (root)
	$(BIN)/python -m tools.bench_health

bench-torch: $(VENV)/.dev ## PyTorch's launcher, session and checkpoints beside torchrun, torch.save and DCP
	$(BIN)/python -m tools.bench_torch
	$(BIN)/python -m tools.bench_checkpoint --million 200 --runs 5

bench-xgboost: $(VENV)/.dev ## the XGBoost job and the forest beside the built-in's method: time, memory, resume, lost hosts
	$(BIN)/python -m tools.bench_xgboost
	$(BIN)/python -m tools.bench_hosts
	$(BIN)/python -m tools.bench_forest

bench-wide: $(VENV)/.dev ## XGBoost on a few rows in a million columns of libsvm, beside XGBoost alone
	$(BIN)/python -m tools.bench_wide

bench-tune: $(VENV)/.dev ## a search: its time beyond its scripts, what it finds on a function, and on the flights of the demo
	$(BIN)/python -m tools.bench_tune

bench-serving: $(VENV)/.dev .venv-serving/.ready ## answers beside the path of the built-in XGBoost, uvicorn and LitServe (nginx)
	$(BIN)/python -m tools.bench_serving

.venv-serving/.ready: locks/bench-serving.txt
	$(PYTHON) -m venv .venv-serving
	tools/image/from-lock .venv-serving/bin/python install $< --quiet --no-compile
	@touch $@

SECONDS ?= 600
SEED ?= 1
LOAD ?= 2
JOBS ?= 1

fuzz: $(VENV)/.dev ## feed the parsers of strangers' bytes what chance makes of honest ones: SECONDS=600 SEED=1, TARGET='libsvm' is one alone
	$(BIN)/python -m tools.fuzz_parsers --seconds $(SECONDS) --seed $(SEED) $(if $(TARGET),--target '$(TARGET)')

fuzz-faults: $(VENV)/.dev ## jobs hit by faults at random: SECONDS=600 SEED=1, ONLY=K repeats one event, LOAD=2 JOBS=1 (root or user namespaces)
	$(BIN)/python -m tools.fuzz_faults --seconds $(SECONDS) --seed $(SEED) $(if $(ONLY),--only $(ONLY)) --load $(LOAD) --jobs $(JOBS)

bench-install: $(VENV)/.dev ## what an installation brings, beside sagemaker-training
	$(BIN)/python tools/bench.py --install

wheelhouse: $(VENV)/.pip ## wheels for an image that is built without a network
	tools/image/wheelhouse "$(EXTRAS)" "$(VARIANT)" wheelhouse

image: wheelhouse ## trainbox:cpu, or VARIANT=gpu, by a Docker engine that is started if there is none; without a registry: BASE_IMAGE=fallback
	tools/docker-engine start
	tools/image/build "$(EXTRAS)" "$(VARIANT)"

clean: ## remove what these verbs made
	rm -rf $(VENV) .venv-docs .venv-hosting-1.7 .venv-hosting-3.0 .venv-incumbent .venv-py312 .venv-sdk-v2 .venv-sdk-v3 .venv-serving demo-out fuzz-out build dist .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
