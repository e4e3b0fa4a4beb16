"""Every DAG's graph matches its approved snapshot, and its ordering guarantees hold.

After an intended change: `UPDATE_SNAPSHOTS=1 pytest tests/dags/test_graphs.py`, then review the diff.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from testing.project import NAME

pytestmark = pytest.mark.dags

GRAPHS = Path(__file__).with_name("graphs")


def graph(dag: Any) -> str:
    """One line per edge; a task without edges has its own line."""
    lines = {f"{task.task_id} >> {follower}" for task in dag.tasks for follower in task.downstream_task_ids}
    lines |= {task.task_id for task in dag.tasks if not task.downstream_task_ids | task.upstream_task_ids}
    return "".join(f"{line}\n" for line in sorted(lines))


def test_every_dag_matches_its_graph_snapshot(dag_bag: Any) -> None:
    found = {f"{Path(dag.fileloc).stem}.txt": graph(dag) for dag in dag_bag.dags.values()}
    if os.environ.get("UPDATE_SNAPSHOTS"):
        GRAPHS.mkdir(exist_ok=True)
        for file in GRAPHS.glob("*.txt"):
            file.unlink()
        for name, text in found.items():
            (GRAPHS / name).write_text(text)
    assert found == {file.name: file.read_text() for file in GRAPHS.glob("*.txt")}


def test_nothing_is_published_before_every_model_and_every_test(dag_bag: Any) -> None:
    dag = dag_bag.dags[NAME]
    assert dag.get_task("publish").get_flat_relative_ids(upstream=True) == set(dag.task_ids) - {"publish"}


def test_nothing_runs_before_the_loads(dag_bag: Any) -> None:
    dag = dag_bag.dags[NAME]
    loads = {task_id for task_id in dag.task_ids if task_id.startswith("load.")}
    assert loads
    for load in loads:
        assert dag.get_task(load).get_flat_relative_ids(upstream=False) == set(dag.task_ids) - loads


def test_a_model_waits_for_the_tests_of_the_models_it_reads(dag_bag: Any) -> None:
    dag = dag_bag.dags[NAME]
    for mart in ("customers", "orders"):
        upstream = dag.get_task(f"transform.{mart}.run").get_flat_relative_ids(upstream=True)
        assert {"transform.stg_orders.test", "transform.stg_payments.test"} <= upstream, mart


def test_a_task_is_the_same_in_its_own_process(dag_bag: Any) -> None:
    """There `transform` makes only that task. It replaces a private part of Cosmos, which a new version may change."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager

    def fields(task: Any) -> dict[str, str]:
        return {name: re.sub(" at 0x[0-9a-f]+", "", repr(value)) for name, value in vars(task).items()}

    whole = dag_bag.dags[NAME]
    for task in whole.tasks:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "environ", os.environ.copy())
            with _airflow_parsing_context_manager(dag_id=NAME, task_id=task.task_id):
                dag = DagBag(dag_folder=whole.fileloc).dags[NAME]
        alone = dag.get_task(task.task_id)
        assert type(alone) is type(task) and fields(alone) == fields(task)
        dbt_tasks = [one for one in dag.tasks if hasattr(one, "project_dir") and one.task_id != "source_freshness"]
        assert [one.task_id for one in dbt_tasks] == [one for one in [task.task_id] if one.startswith("transform.")]
        assert graph(dag) == graph(whole)
