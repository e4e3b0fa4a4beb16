"""The pipeline on stock Cosmos and Airflow, in the execution mode set by BENCH_EXECUTION_MODE."""

import os
from datetime import UTC, datetime

from airflow.sdk import DAG, task
from cosmos import DbtTaskGroup, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import ExecutionMode, LoadMode
from cosmos.operators.local import DbtSourceLocalOperator

from include.runs.manifest import current
from include.settings import REPOSITORY_ROOT, tasks_at_once, warehouse_name

DBT_PROJECT = REPOSITORY_ROOT / "include" / "dbt_project"
PROFILE = ProfileConfig(
    profile_name="analytics", target_name="duckdb", profiles_yml_filepath=DBT_PROJECT / "profiles.yml"
)
MODE = ExecutionMode(os.environ["BENCH_EXECUTION_MODE"])
# DuckDB allows one writer. In WATCHER mode only the producer opens the database; its sensors need no slot.
WRITER = {"pool": "duckdb_writer", "pool_slots": tasks_at_once("duckdb_writer")}

with DAG(dag_id=warehouse_name(), schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):

    @task(**WRITER)
    def load(run_id: str) -> None:
        from include.dlt_pipelines.load import find_source
        from include.dlt_pipelines.load import load as load_source

        load_source(find_source("jaffle_shop"), run_id)

    source_freshness = DbtSourceLocalOperator(
        task_id="source_freshness",
        project_dir=str(DBT_PROJECT),
        profile_config=PROFILE,
        install_deps=False,
        **WRITER,
    )

    transform = DbtTaskGroup(
        group_id="transform",
        project_config=ProjectConfig(
            dbt_project_path=DBT_PROJECT, manifest_path=current().manifest, install_dbt_deps=False
        ),
        profile_config=PROFILE,
        execution_config=ExecutionConfig(execution_mode=MODE),
        render_config=RenderConfig(load_method=LoadMode.DBT_MANIFEST, should_detach_multiple_parents_tests=True),
        operator_args=WRITER if MODE is ExecutionMode.LOCAL else {},
    )

    @task(**WRITER)
    def publish(run_id: str) -> None:
        from include.warehouse.targets import target

        target().publish(run_id, lambda _: None)

    load() >> source_freshness >> transform >> publish()
