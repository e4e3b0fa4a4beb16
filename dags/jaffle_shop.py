"""The daily pipeline: load >> transform >> publish."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task
from cosmos import DbtTaskGroup, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import ExecutionMode, InvocationMode, LoadMode, TestBehavior
from cosmos.operators.local import DbtSourceLocalOperator, DbtTestLocalOperator

DBT_PROJECT = Path(__file__).resolve().parents[1] / "include" / "dbt_project"
WRITER_POOL = "duckdb_writer"
PROFILE = ProfileConfig(
    profile_name="jaffle_shop",
    target_name=os.environ.get("DBT_TARGET", "duckdb"),
    profiles_yml_filepath=DBT_PROJECT / "profiles.yml",
)


def wait_for_writer_lock(context: object) -> None:
    """Wait, for a bounded time, until nobody outside Airflow holds the working database; dbt's own wait names nobody."""
    from include import warehouse

    warehouse.open_working().close()


def keep_dbt_results(project_dir: str, context: dict[str, Any]) -> None:
    """Keep the task's `run_results.json` among the run's artifacts, and log the rows that failed its tests."""
    from include import dbt_results

    dbt_results.tell(Path(project_dir) / "target", context["run_id"], context["ti"].task_id)


DOC = """
**CSV files → load → staging → marts, each model and its tests a task → publish.** Readers open the published database and
see nothing of a run before its `publish` task is green.

**When a task is red**: open its log, the last lines say what failed and what to do. Mend the cause, then *clear* the
task with *downstream*. Every task may be cleared at any time; no other step is needed.

| red task | usual cause | what to do |
|---|---|---|
| `load` | a source file is missing, malformed, or has rows that cannot be parsed: file, line and reason are in the log | mend the file, clear `load` |
| `source_freshness` | the raw tables are older than the sources' freshness allows | clear `load` |
| `….run` | the model's SQL failed | mend the model, clear the task |
| `….test` | the data broke an expectation: the log names the test, and how many rows | mend the source file, clear `load`; or mend the model |
| `publish` | the disk is full, or the database is locked by another process, whose PID the log names | mend that, clear `publish` |

Owner: data-platform. Readers go on with the last published snapshot; `make rollback` or the DAG `jaffle_shop_rollback`
brings an older one back.
"""

with DAG(
    dag_id="jaffle_shop",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args={
        "owner": "data-platform",
        "pool": WRITER_POOL,
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "execution_timeout": timedelta(hours=1),
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
    description="CSV files to tested, published marts",
    doc_md=DOC,
):

    @task
    def load(params: dict[str, int], run_id: str) -> dict[str, object]:
        """Replace all raw tables by what the CSV files hold, in one transaction, or none of them."""
        from airflow.sdk.exceptions import AirflowFailException

        from include.dlt_pipelines import jaffle_shop_pipeline as pipeline

        try:
            return pipeline.load(run_id, params["max_rejected_rows"])
        except pipeline.SourceFileError as error:  # a retry would read the same file again
            raise AirflowFailException(str(error)) from error

    source_freshness = DbtSourceLocalOperator(
        task_id="source_freshness",
        project_dir=str(DBT_PROJECT),
        profile_config=PROFILE,
        install_deps=False,
        invocation_mode=InvocationMode.DBT_RUNNER,
        pre_execute=wait_for_writer_lock,
        doc_md="Check that the raw tables were loaded as lately as their sources' freshness asks.",
    )

    transform = DbtTaskGroup(
        group_id="transform",
        project_config=ProjectConfig(
            dbt_project_path=DBT_PROJECT,
            manifest_path=DBT_PROJECT / "target" / "manifest.json",
            install_dbt_deps=False,
        ),
        profile_config=PROFILE,
        execution_config=ExecutionConfig(execution_mode=ExecutionMode.LOCAL, invocation_mode=InvocationMode.DBT_RUNNER),
        render_config=RenderConfig(
            load_method=LoadMode.DBT_MANIFEST,
            test_behavior=TestBehavior.AFTER_EACH,
            should_detach_multiple_parents_tests=True,
        ),
        operator_args={
            "pre_execute": wait_for_writer_lock,
            "callback": keep_dbt_results,
            "full_refresh": "{{ params.full_refresh }}",
            "should_store_compiled_sql": False,
        },
    )
    for node in transform.iter_tasks():
        if isinstance(node, DbtTestLocalOperator):
            node.retries = 0  # on the same data it would fail again

    @task
    def publish(run_id: str) -> dict[str, object]:
        """Make a snapshot of the working database what readers see, in one atomic step."""
        from include import warehouse

        snapshot = warehouse.publish(run_id)
        return {"snapshot": snapshot.id, "bytes": snapshot.size_bytes}

    load() >> source_freshness >> transform >> publish()
