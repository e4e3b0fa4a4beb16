"""What an alert says, and which failures the person on call has been told of: plain text, for any messenger."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from include import warehouse
from include.errors import PipelineError

log = logging.getLogger(__name__)

_LONGEST = 1500  # characters of a reason; messengers cut or refuse long texts
_TITLES = {
    "failed": "failed",
    "warned": "passed with warnings",
    "late": "is late",
    "recovered": "has recovered",
}


@dataclass(frozen=True)
class Alert:
    """One thing to tell.

    Attributes:
        kind: failed, warned, late or recovered.
        dag_id: the DAG.
        run_id: its run.
        task_id: the task, where it is about one.
        tries: such as `2 of 4`, where it is about a task.
        reason: what happened, in one line or a few.
        runbook: the title of the runbook's section that helps.
        link: where to look: the task's log, or the run.
    """

    kind: str
    dag_id: str
    run_id: str
    reason: str
    link: str
    task_id: str = ""
    tries: str = ""
    runbook: str = "What to do first"

    def title(self) -> str:
        """Return the subject line."""
        return f"{self.dag_id} {_TITLES[self.kind]}{f': {self.task_id}' if self.task_id else ''}"

    def body(self) -> str:
        """Return the text below it."""
        about = [f"DAG {self.dag_id}"]
        if self.task_id:
            about.append(f"task {self.task_id}")
        about.append(f"run {self.run_id}")
        if self.tries:
            about.append(f"try {self.tries}")
        lines = [self.reason[:_LONGEST], "", " · ".join(about), f"Readers see: {_readers_see()}", f"Log: {self.link}"]
        if self.kind != "recovered":
            lines.append(f'Runbook: "{self.runbook}" in docs/runbook.md, also on the DAG\'s page under Dag Docs')
        return "\n".join(lines)


def reason(exception: BaseException | str | None) -> tuple[str, str]:
    """Return what an exception says for an alert, and the title of the runbook's section for it."""
    if isinstance(exception, PipelineError):
        return str(exception), exception.runbook
    if exception is None:
        return "The task was stopped from outside, or its process died.", "A task was killed"
    name = "" if isinstance(exception, str) else f"{type(exception).__name__}: "
    text = f"{name}{exception}".strip()
    return text, "A task ran into its time limit" if "Timeout" in text else Alert.runbook


def tell_once(alert: Alert, since: datetime | None) -> bool:
    """Write down that a failure is being told, and return whether it has to be.

    A failed run is told with its failed task, and a second time only where it failed in no task or where the task's
    process died before it could tell.

    Args:
        alert: the failure.
        since: when the run began, or began again after it was cleared.
    """
    now = datetime.now(UTC)
    started = since or now - timedelta(days=1)
    try:
        with _told(alert.dag_id) as told:
            known = [
                entry["task_id"]
                for entry in told
                if entry["kind"] == alert.kind
                and entry["run_id"] == alert.run_id
                and datetime.fromisoformat(entry["at"]) >= started
            ]
            if alert.task_id in known or "" in known or (known and not alert.task_id):
                return False
            told.append({"kind": alert.kind, "run_id": alert.run_id, "task_id": alert.task_id, "at": now.isoformat()})
    except OSError as error:  # rather twice than not at all, as when the disk is full
        log.warning("Cannot write down that an alert was sent: %s", error)
    return True


def recovered(dag_id: str, ended: datetime | None) -> str | None:
    """Forget the failures of a DAG that a green run ends and return what they were in one line, or None without any.

    Args:
        dag_id: the DAG.
        ended: the end of the green run. Airflow can tell of it half a minute late, when the next run has failed.
    """
    ended = ended or datetime.now(UTC)
    with _told(dag_id) as told:
        over = [entry for entry in told if datetime.fromisoformat(entry["at"]) <= ended]
        if not over:
            return None
        first = over[0]
        told[:] = [entry for entry in told if entry not in over]
    where = f" at {first['task_id']}" if first["task_id"] else ""
    return f"Run {first['run_id']} was {'late' if first['kind'] == 'late' else f'red{where}'}; this run is green."


@contextmanager
def _told(dag_id: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the open failures of a DAG for change; tasks and the dag-processor come here at the same time."""
    path = warehouse.warehouse_dir() / "alerts" / f"{dag_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            told = json.load(file)
        except json.JSONDecodeError:  # new, or cut short by a full disk
            told = []
        yield told
        file.seek(0)
        file.truncate()
        json.dump(told[-100:], file)


def _readers_see() -> str:
    try:
        snapshot = warehouse.published_snapshot()
    except (warehouse.WarehouseError, OSError) as error:
        return f"cannot tell: {error}"
    if snapshot is None:
        return "nothing yet: no run has published"
    hours = (datetime.now(UTC) - snapshot.created_at).total_seconds() / 3600
    age = f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"
    return f"snapshot {snapshot.id}, made {snapshot.created_at:%Y-%m-%d %H:%M} UTC, {age} ago"
