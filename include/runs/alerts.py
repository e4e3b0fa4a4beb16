"""Alert texts, and the open failures already alerted on. Plain text, so any messenger can show it."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from include.masking import mask
from include.warehouse import paths
from include.warehouse.targets import target

logger = logging.getLogger(__name__)

_LONGEST = 1500  # characters of a reason; messengers cut or refuse long texts
Kind = Literal["failed", "warned", "waits", "late", "recovered"]
FAILURES: tuple[Kind, ...] = ("failed", "late")  # alerted once, until a run is green
_TITLES: dict[Kind, str] = {
    "failed": "failed",
    "warned": "passed with warnings",
    "waits": "waits for approval",
    "late": "is late",
    "recovered": "has recovered",
}


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        kind: what happened.
        dag_id: the DAG.
        run_id: the run.
        task_id: the task, if the alert is about one.
        tries: such as `2 of 4`, if the alert is about a task.
        reason: what happened, in a few lines at most.
        runbook: title of the runbook section to read.
        link: URL of the task log, or of the run.
        page: URL of the incident page, if there is one.
    """

    kind: Kind
    dag_id: str
    run_id: str
    reason: str
    link: str
    task_id: str = ""
    tries: str = ""
    runbook: str = "What to do first"
    page: str = ""

    def title(self) -> str:
        """Return the subject line."""
        return f"{self.dag_id} {_TITLES[self.kind]}{f': {self.task_id}' if self.task_id else ''}"

    def body(self) -> str:
        """Return the text below the subject line."""
        about = [f"DAG {self.dag_id}"]
        if self.task_id:
            about.append(f"task {self.task_id}")
        if self.run_id:
            about.append(f"run {self.run_id}")
        if self.tries:
            about.append(f"try {self.tries}")
        lines = [
            mask(self.reason)[:_LONGEST],
            "",
            " · ".join(about),
            f"Readers see: {_describe_published()}",
            *([f"Incident: {self.page}"] if self.page else []),
            f"Log: {self.link}",
        ]
        if self.kind != "recovered":
            lines.append(f'Runbook: "{self.runbook}" in docs/runbook.md, also on the DAG\'s page under Dag Docs')
        return "\n".join(lines)


def should_send(alert: Alert, since: datetime | None) -> bool:
    """Record a failure as alerted and return whether the alert still has to be sent.

    The alert for a failed task covers its run. A failed run gets its own alert only if no task failed, or the task's
    process died before it could send one.

    Args:
        alert: the failure.
        since: when the run started, or restarted after being cleared.
    """
    now = datetime.now(UTC)
    started = since or now - timedelta(days=1)
    try:
        with _open_failures(alert.dag_id) as failures:
            known = [
                entry["task_id"]
                for entry in failures
                if entry["kind"] == alert.kind
                and entry["run_id"] == alert.run_id
                and datetime.fromisoformat(entry["at"]) >= started
            ]
            if alert.task_id in known or "" in known or (known and not alert.task_id):
                return False
            failures.append(
                {"kind": alert.kind, "run_id": alert.run_id, "task_id": alert.task_id, "at": now.isoformat()}
            )
    except Exception as error:  # noqa: BLE001, a full disk, or any error of a store's client
        # A duplicate alert beats a missing one.
        logger.warning("Cannot record that an alert was sent: %s", error)
    return True


def resolve_failures(dag_id: str, ended: datetime | None) -> str | None:
    """Close a DAG's open failures after a green run; return a one-line summary, or None if there were none.

    Args:
        dag_id: the DAG.
        ended: when the green run ended. Airflow may report it half a minute late, after the next run has failed.
    """
    ended = ended or datetime.now(UTC)
    with _open_failures(dag_id) as failures:
        resolved = [entry for entry in failures if datetime.fromisoformat(entry["at"]) <= ended]
        if not resolved:
            return None
        first = resolved[0]
        failures[:] = [entry for entry in failures if entry not in resolved]
    where = f" at {first['task_id']}" if first["task_id"] else ""
    return f"Run {first['run_id']} was {'late' if first['kind'] == 'late' else f'red{where}'}; this run is green."


@contextmanager
def _open_failures(dag_id: str) -> Iterator[list[dict[str, Any]]]:
    """Yield a DAG's open failures for update, under a lock: tasks and the dag-processor write concurrently."""
    shared = paths.artifacts_dir() / "alerts" / f"{dag_id}.json"
    if "://" in str(shared):  # an object store has no locks; at worst a failure is reported twice
        try:
            failures = json.loads(shared.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            failures = []
        yield failures
        shared.write_text(json.dumps(failures[-100:]))
        return
    path = paths.warehouse_dir() / "alerts" / f"{dag_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            failures = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            failures = []
        yield failures
        paths.write_whole(path, json.dumps(failures[-100:]))
    finally:
        os.close(lock)


def _describe_published() -> str:
    try:
        release = target().published_release()
    except Exception as error:  # noqa: BLE001, the alert matters more
        return f"unknown: {error}"
    if release is None:
        return "nothing: no run has published yet"
    hours = (datetime.now(UTC) - release.created_at).total_seconds() / 3600
    age = f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"
    code = f", from {release.made_by.text}" if release.made_by.text else ""
    return f"release {release.id}, made {release.created_at:%Y-%m-%d %H:%M} UTC{code}, {age} ago"
