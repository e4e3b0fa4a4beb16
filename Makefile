# `make help` lists what there is.
include airflow.env
export AIRFLOW_HOME ?= $(CURDIR)/.airflow
export WAREHOUSE_DIR := $(abspath $(or $(WAREHOUSE_DIR),data))
export AIRFLOW__CORE__DAGS_FOLDER := $(CURDIR)/dags
export AIRFLOW__CORE__PLUGINS_FOLDER := $(CURDIR)/plugins
export AIRFLOW__COSMOS__CACHE_DIR := $(AIRFLOW_HOME)/cosmos
export DLT_PROJECT_DIR := $(CURDIR)/include/dlt_pipelines
export PYTHONPATH := $(CURDIR)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export $(shell sed -n 's/^\([A-Z_]*\)=.*/\1/p' airflow.env)
unexport MAKEFLAGS MAKELEVEL

PYTHON ?= python3.11
UV_VERSION := 0.13.9
MANIFEST := include/dbt_project/target/manifest.json
DBT_FILES := $(shell find include/dbt_project -path '*/target' -prune -o -path '*/logs' -prune -o -type f -print)
SETUP := .venv/.installed .airflow/.ready $(MANIFEST)

.PHONY: help run up test lint show snapshots rollback lock shell clean
help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

run: $(SETUP) ## run the pipeline once and show what it made
	@python scripts/airflow_local.py run --conf '$(or $(CONF),{})'
	@python -m include.warehouse show

up: $(SETUP) ## open Airflow's UI on loopback, until Ctrl-C
	@python scripts/airflow_local.py up

test: .venv/.installed-dev $(SETUP) ## run the tests; a group alone: make test GROUP=unit
	@pytest $(if $(GROUP),-m $(GROUP)) $(ARGS)

lint: .venv/.installed-dev ## check style, types and SQL
	ruff check .
	ruff format --check .
	mypy
	sqlfluff lint --disable-progress-bar include/dbt_project/models include/dbt_project/tests

show: .venv/.installed ## show what readers see now
	@python -m include.warehouse show

snapshots: .venv/.installed ## list the kept snapshots
	@python -m include.warehouse snapshots

rollback: .venv/.installed ## make a kept snapshot what readers see: make rollback ID=...
	@python -m include.warehouse rollback '$(ID)'

shell: $(SETUP) ## a shell in which airflow, dbt and dlt see this project
	@$${SHELL:-bash}

lock: .venv/.uv ## compile requirements*.in into the hash-locked requirements*.txt
	uv pip compile -q --generate-hashes --python-version 3.11 requirements.in -o requirements.txt
	uv pip compile -q --generate-hashes --python-version 3.11 requirements-dev.in -o requirements-dev.txt

clean: ## remove the virtual environment, Airflow's state and dbt's target; the warehouse stays
	rm -rf .venv .airflow include/dbt_project/target include/dbt_project/logs

.venv/.uv:
	@echo "Setting up: virtual environment ..."
	@$(PYTHON) -m venv .venv || { echo "error: $(PYTHON) cannot make a virtual environment. On Debian: apt-get install python3.11-venv" >&2; rm -rf .venv; exit 1; }
	@python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.installed: .venv/.uv requirements.txt
	@echo "Setting up: packages ..."
	@uv pip install -q --require-hashes --compile-bytecode --python .venv/bin/python -r requirements.txt
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	@uv pip install -q --require-hashes --compile-bytecode --python .venv/bin/python -r requirements-dev.txt
	@touch $@

.airflow/.ready: .venv/.installed pools.json airflow.env
	@echo "Setting up: Airflow's metadata ..."
	@python scripts/airflow_local.py init
	@touch $@

$(MANIFEST): .venv/.installed $(DBT_FILES)
	@echo "Setting up: dbt's manifest ..."
	@cd include/dbt_project && dbt --quiet parse && touch target/manifest.json
