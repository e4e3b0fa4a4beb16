"""Build the types of Airflow's messages once in a process that runs several tasks.

What: `TypeAdapter` in Airflow's `task_runner` and `comms` returns the adapter that it returned before for that type.
Why: each task builds eleven, most of them for JSON, one for each of its rendered fields: a tenth of a short dbt task's
    time.
Reported: no; a process runs one task in Airflow.
Since: Airflow 3.3, task SDK 1.3.
Remove once Airflow builds them once.
"""

import functools

from airflow.sdk.execution_time import comms, task_runner
from pydantic import TypeAdapter


def apply() -> None:
    """Change Airflow in this process."""
    for module in (task_runner, comms):
        if vars(module).get("TypeAdapter") is TypeAdapter:
            vars(module)["TypeAdapter"] = functools.cache(TypeAdapter)
