"""What must be noticed between runs: a pool too small for its tasks, a full disk, an old backup, a scheduler gone.

With `OTEL_EXPORTER_OTLP_ENDPOINT` the pipeline's figures go where Airflow sends its own (docs/deployment.md).

A thread of the scheduler looks every `SECONDS`. Optional: without this file, nobody looks.
"""

import asyncio
import functools
import json
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

logger = logging.getLogger(__name__)

SECONDS = 20.0
HEARTBEAT_SECONDS = 60.0
_ANSWER_SECONDS = 5.0


class _Listener:
    @hookimpl
    def on_starting(self, component: Any) -> None:
        """Called as a scheduler, a triggerer or a task starts; a job does not know its type yet."""
        if type(component).__name__ == "Job":
            threading.Thread(target=Watch().forever, args=(component,), name="watch", daemon=True).start()


class Watch:
    """Looks after what a scheduler needs."""

    def __init__(self) -> None:
        """Look at nothing yet."""
        self._pinged_at = -HEARTBEAT_SECONDS
        self._disk = self._backup = ""
        self._meters: Any = None
        self._figures: dict[str, list[Any]] = {}

    def forever(self, job: Any) -> None:
        """Look again and again, if the job is a scheduler's; what goes wrong is logged."""
        while True:
            time.sleep(SECONDS)
            if job.job_type != "SchedulerJob":
                return
            for look in (fit_pools, resume_cleared, self.ping, self.check_disk, self.check_backup, self.measure):
                try:
                    look()
                except Exception as error:  # noqa: BLE001, the database may be gone for a while
                    logger.warning("%s: %s", look.__name__, type(error).__name__)

    def ping(self) -> None:
        """Tell `HEARTBEAT_URL`, where somebody else notices if nothing comes any more, that the scheduler works."""
        url = os.environ.get("HEARTBEAT_URL")
        if not url or time.monotonic() < self._pinged_at + HEARTBEAT_SECONDS:
            return
        if set(health().values()) != {"healthy"}:
            return
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS):  # noqa: S310, the operator's own
            self._pinged_at = time.monotonic()

    def check_disk(self) -> None:
        """Alert once if the warehouse's disk fills, and again after it had enough space."""
        from include.warehouse import disk

        found = disk.shortage()
        if found and not self._disk:
            logger.warning("%s", found)
            _alert(found, runbook="The disk is full")
        self._disk = found

    def check_backup(self) -> None:
        """Alert once if the last backup is older than `BACKUP_DAYS`, and again after there was a newer one."""
        from include.warehouse import backups

        found = backups.overdue()
        if found and not self._backup:
            logger.warning("%s", found)
            _alert(found, runbook="The last backup is old")
        self._backup = found

    def measure(self) -> None:
        """Take the pipeline's figures, for Airflow's exporter of metrics to send."""
        if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            return
        from task_secrets import fetch

        from include.runs.figures import figures

        fetch()
        self._figures = {}  # nothing rather than what was true before
        found: dict[str, list[Any]] = {}
        for warehouse in _warehouses():
            for one in (*figures(warehouse), *_run_figures(warehouse)):
                found.setdefault(one.name, []).append(one)
        self._figures = found
        self._register([(name, same[0].unit) for name, same in found.items()])

    def _register(self, wanted: list[tuple[str, str]]) -> None:
        """Have figures collected at each export; Airflow may have set up its exporter anew."""
        from opentelemetry import metrics

        provider = metrics.get_meter_provider()
        if self._meters is None or self._meters[0] is not provider:
            self._meters = (provider, provider.get_meter("warehouse"), set())
        _, meter, registered = self._meters
        for name, unit in wanted:
            if name not in registered:
                meter.create_observable_gauge(name, [functools.partial(self._observe, name)], unit)
                registered.add(name)

    def _observe(self, name: str, _: Any) -> Iterator[Any]:
        from opentelemetry.metrics import Observation

        return (Observation(one.value, one.labels) for one in self._figures.get(name, ()))


def _warehouses() -> list[str]:
    from airflow.models.dag import DagModel, DagTag
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(DagModel.dag_id).join(DagModel.tags).where(DagTag.name == "elt", ~DagModel.is_stale)
        return sorted(session.scalars(query))


