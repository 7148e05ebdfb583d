PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
# Without these glibc hands memory back after each UNet call and faults it in again at the next: a tenth of the time.
export MALLOC_TRIM_THRESHOLD_ = 2000000000
export MALLOC_MMAP_THRESHOLD_ = 1000000000
export MALLOC_TOP_PAD_ = 67108864
# What is installed is compiled at its first import, not all of it by pip: half a minute less.
unexport PYTHONDONTWRITEBYTECODE
# Those that take long first, as `memsub run` does: so two processes end together. 03 reads what 02 captures, and would
# capture it once more beside it.
LONG := $(foreach n,00 01 02 04 05 06,$(wildcard notebooks/$(n)_*.ipynb))
NOTEBOOKS := $(LONG) $(filter-out $(LONG),$(sort $(wildcard notebooks/*.ipynb)))
# The embedded model fills two cores better from two processes of one thread than from one of two.
SIDE_BY_SIDE := -n auto --maxprocesses 4
# Notebooks are validated in a copy of their own, whose run folder is empty: no stored result can stand in for a new one.
FRESH := build/nbval

.PHONY: demo lab test units test-slow rehearse browser docs install lint types

## make demo: install, then all notebooks on the embedded model with few prompts and images; read runs/demo/report.html
demo: install
	$(BIN)/python -m memsub run quick --out runs/demo --jobs 2

## make lab: JupyterLab on the notebooks
lab: install
	$(BIN)/jupyter lab notebooks

# mypy takes half a minute of one core: the tests begin beside it.
## make test: install, lint, types, unit tests, the notebooks as committed, their figures in the documents, their budgets
test units: export OMP_NUM_THREADS = 1
test: install lint
	$(MAKE) --no-print-directory -j 2 types units
	rm -rf $(FRESH) && mkdir -p $(FRESH) && cp -r notebooks papermill_params $(FRESH)
	cd $(FRESH) && $(CURDIR)/$(BIN)/pytest $(SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder --nbval \
		--nbval-cell-timeout 600 --nbval-sanitize-with notebooks/sanitize.cfg $(NOTEBOOKS)
	$(BIN)/python -m tools.figures --compare $(FRESH)/runs/tiny
	$(BIN)/python -m tools.budget $(FRESH)/runs/tiny

units: install
	$(BIN)/pytest $(SIDE_BY_SIDE) --dist worksteal

## make test-slow: what takes minutes a test, such as full-size models of random weights; nightly
test-slow: install
	$(BIN)/pytest -m slow

## make rehearse: all notebooks on SD1.4 and SD2.0 at full size with random weights, about 12 GB
rehearse: install
	$(BIN)/python -m tools.rehearsal --out runs/rehearsal

## make browser: Run All and the explorer's slider in JupyterLab, in a headless browser (skipped where there is none)
browser: install
	$(BIN)/pip install --quiet "playwright>=1.50"
	$(BIN)/pytest tests/browser -s -rs

## make docs: the site into site/; a broken link, a formula that is none or a request to another host is an error
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	.venv-docs/bin/python docs/site_files.py site

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet "mkdocs-jupyter>=0.25" "mkdocs-material>=9.5,<10" "mkdocstrings[python]>=0.27" "latex2mathml>=3.77" ruff
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

install: $(BIN)/installed

# The pip that Python 3.11 brings takes a quarter longer than a newer one.
$(BIN)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --upgrade pip
	$(BIN)/pip install --quiet --no-compile -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@
