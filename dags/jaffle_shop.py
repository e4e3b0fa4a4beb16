"""The daily pipeline: load >> transform >> publish."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, DeadlineAlert, Param, SyncCallback, task
from cosmos import DbtTaskGroup, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import ExecutionMode, InvocationMode, LoadMode, TestBehavior
from cosmos.operators.local import DbtSourceLocalOperator
from on_call import AlertNotifier, Queued, RetryIfItHelps, before_task

PROJECT = Path(__file__).resolve().parents[1]
DBT_PROJECT = PROJECT / "include" / "dbt_project"
MANIFEST = DBT_PROJECT / "target" / "manifest.json"
WRITER_POOL = "duckdb_writer"
PROFILE = ProfileConfig(
    profile_name="jaffle_shop",
    target_name=os.environ.get("DBT_TARGET", "duckdb"),
    profiles_yml_filepath=DBT_PROJECT / "profiles.yml",
)


def conclude_dbt(project_dir: str, context: dict[str, Any]) -> None:
    """Keep what dbt left behind, and fail with what it says of itself."""
    from include import dbt_results

    dbt_results.conclude(Path(project_dir) / "target", context["run_id"], context["ti"].task_id)


with DAG(
    dag_id="jaffle_shop",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    deadline=DeadlineAlert(
        reference=Queued(),
        interval=timedelta(hours=1),
        callback=SyncCallback(AlertNotifier, kwargs={"kind": "late"}),
    ),
    on_failure_callback=AlertNotifier("failed"),
    on_success_callback=AlertNotifier("recovered"),
    default_args={
        "owner": "data-platform",
        "pool": WRITER_POOL,
        "pre_execute": before_task,
        "retries": 3,
        "retry_policy": RetryIfItHelps(),
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": 2,
        "max_retry_delay": timedelta(minutes=5),
        "execution_timeout": timedelta(hours=1),
        "on_failure_callback": AlertNotifier("failed"),
    },
    params={
        "max_rejected_rows": Param(
            0,
            type="integer",
            minimum=0,
            title="Rejected rows to tolerate",
            description_md="Rows of the CSV files that cannot be parsed are kept in `jaffle_shop_raw.rejected_rows`. More than this many fail the load.",
        ),
        "full_refresh": Param(
            False,
            type="boolean",
            title="Full refresh",
            description_md="Build incremental models and seeds anew (`dbt --full-refresh`).",
        ),
    },
    tags=["jaffle_shop", "elt"],
    owner_links={"data-platform": "mailto:data-platform@example.com"},
    description="CSV files to tested, published marts",
    doc_md=(PROJECT / "docs" / "runbook.md").read_text(),
):

    @task
    def load(params: dict[str, int], run_id: str) -> dict[str, object]:
        """Replace all raw tables by what the CSV files hold, in one transaction, or none of them."""
        from include.dlt_pipelines import jaffle_shop_pipeline

        return jaffle_shop_pipeline.load(run_id, params["max_rejected_rows"])

    source_freshness = DbtSourceLocalOperator(
        task_id="source_freshness",
        project_dir=str(DBT_PROJECT),
        profile_config=PROFILE,
        install_deps=False,
        invocation_mode=InvocationMode.DBT_RUNNER,
        on_warning_callback=AlertNotifier("warned"),
        emit_datasets=False,
        doc_md="Check that the raw tables were loaded as lately as their sources' freshness asks.",
    )

    transform = DbtTaskGroup(
        group_id="transform",
        project_config=ProjectConfig(
            dbt_project_path=DBT_PROJECT,
            manifest_path=MANIFEST,
            install_dbt_deps=False,
        ),
        profile_config=PROFILE,
        execution_config=ExecutionConfig(execution_mode=ExecutionMode.LOCAL, invocation_mode=InvocationMode.DBT_RUNNER),
        render_config=RenderConfig(
            load_method=LoadMode.DBT_MANIFEST,
            test_behavior=TestBehavior.AFTER_EACH,
            should_detach_multiple_parents_tests=True,
            emit_datasets=False,
        ),
        operator_args={
            "callback": conclude_dbt,
            "on_warning_callback": AlertNotifier("warned"),
            "full_refresh": "{{ params.full_refresh }}",
            "should_store_compiled_sql": False,
        },
    )

    descriptions = {one["unique_id"]: one["description"] for one in json.loads(MANIFEST.read_text())["nodes"].values()}
    for dbt_task in transform.iter_tasks():
        dbt_task.doc_md = descriptions.get(dbt_task.extra_context["dbt_node_config"]["unique_id"])

    @task
    def publish(run_id: str) -> dict[str, object]:
        """Make a snapshot of the working database what readers see, in one atomic step."""
        from include import dbt_results, warehouse

        snapshot = warehouse.publish(run_id, check=lambda working: dbt_results.check_ready(working, MANIFEST))
        dbt_results.keep_manifest(MANIFEST, run_id)
        return {"snapshot": snapshot.id, "bytes": snapshot.size_bytes}

    load() >> source_freshness >> transform >> publish()
