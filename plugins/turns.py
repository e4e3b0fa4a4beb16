"""Before and after each task: turns with a warehouse, time limits that end a task's queries too, what the task cost."""

import gc
import itertools
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk.exceptions import AirflowRescheduleException
from task_secrets import fetch

from include.errors import PipelineError

TURN_SECONDS = 10

_ends_at: float | None = None  # on time.monotonic(), when this process's task reaches its time limit
_cpu_before = 0.0  # seconds of this process and its children, when its task began


def before_task(context: Any, warehouse: str | None = None) -> None:
    """Fetch secrets, select the warehouse, wait for others, and make the task's time limit cancel its queries.

    Args:
        context: as for `pre_execute`.
        warehouse: name of the task's warehouse; default the project's.

    Raises:
        As `take_turn` and `task_secrets.fetch`.
    """
    from include.warehouse.paths import use_warehouse
    from include.warehouse.targets import target

    global _cpu_before
    _cpu_before = _cpu_seconds()
    fetch()
    if warehouse:
        use_warehouse(warehouse)
    take_turn(context, is_only_writer=target().begin_turn())
    _set_time_limit(context["task"].execution_timeout)
    if os.environ.get("TASK_OF_PROCESS", "0") in ("0", "1"):  # what a process's later tasks make is to be freed
        # Cosmos collects garbage after dbt, which need not visit the DAG's objects, nor what the first of several
        # commands keeps: a twelfth of a task's time each.
        gc.freeze()


def after_task(context: Any, _result: object = None) -> None:
    """Keep what a task cost that succeeded or failed; arguments as for `post_execute`."""
    from include.runs import artifacts

    ti = context["ti"]
    artifacts.keep_cost(ti.run_id, ti.task_id, ti.try_number, _cpu_seconds() - _cpu_before)


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # user and system, of this process and of its children that have ended


def check_complete(context: Any) -> None:
    """Check that the run has each task of the DAG's files: a model may be newer than what Airflow knows of the DAG.

    Raises:
        IncompleteRunError: it has not; a retry helps, as Airflow adds the task to the run once it has read the files.
    """
    ti = context["ti"]
    known = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
    if missing := sorted(set(context["dag"].task_ids) - known.keys()):
        raise IncompleteRunError(missing)


class IncompleteRunError(PipelineError):
    """A run lacks tasks of its DAG."""

    retryable = True

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(
            f"{', '.join(tasks[:5])}: added to the project after this run began. Airflow reads the DAG every 30 "
            "seconds, and then adds the task to this run; publish tries again until then."
        )


def _set_time_limit(limit: timedelta | None) -> None:
    global _ends_at
    _ends_at = time.monotonic() + limit.total_seconds() if limit is not None else None
    if _ends_at is not None:
        # A second later, so that Airflow's own timeout comes first; resident_process.py cancels it after the task.
        timer = threading.Timer(_ends_at + 1 - time.monotonic(), _cancel_queries_since, args=(_ends_at,))
        timer.daemon = True
        timer.start()


def _cancel_queries_since(ends_at: float) -> None:
    from include.patches import dbt_cancel

    while _ends_at == ends_at:  # not when the process has gone on to another task
        dbt_cancel.cancel_queries()
        time.sleep(1)


def raise_at_time_limit() -> None:
    """Raise if the task has reached its time limit: dbt reports Airflow's timeout as a failure of its own.

    Raises:
        include.errors.TimeLimitError: it has.
    """
    from include.errors import TimeLimitError

    if _ends_at is not None and time.monotonic() >= _ends_at:
        raise TimeLimitError


def take_turn(context: Any, is_only_writer: bool) -> None:
    """Wait until no active run ahead of this one has its data in the working database, and no outside process holds it.

    A backfill's runs start in parallel with each other and with the scheduled run. The pool serializes their tasks;
    this serializes the runs: the task is rescheduled in `TURN_SECONDS` and holds no slot meanwhile. The active run that
    loaded last is ahead of all others, so one can always go on, also where two runs have loaded a source each.

    Raises:
        AirflowRescheduleException: it is another run's turn.
        include.warehouse.errors.WarehouseError: the working database cannot be opened.
    """
    from include import dbt_session
    from include.warehouse import builds
    from include.warehouse.targets import target

    ti = context["ti"]
    # Nobody to wait for: on a lake, opening it to find out would take a third of a second.
    if not is_only_writer and ti.get_dr_count(dag_id=ti.dag_id, states=["running"]) <= 1:
        return
    if dbt_session.is_first_in_line(ti.run_id):
        return
    dbt_session.close_database()  # DuckDB opens a file once in a process, with one configuration
    with target().open_working() as connection:
        newest_first = [load.run_id for load in builds.loads(connection)]
    ahead = sorted(set(itertools.takewhile(lambda run_id: run_id != ti.run_id, newest_first)))
    if not ahead:
        dbt_session.set_first_in_line(ti.run_id)
    elif ti.get_dr_count(dag_id=ti.dag_id, run_ids=ahead, states=["running"]):
        print(f"Waiting for another run to finish with the database: {', '.join(ahead)}")
        raise AirflowRescheduleException(datetime.now(UTC) + timedelta(seconds=TURN_SECONDS))  # type: ignore[no-untyped-call]