def _run_figures(warehouse: str) -> Iterator[Any]:
    """Return how the last run that ended went, and how long each of its tasks took and what it cost."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import select

    from include.runs.figures import Figure, costs

    ended = (DagRunState.SUCCESS, DagRunState.FAILED)
    with create_session() as session:
        query = select(DagRun.run_id, DagRun.state, DagRun.start_date, DagRun.end_date)
        last = query.where(DagRun.dag_id == warehouse, DagRun.state.in_(ended), DagRun.start_date.is_not(None))
        run = session.execute(last.order_by(DagRun.end_date.desc()).limit(1)).first()
        if run is None:
            return
        own = {"warehouse": warehouse}
        yield Figure("warehouse.run.failed", int(run.state == DagRunState.FAILED), labels=own)
        yield Figure("warehouse.run.duration", (run.end_date - run.start_date).total_seconds(), "s", own)
        tasks = select(TaskInstance.task_id, TaskInstance.duration)
        for task, seconds in session.execute(
            tasks.where(TaskInstance.dag_id == warehouse, TaskInstance.run_id == run.run_id)
        ).all():
            if seconds is not None:
                yield Figure("warehouse.task.duration", seconds, "s", {**own, "task": task})
    yield from costs(warehouse, run.run_id)


def fit_pools() -> None:
    """Let tasks that wait for more slots than their pool has ask for all of them: else they would wait forever."""
    from airflow.models.pool import Pool
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select, update

    with create_session() as session:
        found = select(Pool.pool, Pool.slots, TaskInstance.task_id).join(TaskInstance, TaskInstance.pool == Pool.pool)
        waiting = (
            TaskInstance.state == TaskInstanceState.SCHEDULED,
            TaskInstance.pool_slots > Pool.slots,
            Pool.slots > 0,
        )
        for pool, slots, task in session.execute(found.where(*waiting)).all():
            logger.warning("%s asks for more slots than the pool %s has: it gets all %d", task, pool, slots)
            session.execute(
                update(TaskInstance)
                .where(TaskInstance.pool == pool, TaskInstance.pool_slots > slots)
                .where(TaskInstance.state == TaskInstanceState.SCHEDULED)
                .values(pool_slots=slots)
                .execution_options(synchronize_session=False)
            )


def resume_cleared() -> None:
    """Let cleared runs of cancelled backfills run: cancelling pauses a backfill for ever, and its runs with it."""
    from airflow.models.backfill import Backfill
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import select, true, update

    with create_session() as session:
        cleared = (
            select(Backfill.id)
            .join(DagRun, DagRun.backfill_id == Backfill.id)
            .where(Backfill.completed_at.is_not(None), Backfill.is_paused == true(), DagRun.state == DagRunState.QUEUED)
        )
        for backfill in session.scalars(cleared.distinct()).all():
            logger.info("Backfill %d was cancelled, and a run of it is cleared: it runs", backfill)
            session.execute(update(Backfill).where(Backfill.id == backfill).values(is_paused=False))


def _alert(reason: str, runbook: str) -> None:
    try:
        import alerts
    except ModuleNotFoundError:  # the file may be deleted
        return
    alerts.send("warned", reason, runbook=runbook)


async def ready(scope: Any, receive: Any, send: Any) -> None:
    """Answer 200 if the database answers and a scheduler works, else 503; for anyone, so no more than that.

    Plain ASGI: every task process imports this file, and FastAPI takes a third of a second.
    """
    if scope["type"] != "http":
        return
    found = await asyncio.to_thread(health)
    status = 200 if set(found.values()) == {"healthy"} else 503
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})


def health() -> dict[str, str]:
    """Return the state of `database` and `scheduler`, `healthy` or `gone`, within a few seconds."""
    found = {"database": "gone", "scheduler": "gone"}
    look = threading.Thread(target=_look_at, args=(found,), daemon=True)  # a lost database can hold it for minutes
    look.start()
    look.join(_ANSWER_SECONDS)
    return dict(found)


def _look_at(found: dict[str, str]) -> None:
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.utils.session import create_session

    try:
        with create_session() as session:
            job = SchedulerJobRunner.most_recent_job(session=session)
            found["database"] = "healthy"
            if job and job.is_alive():
                found["scheduler"] = "healthy"
    except Exception as error:  # noqa: BLE001, any error of the database
        logger.warning("The database does not answer: %s", type(error).__name__)


class WatchPlugin(AirflowPlugin):
    """Registers the listener and the readiness URL."""

    name = "watch"
    listeners = [_Listener()]  # noqa: RUF012, an instance variable of the base class
    fastapi_apps = [{"app": ready, "url_prefix": "/ready", "name": "Readiness"}]  # noqa: RUF012
