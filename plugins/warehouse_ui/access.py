"""Permissions, checked with Airflow's auth manager, so that its roles apply here too."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from airflow.models.dag import DagModel
from fastapi import Depends, HTTPException, Request

from include.settings import warehouse_name

DAG_ID = warehouse_name()
ROLLBACK_DAG_ID = f"{DAG_ID}_rollback"

# Whoever may see the pipeline's DAG may read; whoever may run it may see personal data and query.
may_read = Depends(requires_access_dag("GET", param_dag_id=DAG_ID))
may_operate = Depends(requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=DAG_ID))
may_roll_back = Depends(requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=ROLLBACK_DAG_ID))


@dataclass(frozen=True)
class Visitor:
    """The current user and their permissions.

    Attributes:
        operates: may see personal data and run queries.
        rolls_back: may start the rollback DAG.
    """

    user: BaseUser
    operates: bool
    rolls_back: bool


def _visitor(user: GetUserDep) -> Visitor:
    return Visitor(user, _may_trigger(user, DAG_ID), _may_trigger(user, ROLLBACK_DAG_ID))


VisitorDep = Annotated[Visitor, Depends(_visitor)]


def _may_trigger(user: BaseUser, dag_id: str) -> bool:
    return bool(
        get_auth_manager().is_authorized_dag(
            method="POST",
            access_entity=DagAccessEntity.RUN,
            details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id)),
            user=user,
        )
    )


def _same_origin(request: Request) -> None:
    """Refuse a POST that another site makes with the visitor's cookie (CSRF).

    Browsers send the origin with every POST; a client that sends a bearer token itself cannot be tricked.
    """
    if request.headers.get("authorization", "").lower().startswith("bearer "):
        return
    ours = {request.headers.get("host", ""), urlsplit(conf.get("api", "base_url", fallback="")).netloc} - {""}
    origin = urlsplit(request.headers.get("origin", ""))
    if origin.netloc not in ours or request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise HTTPException(403, "This request did not come from this site.")


same_origin = Depends(_same_origin)
