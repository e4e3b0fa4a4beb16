"""The section's only writes: starting the rollback DAG on the visitor's behalf."""

from typing import Any, Literal

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.common.dagbag import create_dag_bag
from airflow.api_fastapi.core_api.datamodels.dag_run import TriggerDAGRunPostBody
from airflow.api_fastapi.core_api.routes.public.dag_run import trigger_dag_run
from fastapi import HTTPException, Request
from sqlalchemy.orm import Session

from include.warehouse.targets import target
from warehouse_ui.access import ROLLBACK_DAG_ID


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


def _start(request: Request, session: Session, user: BaseUser, conf: dict[str, Any]) -> str:
    body = TriggerDAGRunPostBody(logical_date=None, conf=conf)
    run: Any = trigger_dag_run(ROLLBACK_DAG_ID, body, create_dag_bag(), user, session, request)
    return str(run.run_id)
