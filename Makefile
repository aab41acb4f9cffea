# make demo: see it work.  make test: all tests.  Both need nothing but Python 3.11 or newer and make.
#
# VENV is where everything is installed; PYTHON the interpreter that makes it; ARGS goes to pytest or to the demo.

VENV ?= .venv
PYTHONS ?= 3.11 3.12 3.13
ARGS ?=

# The peers that skyward is measured beside have an environment of their own.
BENCH_VENV ?= .venv-bench
BENCH_PEERS = skyward-local,skyward-ssh,loky,dask,nothing,memcpy,tcp-lab,ssh-forward
BENCH = $(BENCH_VENV)/bin/python -m benchmarks

# pip's newer versions read the second name for what builds the package.
PIP = PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BUILD_CONSTRAINT=constraints.txt \
      $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

# pytest keeps what it makes of the tests' asserts, where the environment does not forbid it: 6 s of a processor saved.
# So do the agents and programs that tests start, each of which would otherwise compile the package anew.
# It also removes what older runs have left, and make test leaves whole environments: those of check have another folder.
CHECK_TEMP = $${TMPDIR:-/tmp}/skyward-check-$$(id -u)
CHECK = PYTHONDONTWRITEBYTECODE= PYTEST_DEBUG_TEMPROOT=$(CHECK_TEMP) $(VENV)/bin/python -m pytest -q

# Whatever Sphinx warns of is an error.
SPHINX = $(VENV)/bin/python -m sphinx -W --keep-going -q -d build/docs/doctrees $(ARGS)

.PHONY: help docs linkcheck pictures demo test chaos soak simulate simulate-coverage foreign check fast-tests lint style types types-darwin format test-all-pythons bench bench-full clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo              run the flagship example on this machine"
	@echo "make test              all tests; as root, including those on real SSH hosts"
	@echo "make chaos             kill, freeze and disconnect real hosts at random for 20 minutes (needs root)"
	@echo "make soak              use real pools in random ways for 20 minutes; as root, also on hosts"
	@echo "make simulate          simulate the whole product in virtual time for two hours"
	@echo "make simulate-coverage print how much of the cores runs under simulation alone"
	@echo "make foreign           run the tests of concurrent.futures, loky, joblib and scikit-learn on skyward; an hour"
	@echo "make check             lint, types, layers and the fast tests, in about a minute"
	@echo "make format            format the code with ruff"
	@echo "make test-all-pythons  run make test with Python $(PYTHONS), each in its own .venv-X.Y"
	@echo "make bench             compare the speed with that of loky, Dask and the machine's limits; about 10 minutes"
	@echo "make bench-full        the same for all workloads and all peers; takes hours"
	@echo "make docs              build the documentation site in build/docs/html and check its links"
	@echo "make linkcheck         check the documentation's external links; needs the internet"
	@echo "make pictures          make the pictures of the documentation again; needs Chromium"
	@echo "make clean             remove caches and builds; make distclean: the environments too"

demo: $(VENV)/.installed
	$(VENV)/bin/python examples/guides/10_joblib_concurrency.py $(ARGS)

test: $(VENV)/.installed-dev
	@scripts/lab-packages
	PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses 7 --dist worksteal)

chaos: $(VENV)/.installed-dev
	@scripts/lab-packages
	$(VENV)/bin/python -m tests.soak --faults $(if $(ARGS),$(ARGS),--seconds 1200)

soak: $(VENV)/.installed-dev
	@scripts/lab-packages
	$(VENV)/bin/python -m tests.soak $(if $(ARGS),$(ARGS),--seconds 1200)

simulate: $(VENV)/.installed
	$(VENV)/bin/python -m tests.simulation $(if $(ARGS),$(ARGS),--seconds 7200)

foreign: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.foreign $(ARGS)

simulate-coverage: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.simulation.cores $(ARGS)

lint: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --jobs 3 style types types-darwin

style:
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types:
	$(VENV)/bin/mypy

types-darwin:
	$(VENV)/bin/mypy --platform darwin --no-warn-unreachable --cache-dir .mypy_cache/darwin

# All at once: the tests wait for a fifth of their time.
check: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --jobs 4 style types types-darwin fast-tests

fast-tests:
	@mkdir -p $(CHECK_TEMP)
	$(CHECK) -m "not slow and not lab" --hypothesis-profile check --numprocesses 4 --dist worksteal $(ARGS)

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

test-all-pythons:
	@for version in $(PYTHONS); do \
	    $(MAKE) test VENV=.venv-$$version VERSION=$$version || exit 1; \
	done

bench: $(BENCH_VENV)/.installed
	@scripts/lab-packages
	@mkdir -p build
	$(BENCH) --peers $(BENCH_PEERS) --json build/bench.json --markdown build/bench.md $(ARGS)

bench-full: $(BENCH_VENV)/.installed
	@scripts/lab-packages
	@mkdir -p build
	$(BENCH) --full --json build/bench-full.json --markdown build/bench-full.md $(ARGS)

# The stamps: nothing is installed again until what is to be installed changes. The package is installed in place, so
# edits of the code need no install.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing skyward and what it needs into $(VENV)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing skyward and what its tests need into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing skyward and what builds its documentation into $(VENV)"
	@$(PIP) --editable '.[docs]'
	@touch $@ $(VENV)/.installed

$(BENCH_VENV)/.installed: VENV = $(BENCH_VENV)
$(BENCH_VENV)/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	@test -x $(BENCH_VENV)/bin/python || scripts/make-venv $(BENCH_VENV) $(VERSION)
	@echo "Installing skyward and its peers into $(BENCH_VENV)"
	@$(PIP) --editable . --requirement benchmarks/requirements.txt
	@touch $@

$(VENV)/bin/python:
	@scripts/make-venv $(VENV) $(VERSION)

docs: $(VENV)/.installed-docs
	$(SPHINX) -b html docs build/docs/html
	$(VENV)/bin/python scripts/check_site.py build/docs/html

linkcheck: $(VENV)/.installed-docs
	$(SPHINX) -b linkcheck docs build/docs/linkcheck

pictures: $(VENV)/.installed-dev
	$(VENV)/bin/python -m scripts.pictures $(ARGS)

clean:
	rm -rf docs/gallery docs/generated build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find skyward tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv $(BENCH_VENV) $(PYTHONS:%=.venv-%)
