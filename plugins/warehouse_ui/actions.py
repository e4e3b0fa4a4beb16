"""The section's only write: starting the rollback DAG on the visitor's behalf."""

from typing import Any

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
    body = TriggerDAGRunPostBody(logical_date=None, conf={"release": release_id})
    run: Any = trigger_dag_run(ROLLBACK_DAG_ID, body, create_dag_bag(), user, session, request)
    return str(run.run_id)
