"""Policies for every DAG and every task."""

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from testing.project import NAME

pytestmark = pytest.mark.dags

PROJECT = Path(__file__).resolve().parents[2]
WRITER_POOL = "duckdb_writer"


@pytest.fixture(scope="module")
def tasks(dag_bag: Any) -> dict[str, Any]:
    """Every task of every DAG, by `dag.task`."""
    return {f"{dag.dag_id}.{task.task_id}": task for dag in dag_bag.dags.values() for task in dag.tasks}


@pytest.fixture(scope="module")
def pipeline(dag_bag: Any) -> Any:
    return dag_bag.dags[NAME]


def test_every_dag_file_imports_without_errors(dag_bag: Any) -> None:
    assert dag_bag.import_errors == {}
    files = {Path(dag.fileloc).resolve() for dag in dag_bag.dags.values()}
    assert files == set((PROJECT / "dags").glob("*.py"))


def test_every_dag_is_documented_and_never_catches_up(dag_bag: Any) -> None:
    for dag in dag_bag.dags.values():
        assert dag.doc_md and dag.doc_md.strip(), dag.dag_id
        assert dag.description, dag.dag_id
        assert dag.tags, dag.dag_id
        assert not dag.catchup, dag.dag_id
        assert dag.max_active_runs == 1, dag.dag_id


def test_every_param_has_a_valid_default_and_a_description(dag_bag: Any) -> None:
    for dag in dag_bag.dags.values():
        dag.params.validate()
        for name in dag.params:
            schema = dag.params.get_param(name).schema
            assert schema.get("title") and schema.get("description_md"), f"{dag.dag_id}: {name}"


def test_every_task_has_an_owner_and_a_time_limit(tasks: dict[str, Any]) -> None:
    assert [name for name, task in tasks.items() if task.owner == "airflow"] == []
    limits = {name: task.execution_timeout for name, task in tasks.items()}
    assert [name for name, limit in limits.items() if not limit or limit > timedelta(hours=1)] == []


def test_every_task_outside_dbt_is_documented(tasks: dict[str, Any]) -> None:
    # dbt nodes are documented in dbt.
    assert [name for name, task in tasks.items() if ".transform." not in name and not task.doc_md] == []


def test_the_pipeline_runs_daily_and_takes_its_params(pipeline: Any) -> None:
    assert pipeline.schedule == "@daily"
    assert pipeline.params.dump() == {"max_rejected_rows": None, "full_refresh": False}


def test_every_task_of_the_pipeline_takes_turns_in_the_writer_pool(pipeline: Any) -> None:
    outside = {task.task_id for task in pipeline.tasks if task.pool != WRITER_POOL}
    assert outside == {task.task_id for task in pipeline.tasks if task.task_id.startswith("transform.")}, (
        "they wait for the process that they share"
    )
    slots = {task.task_id: task.pool_slots for task in pipeline.tasks}
    assert {name for name, number in slots.items() if number == 1} == {
        one for one in slots if one.startswith("transform.")
    }
    assert set(slots.values()) == {1, 2}


def test_the_pools_of_all_tasks_exist(tasks: dict[str, Any]) -> None:
    pools = json.loads((PROJECT / "pools.json").read_text())
    assert {task.pool for task in tasks.values()} - {"default_pool"} <= pools.keys()
    assert pools[WRITER_POOL]["slots"] == 2


def test_every_pipeline_task_has_the_retry_policy_and_failure_alerts(pipeline: Any) -> None:
    # Compare by name: Airflow's plugin loader imports the module a second time.
    for task in pipeline.tasks:
        assert task.retries == 3, task.task_id
        assert type(task.retry_policy).__name__ == "RetryIfItHelps", task.task_id
        keeps, alerts = task.on_failure_callback
        assert (keeps.func.__name__, type(alerts).__name__) == ("_keep_error", "AlertNotifier"), task.task_id
        assert task._pre_execute_hook.func.__name__ == "before_task", task.task_id


def test_every_dbt_task_notes_what_stops_dbt(pipeline: Any) -> None:
    from include.runs import dbt_stop

    tasks = [task for task in pipeline.tasks if "dbt" in type(task).__module__ or "cosmos" in type(task).__module__]
    assert len(tasks) > 10
    for task in tasks:
        assert task._dbt_runner_callbacks == [dbt_stop.note], task.task_id


