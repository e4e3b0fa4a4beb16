"""What the section does on the visitor's behalf, all of it through Airflow: start runs, clear tasks, write a note."""

from datetime import UTC, datetime
from typing import Any, Literal

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.common.dagbag import create_dag_bag
from airflow.api_fastapi.core_api.datamodels.dag_run import DAGRunPatchBody, TriggerDAGRunPostBody
from airflow.api_fastapi.core_api.datamodels.task_instances import ClearTaskInstancesBody
from airflow.api_fastapi.core_api.routes.public.dag_run import patch_dag_run, trigger_dag_run
from airflow.api_fastapi.core_api.routes.public.task_instances import post_clear_task_instances
from airflow.models.taskinstance import TaskInstance
from fastapi import HTTPException, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from include.warehouse.targets import target
from warehouse_ui.access import dag_id, rollback_dag_id


def roll_back(request: Request, session: Session, user: BaseUser, release_id: str) -> str:
    """Start the rollback DAG for a kept release, as Airflow's trigger form does.

    Args:
        request: the visitor's request.
        session: a session on Airflow's metadata.
        user: a user who may run that DAG.
        release_id: id of a kept release.

    Returns:
        The run id.

    Raises:
        HTTPException: no such release, or the DAG cannot be run.
    """
    if release_id not in {one.id for one in target().list_releases()}:
        raise HTTPException(404, f"Release {release_id!r} no longer exists.")
    return _start(request, session, user, {"release": release_id})


def decide(
    request: Request,
    session: Session,
    user: BaseUser,
    release_id: str,
    decision: Literal["approve", "refuse"],
    note: str,
) -> str:
    """Start the rollback DAG for a decision on the release that waits.

    Args:
        request: the visitor's request.
        session: a session on Airflow's metadata.
        user: a user who may run that DAG.
        release_id: id of that release.
        decision: what the visitor decided.
        note: why.

    Returns:
        The run id.

    Raises:
        HTTPException: it does not wait any more, there is no note, or the DAG cannot be run.
    """
    waiting = target().waiting_release()
    if waiting is None or waiting.id != release_id:
        raise HTTPException(404, f"Release {release_id!r} does not wait for approval any more.")
    if not note.strip():
        raise HTTPException(422, "A decision needs a note.")
    return _start(request, session, user, {"release": release_id, "decision": decision, "note": note})


def release_hold(request: Request, session: Session, user: BaseUser) -> str:
    """Start the rollback DAG, as `roll_back`, to let runs publish again."""
    return _start(request, session, user, {"release_hold": True})


def _start(request: Request, session: Session, user: BaseUser, conf: dict[str, Any], dag: str = "") -> str:
    body = TriggerDAGRunPostBody(logical_date=None, conf=conf)
    run: Any = trigger_dag_run(dag or rollback_dag_id(), body, create_dag_bag(), user, session, request)
    return str(run.run_id)


def start_run(request: Request, session: Session, user: BaseUser, max_rejected_rows: int | None = None) -> str:
    """Start a run of the pipeline, as Airflow's trigger form does; return the run id."""
    conf = {} if max_rejected_rows is None else {"max_rejected_rows": max_rejected_rows}
    return _start(request, session, user, conf, dag_id())


def clear(session: Session, user: BaseUser, run_id: str, task_id: str) -> None:
    """Clear a task of a run with all that is downstream of it.

    Raises:
        HTTPException: no such task in that run, or it cannot be cleared.
    """
    known = select(TaskInstance.task_id).where(
        TaskInstance.dag_id == dag_id(), TaskInstance.run_id == run_id, TaskInstance.task_id == task_id
    )
    if session.scalar(known) is None:
        raise HTTPException(404, f"There is no task {task_id} in {run_id}.")
    body = ClearTaskInstancesBody(
        dry_run=False, dag_run_id=run_id, task_ids=[task_id], include_downstream=True, only_failed=False
    )
    post_clear_task_instances(dag_id(), create_dag_bag(), body, session, user)


def acknowledge(session: Session, user: BaseUser, run_id: str, note: str) -> None:
    """Write a note on a run, in Airflow.

    Raises:
        HTTPException: no such run.
    """
    text = f"Acknowledged by {user.get_name()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {note.strip()}"[:1000]
    patch_dag_run(dag_id(), run_id, DAGRunPatchBody(note=text), session, create_dag_bag(), user, ["note"])
