"""The pipeline's last runs: states and times from Airflow's metadata, rows from the runs' artifacts."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import select
from sqlalchemy.orm import Session

from include.runs import artifacts
from warehouse_ui.access import dag_id

RUNS = 90


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Attributes:
        state: Airflow's: queued, running, success, failed.
        stage: where it failed: load, model, test, publish or other; empty if it did not fail.
        published: false only for a green run whose `publish` was marked as success.
        seconds: from start to end, or until now.
        rows: rows loaded by table; empty if the load left no summary.
        rejected: rows rejected by table.
    """

    run_id: str
    state: str
    kind: str
    started_by: str
    started_at: datetime | None
    seconds: float | None
    stage: str
    failed_tasks: tuple[str, ...]
    rows: dict[str, int]
    rejected: dict[str, int]
    published: bool = True

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ("success", "failed")

    @property
    def is_green(self) -> bool:
        """Whether it succeeded, and readers got what it built."""
        return self.state == "success" and self.published


def last_runs(session: Session, limit: int = RUNS) -> list[Run]:
    """Return the last runs, newest first, using two queries regardless of their number."""
    found: Any = session.execute(
        select(
            DagRun.run_id,
            DagRun.state,
            DagRun.run_type,
            DagRun.triggering_user_name,
            DagRun.start_date,
            DagRun.end_date,
        )
        .where(DagRun.dag_id == dag_id())
        .order_by(DagRun.id.desc())  # as created: a backfill's runs are for earlier dates
        .limit(limit)
    ).all()
    failed: dict[str, list[str]] = {}
    published = set()
    tasks: Any = session.execute(
        select(TaskInstance.run_id, TaskInstance.task_id, TaskInstance.state)
        .where(
            TaskInstance.dag_id == dag_id(),
            TaskInstance.run_id.in_([run_id for run_id, *_ in found]),
            (TaskInstance.state == "failed") | (TaskInstance.task_id == "publish"),
        )
        .order_by(TaskInstance.end_date)
    )
    for run_id, task_id, state in tasks:
        if state == "failed":
            failed.setdefault(run_id, []).append(task_id)
        # A release that waits for approval leaves the task skipped.
        elif state != "success" or artifacts.was_published(run_id):
            published.add(run_id)
    return [
        replace(
            _run(run_id, str(state), str(kind), user or "", start, end, tuple(failed.get(run_id, ()))),
            published=state != "success" or run_id in published,
        )
        for run_id, state, kind, user, start, end in found
    ]


def in_progress(session: Session, dags: Collection[str]) -> bool:
    """Return whether any run of some DAGs is queued or running."""
    going = select(DagRun.id).where(DagRun.dag_id.in_(dags), DagRun.state.in_(("queued", "running"))).limit(1)
    return session.scalar(going) is not None


def _run(
    run_id: str,
    state: str,
    kind: str,
    user: str,
    start: datetime | None,
    end: datetime | None,
    failed: tuple[str, ...],
) -> Run:
    loads = artifacts.loads_of(run_id)
    tables = [(name, table, load.error) for load in loads for name, table in load.tables.items()]
    rows = {name: table.rows_loaded for name, table, error in tables if not error}
    rejected = {name: table.rows_rejected for name, table, _ in tables}
    seconds = ((end or datetime.now(UTC)) - start).total_seconds() if start else None
    stage = _stage(failed[0]) if failed else ("other" if state == "failed" else "")
    return Run(run_id, state, kind, user, start, seconds, stage, failed, rows, rejected)


def _stage(task_id: str) -> str:
    if task_id == "publish" or task_id.startswith("load."):
        return task_id.split(".")[0]
    if task_id.endswith((".run", "_run", ".seed", "_seed", ".snapshot", "_snapshot")):
        return "model"
    return "test" if task_id.endswith(("test", "freshness")) else "other"
