"""Let Cosmos make only the task that its process runs; the others are empty.

What: `create_airflow_task` in `cosmos.airflow.graph`, while a task group is made in a task's process.
Why: each task's process parses the DAG. Making all tasks of dbt would take half of that.
Reported: https://github.com/astronomer/astronomer-cosmos/issues/2857 (closed); Cosmos's advice is to skip whole DAGs.
Since: Cosmos 1.15.
Remove once Cosmos makes only the task that `get_parsing_context()` names.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TaskGroup, get_parsing_context
from cosmos.airflow import graph

from include.patches import fits


@contextlib.contextmanager
def only_this_task() -> Iterator[None]:
    """Make only the task of this process, if it is one of the group that is made within."""
    make, wanted = graph.create_airflow_task, get_parsing_context().task_id

    def create(task: Any, dag: DAG, task_group: TaskGroup) -> Any:
        if task_group.child_id(task.id) == wanted:  # type: ignore[no-untyped-call]
            return make(task, dag, task_group)
        return EmptyOperator(task_id=task.id, dag=dag, task_group=task_group)

    # In each process, so that what does not fit is seen where the DAG is parsed, and not by tasks alone.
    if fits(make, "task", "dag", "task_group") and wanted:
        graph.create_airflow_task = create
    try:
        yield
    finally:
        graph.create_airflow_task = make
