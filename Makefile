# `make help` lists the commands.
SETTINGS := $(shell sed -n 's/^\([A-Z_]*\)=.*/\1/p' airflow.env)
# What the caller has exported wins.
$(foreach name,$(SETTINGS),$(if $(filter environment,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
# A compose deployment goes by its .env and by what the caller has exported, not by what is exported below.
DEPLOYED := env $(foreach name,$(SETTINGS) AIRFLOW_HOME AIRFLOW__CORE__DAGS_FOLDER AIRFLOW__CORE__PLUGINS_FOLDER DBT_TARGET DLT_PROJECT_DIR PYTHONPATH WAREHOUSE_DIR,$(if $(filter undefined,$(origin $(name))),-u $(name)))
include airflow.env
export AIRFLOW_HOME ?= $(CURDIR)/.airflow
$(if $(word 2,$(WAREHOUSE_DIR)),$(error WAREHOUSE_DIR may have letters, digits and . _ - + @ ~ / only, not spaces))
# As include/settings.py: also if it is set, but empty.
export DBT_TARGET := $(or $(DBT_TARGET),duckdb)
export WAREHOUSE_DIR := $(abspath $(or $(WAREHOUSE_DIR),data))
# The warehouse of another DAG: make show WAREHOUSE=marketing
ifneq ($(filter-out $(WAREHOUSE_NAME),$(WAREHOUSE)),)
  WAREHOUSE_DIR := $(WAREHOUSE_DIR)/$(WAREHOUSE)
  override WAREHOUSE_NAME := $(WAREHOUSE)
endif
export AIRFLOW__CORE__DAGS_FOLDER := $(CURDIR)/dags
export AIRFLOW__CORE__PLUGINS_FOLDER := $(CURDIR)/plugins
export DLT_PROJECT_DIR := $(CURDIR)/include/dlt_pipelines
export PYTHONPATH := $(CURDIR)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export $(SETTINGS)
# What users give is data: recipes read it from their environment, where neither make nor a shell expands it.
define given
  override $(1) := $$(value $(1))
  export $(1)
endef
$(foreach name,FILES CSV NAME HEADER CONF ID DIR ENV_FILE BI_HOME A B MD HTML JSON BASE OUT ROWS NOTE DAYS KEEP PROJECT,$(if $(filter-out undefined,$(origin $(name))),$(eval $(call given,$(name)))))
# Where Python may not keep bytecode, each task compiles plugins/ again.
unexport MAKEFLAGS MAKELEVEL PYTHONDONTWRITEBYTECODE

PYTHON ?= python3.11
MANIFEST := include/dbt_project/target/pipeline/$(or $(DBT_TARGET),duckdb)/manifest.json
DBT_FILES := $(shell find include/dbt_project include/dbt_warehouse \( -name target -o -name logs -o -name dbt_packages \) -prune -o -type f ! -name package-lock.yml -print)
# Packages of the dbt project, if it has any.
DBT_DEPS := if [ -e packages.yml ] || [ -e dependencies.yml ]; then dbt --quiet deps; fi
SETUP := .venv/.installed $(AIRFLOW_HOME)/.ready $(MANIFEST)
# What adds to requirements.txt, each with a lock of what it adds; the other locks are for environments of their own.
PARTS := $(patsubst requirements/%.in,%,$(shell grep -l '^-c' requirements/*.in))
NEXT_ENVS := .venv-next .venv-next-dbt
CONFORMANCE := tests/unit/test_builds.py $(patsubst %,tests/integration/test_%.py,build_graph sources drop_folder gate preview restore)
BENCH_NEEDS := $(if $(filter-out run load,$(PART)),,.venv-peers/.installed)
BENCH_NEEDS += $(if $(filter-out run,$(PART)),,.venv-sqlmesh/.installed)
BENCH_NEEDS += $(if $(filter-out targets sizes,$(PART)),,.venv/.installed-targets .venv/.installed-workers)
BENCH_NEEDS += $(if $(filter-out spark,$(PART)),,.venv/.installed-targets .venv-sail/.installed)

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\#.*/\1/p' Makefile) $(PARTS:%=setup-%)
help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p; s/^#: /  make /p' $(MAKEFILE_LIST) | expand -t 26

run: $(SETUP) ## run the pipeline once and show the result
	@python scripts/airflow_local.py run --conf $(if $(CONF),"$$CONF",'{}')
	@python -m include.warehouse show

up: $(SETUP) ## run Airflow on loopback until Ctrl-C
	@python scripts/airflow_local.py up

bi: .venv-bi/.installed ## serve dashboards on what is published, with Apache Superset, on loopback until Ctrl-C
	@test -e "$$WAREHOUSE_DIR/published/$$WAREHOUSE_NAME.duckdb" || { echo "error: nothing is published as $$WAREHOUSE_DIR/published/$$WAREHOUSE_NAME.duckdb yet: make run" >&2; exit 1; }
	@env -u PYTHONPATH BI_HOME="$${BI_HOME:-$$PWD/.bi}" .venv-bi/bin/python bi/serve.py

test: .venv/.installed-dev $(SETUP) ## run the tests; a single group: make test GROUP=unit
	@pytest $(if $(GROUP),-m '$(GROUP) and not long',-m 'not chaos and not long and not bi' -n 3 --dist loadfile --no-loadscope-reorder) $(ARGS)

test-long: .venv/.installed-dev $(SETUP) ## run the tests that `make test` leaves out to stay short (20 to 35 minutes)
	@pytest -m long -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-forks: .venv/.installed-dev $(SETUP) ## run the tests of a running Airflow with a process for each task, and not one for many
	@TASKS_PER_PROCESS=1 pytest tests/e2e/test_on_call.py tests/e2e/test_pipeline.py -n0 $(ARGS)

test-targets: .venv/.installed-dev .venv/.installed-targets .venv/.installed-workers .venv/.installed-aws .venv/.installed-sso .venv-moto/.installed $(SETUP) ## run the tests of load and publish on every target, of workers, and of what needs packages: secrets, single sign-on
	@for target in encrypted ducklake ducklake-s3 postgres; do echo "$$target:"; pytest -n 2 --dist loadfile --target $$target $(CONFORMANCE) $(ARGS) || exit 1; done; pytest tests/e2e/test_workers.py tests/unit/test_landing.py tests/integration/test_deliveries.py tests/e2e/test_secrets.py tests/ui/test_sso.py $(ARGS)

test-next: .venv-next$(NEXT:%=-%)/.installed $(SETUP) ## run the tests of the file target with the next DuckDB, of which there are no extensions yet; with the next dbt: make test-next NEXT=dbt
	@PATH="$(CURDIR)/.venv-next$(NEXT:%=-%)/bin:$$PATH" pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not long' -k 'not encrypted and not test_a_server' \
	    $(patsubst %,--ignore=tests/integration/test_%.py,ducklake encryption postgres serve servers) $(or $(ARGS),tests/unit tests/integration tests/e2e)

test-clouds: .venv/.installed-dev .venv/.installed-snowflake .venv/.installed-bigquery .venv-emulator/.installed .venv-bqemulator/.installed .venv-sail/.installed .venv-moto/.installed $(SETUP) ## test BigQuery and Snowflake on emulators; build the models on a distributed engine
	@pytest tests/integration/test_clouds.py tests/integration/test_spark.py tests/integration/test_remote.py $(ARGS)
	@for target in bigquery snowflake; do pytest -n 2 --dist loadfile --target $$target $(CONFORMANCE) $(ARGS) || exit 1; done
	@pytest tests/e2e/test_every_node_type.py -k 'bigquery or snowflake' $(ARGS)

test-bi: .venv/.installed-dev .venv-bi/.installed $(SETUP) ## run the tests of the dashboards
	@pytest -m bi $(ARGS)

chaos: .venv/.installed-dev $(if $(TARGET),.venv/.installed-targets) $(if $(CHAOS_WORKERS),.venv/.installed-workers) $(SETUP) ## break a running Airflow 100 times: make chaos [CHAOS_FAULTS=100] [TASKS_PER_PROCESS=1] [CHAOS_RUNS=1] [CHAOS_SEED=1] [TARGET=ducklake-s3 [CHAOS_WORKERS=2]]
	@CHAOS_FAULTS=$(or $(CHAOS_FAULTS),100) CHAOS_RUNS=$(or $(CHAOS_RUNS),1) CHAOS_SEED=$(or $(CHAOS_SEED),1) CHAOS_WORKERS=$(or $(CHAOS_WORKERS),0) pytest -m chaos -q --target $(or $(TARGET),duckdb) $(ARGS)

attack: .venv/.installed-dev ## parse hundreds of odd CSV files: make attack [CSV_ATTACK_CASES=10] [CSV_ATTACK_SEED=1]
	@CSV_ATTACK_CASES=$(or $(CSV_ATTACK_CASES),10) CSV_ATTACK_SEED=$(or $(CSV_ATTACK_SEED),1) pytest -q tests/unit/test_csv_attack.py $(ARGS)

lint: .venv/.installed-dev ## check style, types and SQL
	ruff check .
	ruff format --check .
	mypy
	sqlfluff lint --disable-progress-bar include/dbt_project/models include/dbt_project/tests

new-source: .venv/.installed ## add files as a source: make new-source FILES=path/to/stores.csv [NAME=...] [HEADER=no] [PREVIEW=1]
	@test -n "$$FILES$$CSV" || { echo "error: no file given: make new-source FILES=path/to/stores.csv" >&2; exit 1; }
	@python scripts/new_source.py "$${FILES:-$$CSV}" $(if $(NAME),--name "$$NAME") $(if $(HEADER),--header "$$HEADER") $(if $(PREVIEW),--preview)

adopt: .venv/.installed ## replace the sample shop by a dbt project of yours: make adopt PROJECT=/path/to/dbt_project
	@test -n "$$PROJECT" || { echo "error: no project given: make adopt PROJECT=/path/to/dbt_project" >&2; exit 1; }
	@python scripts/adopt.py "$$PROJECT"

remove-sample: .venv/.installed ## remove the sample shop, to start empty
	@python scripts/adopt.py --remove-sample

show: .venv/.installed ## show what readers see now
	@python -m include.warehouse show

releases: .venv/.installed ## list the kept releases
	@python -m include.warehouse releases

preview: .venv/.installed ## build what differs from the published release in a scratch, test and compare it: make preview [BASE=release|file] [FULL=1] [MD=file] [HTML=file] [JSON=file]
	@(cd include/dbt_project && $(DBT_DEPS)) && python -m include.change preview $(if $(BASE),--base "$$BASE") $(if $(FULL),--full) $(if $(MD),--markdown "$$MD") $(if $(HTML),--html "$$HTML") $(if $(JSON),--json "$$JSON")

previews: .venv/.installed ## list the kept previews, and remove those older than three days: make previews [DAYS=3]
	@python -m include.change previews $(if $(DAYS),--days "$$DAYS")

sample: .venv/.installed ## write a masked sample of what is published, for developers and CI: make sample OUT=file [BASE=release|file] [ROWS=10000]
	@test -n "$$OUT" || { echo "error: no file given: make sample OUT=sample.duckdb" >&2; exit 1; }
	@(cd include/dbt_project && $(DBT_DEPS)) && python -m include.change sample "$$OUT" $(if $(BASE),--base "$$BASE") $(if $(ROWS),--rows "$$ROWS")

diff: .venv/.installed ## compare two releases or files to the row: make diff [A=release|file] [B=release|file] [MD=file] [HTML=file] [JSON=file]
	@python -m include.change diff $(if $(A),"$$A") $(if $(B),"$$B") $(if $(MD),--markdown "$$MD") $(if $(HTML),--html "$$HTML") $(if $(JSON),--json "$$JSON")

snapshots: releases # the old name, for one version
	@echo "make snapshots is now make releases; the next version drops the old name" >&2

rollback: .venv/.installed ## say what changes, switch readers to a kept release and hold it: make rollback ID=...
	@python -m include.change rollback "$$ID"

approve: .venv/.installed ## show readers the release that waits for approval: make approve ID=... NOTE="why"
	@python -m include.change approve "$$ID" "$$NOTE"

refuse: .venv/.installed ## remove the release that waits for approval: make refuse ID=... NOTE="why"
	@python -m include.change refuse "$$ID" "$$NOTE"

release-hold: .venv/.installed ## let runs publish again after a rollback
	@python -m include.warehouse release-hold

failures: .venv/.installed ## show the rows that failed dbt tests
	@python -m include.runs failures

restore: .venv/.installed ## replace a damaged working database with a release: make restore [ID=...]
	@python -m include.warehouse restore $(if $(ID),"$$ID")

env: ## generate the secrets for docker compose into .env
	@python3 deploy/env.py generate "$${ENV_FILE:-.env}"

secret-files: ## move the secrets from .env into files, hidden from docker inspect
	@python3 deploy/env.py to-files "$${ENV_FILE:-.env}"

stop: ## stop the compose deployment; docker compose up -d starts it again
	@$(DEPLOYED) python3 -m deploy.compose stop "$${ENV_FILE:-.env}"

upgrade: ## build what is checked out, and put it in the place of the running compose deployment
	@$(DEPLOYED) python3 -m deploy.compose upgrade "$${ENV_FILE:-.env}"

backup: ## back up the running compose deployment: make backup DIR=...; into a dated folder in DIR, keeping the latest: KEEP=7
	@test -n "$$DIR" || { echo "error: no DIR given: make backup DIR=..." >&2; exit 1; }
	@$(DEPLOYED) python3 -m deploy.backup save "$$DIR" "$${ENV_FILE:-.env}" $(if $(KEEP),"$$KEEP")

restore-backup: ## replace the compose deployment's data with a backup: make restore-backup DIR=...
	@test -n "$$DIR" || { echo "error: no DIR given: make restore-backup DIR=..." >&2; exit 1; }
	@$(DEPLOYED) python3 -m deploy.backup restore "$$DIR" "$${ENV_FILE:-.env}"

compose-test: ## build the image and test the whole deployment, alongside a running one (12 to 20 minutes)
	@python3 -m tests.compose_deployment

bench: .venv/.installed-dev $(SETUP) $(BENCH_NEEDS) ## benchmark the project against its peers; one part: make bench PART=load ARGS=--help
	@python -m benchmarks $(PART) $(ARGS)

bench-report: .venv/.installed-dev ## regenerate docs/performance.md from benchmarks/results
	@python -m benchmarks report

shell: $(SETUP) ## open a shell set up for airflow, dbt and dlt
	@$${SHELL:-bash}

lock: .venv/.uv ## compile requirements.in and requirements/*.in into files with hashes; versions stay, except with ARGS=--upgrade
	@for name in requirements $(basename $(wildcard requirements/*.in)); do \
	    skip=; case $$name in requirements/next*) skip=--no-deps;; esac; if grep -q '^-c' $$name.in; then skip=$$(sed -n 's/^\([a-z0-9._-]*\).*==.*/--no-emit-package=\1/p' requirements.txt); fi; \
	    uv pip compile -q --generate-hashes --python-version 3.11 --custom-compile-command 'make lock' $(ARGS) $$skip $$name.in -o $$name.txt \
	    && sed -i '/^# The following packages were excluded/,$$d' $$name.txt || exit 1; \
	done

clean: ## remove the virtual environment, Airflow's state and dbt's target; the warehouse stays
	rm -rf .venv .venv-peers .venv-sqlmesh .venv-bi .venv-emulator .venv-bqemulator $(NEXT_ENVS) .venv-sail .venv-moto .airflow .bench .previews include/dbt_project/target include/dbt_project/logs

.venv/.uv: requirements/uv.txt
	@echo "Setting up: virtual environment ..."
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv || { echo "error: $(PYTHON) cannot create a virtual environment. On Debian: apt-get install python3.11-venv" >&2; rm -rf .venv; exit 1; }
	@python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

.venv/.installed: .venv/.uv requirements.txt
	@echo "Setting up: packages ..."
	@uv pip install -q --require-hashes --compile-bytecode --python .venv/bin/python -r requirements.txt
	@touch $@

$(PARTS:%=.venv/.installed-%): .venv/.installed-%: .venv/.installed requirements/%.txt
	@uv pip install -q --require-hashes --compile-bytecode --python .venv/bin/python -r requirements.txt -r requirements/$*.txt
	@touch $@

$(NEXT_ENVS:%=%/.installed): .venv-%/.installed: .venv/.uv requirements.txt requirements/dev.txt requirements/%.txt
	@echo "Setting up: an environment of its own, .venv-$* ..."
	@$(PYTHON) -m venv .venv-$*
	@uv pip install -q --require-hashes --compile-bytecode --python .venv-$*/bin/python -r requirements.txt -r requirements/dev.txt
	@uv pip install -q --require-hashes --no-deps --python .venv-$*/bin/python -r requirements/$*.txt
	@touch $@

.venv-%/.installed: .venv/.uv requirements/%.txt
	@echo "Setting up: an environment of its own, .venv-$* ..."
	@$(PYTHON) -m venv .venv-$*
	@uv pip install -q --require-hashes --compile-bytecode --python .venv-$*/bin/python -r requirements/$*.txt
	@touch $@

#: setup-NAME	install an optional part: ducklake, postgres, serve, mcp, metrics, dataframes, workers, aws, sso, snowflake or bigquery
$(PARTS:%=setup-%): setup-%: .venv/.installed-%

$(AIRFLOW_HOME)/.ready: .venv/.installed pools.json airflow.env
	@echo "Setting up: Airflow's metadata ..."
	@python scripts/airflow_local.py init
	@touch $@

$(MANIFEST): .venv/.installed $(DBT_FILES)
	@echo "Setting up: dbt's manifest ..."
	@(cd include/dbt_project && $(DBT_DEPS)) && python -m include.runs.manifest && touch $@