def _dbt_failed() -> Exception:
    from include.runs.dbt_results import DbtFailedError

    return DbtFailedError("unique_x: 1 failing row", "A test failed")


def _cosmos(text: str) -> Exception:
    from cosmos.exceptions import CosmosDbtRunError

    return CosmosDbtRunError(text)


def test_only_retryable_failures_are_retried(pipeline: Any) -> None:
    from airflow.sdk.definitions.retry_policy import RetryAction
    from airflow.sdk.exceptions import AirflowTaskTimeout

    from include.dlt_pipelines.files import SourceChangedError, SourceFileError
    from include.runs.dbt_stop import DbtStoppedError
    from include.warehouse.errors import DiskFullError, NotReadyError, WarehouseCorruptError, WarehouseLockedError

    retried = [
        WarehouseLockedError(""),
        DiskFullError(""),
        SourceChangedError(""),
        _cosmos("stg_orders: Runtime Error IO Error: Could not set lock on file"),
        OSError("Input/output error"),
        _cosmos("orders: Runtime Error Out of Memory Error: Failed to allocate block of 262144 bytes (bad allocation)"),
        _cosmos("dbt invocation did not complete with unhandled error: can't start new thread"),
        DbtStoppedError("MemoryError"),
    ]
    failed_at_once = [
        SourceFileError(""),
        WarehouseCorruptError(""),
        NotReadyError(""),
        _dbt_failed(),
        _cosmos("Compilation Error in model orders"),
        _cosmos("orders: Out of Memory Error: could not allocate block of size 256.0 KiB (1.9 GiB/2.0 GiB used)"),
        AirflowTaskTimeout(),
    ]
    policy = pipeline.get_task("publish").retry_policy
    for error in retried:
        assert policy.evaluate(error, 1, 4).action == RetryAction.DEFAULT, repr(error)
    for error in failed_at_once:
        assert policy.evaluate(error, 1, 4).action == RetryAction.FAIL, repr(error)


@pytest.mark.usefixtures("airflow_home")
def test_a_dag_file_need_not_name_its_orchestrator(tmp_path: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    (tmp_path / "marketing.py").write_text(
        "from elt import elt_dag, load\n"
        "with elt_dag('marketing', schedule=None, description='', pool='default_pool'):\n"
        "    load(['jaffle_shop'])\n"
    )
    assert set(DagBag(dag_folder=tmp_path).dags) == {"marketing"}


@pytest.mark.usefixtures("dag_bag")  # for its AIRFLOW_HOME
def test_serve_is_a_task_after_publish_and_rollback_only_with_a_server() -> None:
    program = (
        "import os; from airflow.dag_processing.dagbag import DagBag; bag = DagBag('dags'); "
        f"dag = bag.dags['{NAME}']; task = dag.get_task('serve'); "
        "print(bag.import_errors, task.upstream_task_ids, task.pool, task.pool_slots, "
        f"bag.dags['{NAME}_rollback'].get_task('serve').upstream_task_ids)"
    )
    env = {**os.environ, "SERVE_URL": "postgresql://nobody@127.0.0.1/none"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "{} {'publish'} default_pool 1 {'rollback'}"


@pytest.mark.usefixtures("dag_bag")  # for its AIRFLOW_HOME
def test_alerts_can_be_deleted(tmp_path: Path) -> None:
    alerts = ("plugins/alerts.py", "plugins/patches/queued_deadline.py", "include/runs/alerts.py")
    for name in ("dags", "docs", "include", "plugins"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    shutil.copy(PROJECT / "pools.json", tmp_path)
    for name in alerts:
        (tmp_path / name).unlink()
    program = (
        "from airflow.dag_processing.dagbag import DagBag; from airflow import plugins_manager as manager;"
        f"bag = DagBag('dags'); assert len(bag.dags) == 3 and not bag.import_errors, bag.import_errors;"
        f"assert not manager.get_import_errors(); dag = bag.dags['{NAME}'];"
        "assert not dag.deadline and not dag.has_on_failure_callback and not dag.has_on_success_callback;"
        "found = [(one.on_failure_callback, getattr(one, 'on_warning_callback', None)) for one in dag.tasks];"
        "print(len(found), [one for one in found if [c.func.__name__ for c in one[0]] != ['_keep_error'] or one[1]])"
    )
    env = {**os.environ, "AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path / "plugins"), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    number, callbacks = done.stdout.splitlines()[-1].split(" ", 1)
    assert int(number) > 10 and callbacks == "[]"
