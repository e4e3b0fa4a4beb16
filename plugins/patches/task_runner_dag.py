"""Parse a DAG file once in a process that runs several of its tasks.

What: `task_runner.parse` finds a DAG file that this process has parsed, and gives each task a copy of its operator.
Why: Airflow parses the DAG file for each task: a fifth of a short dbt task's time, and more with more models.
Reported: no; a process runs one task in Airflow.
Since: Airflow 3.3, task SDK 1.3.
Remove once Airflow runs several tasks in a process.
"""

import copy
import os
from typing import Any

from airflow.dag_processing import dagbag
from airflow.sdk.execution_time import task_runner

from include.patches import fits

_PARSING_CONTEXT = "_AIRFLOW_PARSING_CONTEXT_"


def apply() -> None:
    """Change Airflow in this process. Whoever calls it ends the process when a file that the DAG reads has changed."""
    parse, make = task_runner.parse, dagbag.BundleDagBag
    if not fits(parse, "what", "log"):
        return
    parsed: dict[str, Any] = {}

    def find(*words: Any, **options: Any) -> Any:
        key = repr((words, options))
        if key not in parsed:
            # It names the task that is to run: cosmos_one_task.py would make no other.
            context = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PARSING_CONTEXT)}
            try:
                parsed[key] = make(*words, **options)
            finally:
                os.environ.update(context)
        return parsed[key]

    def parse_once(what: Any, log: Any) -> Any:
        instance = parse(what, log)
        task: Any = instance.task  # rendering its templates and running it change it
        instance.task = copy.deepcopy(task, {id(one): one for one in (task.dag, task.task_group)})
        return instance

    dagbag.BundleDagBag, task_runner.parse = find, parse_once  # type: ignore[misc, assignment]
