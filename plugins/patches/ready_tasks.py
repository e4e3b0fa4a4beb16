"""The scheduler looks only at tasks whose parents have ended.

What: of the tasks of a run, `_get_ready_tis` and `_are_premature_tis` leave out those that wait for a parent.
Why: each time that the scheduler looks at a run, Airflow evaluates all unfinished tasks: it compares each with all
    finished ones, and searches all ancestors of each for setup tasks. That grows with the square of the models and
    more: with 800 in layers, a look takes seconds. On a busy machine it takes longer than
    `scheduler_health_check_threshold`; then the scheduler counts itself as dead, resets the task that it has just
    queued, and never starts any. A task that waits for a parent is not ready, whatever else is evaluated.
Reported: https://github.com/apache/airflow/issues/31185 (open).
Since: Airflow 3.3.
Remove once Airflow does not evaluate tasks that wait for a parent.
"""

from collections.abc import Iterable
from functools import wraps
from inspect import unwrap
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.task.trigger_rule import TriggerRule

from include.patches import fits

_KNOWN = "_parents_of_plain_tasks"


def apply() -> None:
    """Change Airflow in this process."""
    get_ready, are_premature = unwrap(DagRun._get_ready_tis), unwrap(DagRun._are_premature_tis)

    @wraps(get_ready)
    def _get_ready_tis(self: Any, schedulable_tis: list[Any], finished_tis: list[Any], session: Any) -> Any:
        return get_ready(self, without_waiting(self.get_dag(), schedulable_tis, finished_tis), finished_tis, session)

    @wraps(are_premature)
    def _are_premature_tis(self: Any, unfinished_tis: list[Any], finished_tis: list[Any], session: Any) -> Any:
        return are_premature(self, without_waiting(self.get_dag(), unfinished_tis, finished_tis), finished_tis, session)

    if fits(get_ready, "self", "schedulable_tis", "finished_tis", "session"):
        DagRun._get_ready_tis = _get_ready_tis  # type: ignore[method-assign]
    if fits(are_premature, "self", "unfinished_tis", "finished_tis", "session"):
        DagRun._are_premature_tis = _are_premature_tis  # type: ignore[method-assign, assignment]


def without_waiting(dag: Any, tis: Iterable[Any], finished: Iterable[Any]) -> list[Any]:
    """Return the task instances of a run without those of which a parent has not ended, and none has failed or skipped.

    Args:
        dag: the DAG as the scheduler has it.
        tis: task instances to choose from.
        finished: all finished task instances of the run.
    """
    parents, states = _parents(dag), {ti.task_id: ti.state for ti in finished}
    return [ti for ti in tis if ti.state is not None or not _waits(parents.get(ti.task_id, ()), states)]


def _waits(parents: Iterable[str], states: dict[str, str]) -> bool:
    found = {states.get(parent) for parent in parents}
    return None in found and found <= {None, "success"}


def _parents(dag: Any) -> dict[str, frozenset[str]]:
    """Return the parents of each task for which only their success counts, of a DAG in which nothing changes."""
    if (known := dag.__dict__.get(_KNOWN)) is None:
        tasks = dag.task_dict
        has_setups = any(task.is_setup for task in tasks.values())
        known = dag.__dict__[_KNOWN] = {
            task.task_id: frozenset(task.upstream_task_ids)
            for task in ([] if has_setups else tasks.values())
            if task.trigger_rule == TriggerRule.ALL_SUCCESS
            and not any(one.get_needs_expansion() for one in (task, *task.upstream_list))
            and not any(parent.inherits_from_skipmixin for parent in task.upstream_list)
        }
    return known  # type: ignore[no-any-return]
