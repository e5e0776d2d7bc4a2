# make demo    set up and identify the dopant of the example pair, with a host pack
# make test    set up and run the tests
# make lint    ruff and mypy
# make docs    refresh what documents show of checkpoints, results and the example, and the outputs of notebooks
# make gallery draw the pictures of the documentation again, some ten minutes
# make docs-site   build the documentation site, site/index.html
# make clean   remove what these made, the virtual environment too; not runs/, where training writes
#
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACK := $(shell sed -n 's/.*"pack": "\(.*\)".*/\1/p' examples/answer.json)
CANDIDATES := $(shell sed -n 's/.*"candidates": "\(.*\)".*/\1/p' examples/answer.json)

.PHONY: demo test lint docs gallery docs-site clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-sim,plot
	@mkdir -p demo
	@$(BIN)/defectnet identify --host examples/host.csv --doped examples/doped.csv --pack $(PACK) \
		--candidates $(CANDIDATES) --plot demo/answer.png
	@echo
	@echo "Plot: demo/answer.png. What is truly in the sample: examples/README.md"

# Two processes of one thread: the small networks and matrices of the tests gain nothing from more threads.
test: $(VENV)/.stamp-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.stamp-test
	$(BIN)/python examples/refresh_readme.py
	$(BIN)/python examples/run_notebooks.py

gallery: $(VENV)/.stamp-test
	$(BIN)/python examples/gallery.py

# Warnings are errors, links that lead nowhere in the repository among them. Notebooks are not run.
docs-site: $(VENV)/.stamp-docs
	$(BIN)/sphinx-build -q -W --keep-going -c docs . site

# One stamp for each extra of pyproject.toml: installed again only when these files change.
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "defectnet needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu it is the package python3-venv." >&2; exit 1; }

clean:
	rm -rf $(VENV) demo jupyter_execute dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
