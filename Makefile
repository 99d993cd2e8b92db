# Two commands matter on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
export HILUM_TEST_DATA ?= $(abspath $(wildcard ../shared/data))
export MLFLOW_DISABLE_TELEMETRY = true
export HF_HUB_OFFLINE = 1
DEMO_SCALE ?= full
DEMO_OUT ?= demo-study

.PHONY: setup demo test test-slow test-all check docs bench alone wheels clean

setup: $(VENV)/.ready  ## create .venv with everything pinned in constraints.txt

$(VENV)/.ready: constraints.txt tools/setup_environment.sh $(wildcard packages/*/pyproject.toml)
	PYTHON="$(PYTHON)" bash tools/setup_environment.sh $(VENV)
	touch $@

demo: setup  ## simulated DICOMs -> index -> split -> MAE -> fine-tune -> evaluate -> report, in one go
	$(VENV)/bin/hilum demo --scale $(DEMO_SCALE) --out $(DEMO_OUT)

test: setup  ## the fast suite
	$(PY) -m pytest -n 2 --dist loadfile

test-slow: setup  ## the slow tests alone
	$(PY) -m pytest -n 2 --dist loadfile -m "slow and not gpu"

test-all: test test-slow

check: setup  ## style, types, import order
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy packages/core/src packages/medical/src packages/surgical/src packages/infrared/src packages/industrial/src
	$(VENV)/bin/lint-imports

docs: setup  ## build the documentation (offline)
	$(PY) tools/make_docs.py
	$(VENV)/bin/mkdocs build --strict

bench: setup  ## every benchmark; writes docs/benchmarks.md
	$(PY) benchmarks/run.py

alone: setup  ## every distribution's wheel by itself: imports, lists, passes its tests without the others' packages
	$(PY) tools/check_distributions.py

wheels: setup
	for p in core medical surgical infrared industrial; do $(PY) -m build --wheel --no-isolation -o dist packages/$$p; done

clean:
	rm -rf $(VENV) dist site demo-study
