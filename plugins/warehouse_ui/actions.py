"""The section's only write: starting the rollback DAG on the visitor's behalf."""

from typing import Any

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.common.dagbag import create_dag_bag
from airflow.api_fastapi.core_api.datamodels.dag_run import TriggerDAGRunPostBody
from airflow.api_fastapi.core_api.routes.public.dag_run import trigger_dag_run
from fastapi import HTTPException, Request
from sqlalchemy.orm import Session

from include import warehouse
from warehouse_ui.access import ROLLBACK_DAG_ID


def roll_back(request: Request, session: Session, user: BaseUser, snapshot_id: str) -> str:
    """Start the rollback DAG for a published snapshot, as Airflow's trigger form does.

    Args:
        request: the visitor's request.
        session: a session on Airflow's metadata.
        user: a user who may run that DAG.
        snapshot_id: id of a kept snapshot.

    Returns:
        The run id.

    Raises:
        HTTPException: no such snapshot, or the DAG cannot be run.
    """
    if snapshot_id not in {one.id for one in warehouse.list_snapshots()}:
        raise HTTPException(404, f"Snapshot {snapshot_id!r} no longer exists.")
    body = TriggerDAGRunPostBody(logical_date=None, conf={"snapshot": snapshot_id})
    run: Any = trigger_dag_run(ROLLBACK_DAG_ID, body, create_dag_bag(), user, session, request)
    return str(run.run_id)
