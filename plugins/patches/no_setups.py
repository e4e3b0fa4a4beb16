"""The scheduler looks for setup tasks only in a DAG that has some.

What: `get_upstreams_only_setups` of a task finds nothing at once in a DAG without setup tasks.
Why: each time that the scheduler looks at a run, Airflow goes through all ancestors of each unfinished task to find
    setup tasks among them. That grows with the square of the models: with 800 in layers it is four fifths of a look,
    which takes seconds. On a busy machine it takes longer than `scheduler_health_check_threshold`; then the scheduler
    counts itself as dead, resets the task that it has just queued, and never starts any.
Reported: https://github.com/apache/airflow/issues/31185 (open), of looks that are too slow.
Since: Airflow 3.3.
Remove once Airflow does not walk through the ancestors of every task at each look.
"""

from collections.abc import Iterable
from functools import wraps
from inspect import unwrap
from typing import Any

from airflow._shared.dagnode.node import GenericDAGNode

_KNOWN = "_has_setups"


def apply() -> None:
    """Change Airflow in this process."""
    original = unwrap(GenericDAGNode.get_upstreams_only_setups)  # Airflow may import its local settings twice

    @wraps(original)
    def get_upstreams_only_setups(self: Any) -> Iterable[Any]:
        dag = self.get_dag()
        return original(self) if dag is None or _has_setups(dag) else ()

    GenericDAGNode.get_upstreams_only_setups = get_upstreams_only_setups  # type: ignore[method-assign]


def _has_setups(dag: Any) -> bool:
    """Return whether a DAG as the scheduler has it, in which nothing changes, has setup tasks."""
    if (known := dag.__dict__.get(_KNOWN)) is None:
        known = dag.__dict__[_KNOWN] = any(task.is_setup for task in dag.task_dict.values())
    return bool(known)
