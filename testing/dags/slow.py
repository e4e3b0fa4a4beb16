"""A model that would run forever, in a task with a time limit."""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG
from cosmos import ProfileConfig
from cosmos.constants import InvocationMode
from cosmos.operators.local import DbtRunLocalOperator
from retries import RetryIfItHelps
from turns import before_task

ROOT = Path(__file__).resolve().parents[2]

with DAG(dag_id="slow", schedule=None):
    DbtRunLocalOperator(
        task_id="slow",
        project_dir=ROOT / "testing" / "slow_project",
        profile_config=ProfileConfig(
            profile_name="analytics",
            target_name="duckdb",
            profiles_yml_filepath=ROOT / "include" / "dbt_project" / "profiles.yml",
        ),
        install_deps=False,
        invocation_mode=InvocationMode.DBT_RUNNER,
        execution_timeout=timedelta(seconds=20),
        retries=2,
        retry_policy=RetryIfItHelps(),
        pre_execute=before_task,
        pool="duckdb_writer",
    )
