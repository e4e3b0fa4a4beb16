"""Permissions, checked with Airflow's auth manager, so that its roles apply here too."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal
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
Method = Literal["GET", "POST", "PUT"]


def _requires(
    what: str, permission: str, method: Method, entity: DagAccessEntity | None = None, dag_id: str = DAG_ID
) -> Any:
    """Return a dependency that refuses whoever lacks a permission, and names it."""
    check = requires_access_dag(method, entity, param_dag_id=dag_id)

    def inner(request: Request, user: GetUserDep) -> None:
        try:
            check(request, user)
        except HTTPException as error:
            if error.status_code != 403:
                raise
            raise HTTPException(
                403, f"To {what} takes the permission to {permission} the DAG {dag_id}, which your role does not have."
            ) from None

    return Depends(inner)


# Whoever may see the pipeline's DAG may read; whoever may run it may see personal data and query.
may_read = _requires("see the warehouse", "read", "GET")
may_operate = _requires("query the warehouse or start a run", "start runs of", "POST", DagAccessEntity.RUN)
may_roll_back = _requires("roll back", "start runs of", "POST", DagAccessEntity.RUN, ROLLBACK_DAG_ID)
may_clear = _requires("clear tasks", "edit tasks of", "PUT", DagAccessEntity.TASK_INSTANCE)
may_note = _requires("acknowledge a failure", "edit runs of", "PUT", DagAccessEntity.RUN)


@dataclass(frozen=True)
class Visitor:
    """The current user and their permissions.

    Attributes:
        operates: may see personal data and run queries.
        rolls_back: may start the rollback DAG.
        clears: may clear tasks.
        notes: may write a note on a run.
    """

    user: BaseUser
    operates: bool
    rolls_back: bool
    clears: bool
    notes: bool


def _visitor(user: GetUserDep) -> Visitor:
    return Visitor(
        user,
        _may(user, "POST", DagAccessEntity.RUN),
        _may(user, "POST", DagAccessEntity.RUN, ROLLBACK_DAG_ID),
        _may(user, "PUT", DagAccessEntity.TASK_INSTANCE),
        _may(user, "PUT", DagAccessEntity.RUN),
    )


VisitorDep = Annotated[Visitor, Depends(_visitor)]


def _may(user: BaseUser, method: Method, entity: DagAccessEntity | None, dag_id: str = DAG_ID) -> bool:
    return bool(
        get_auth_manager().is_authorized_dag(
            method=method,
            access_entity=entity,
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


def is_own_navigation(request: Request) -> bool:
    """Return whether the user went to this address: typed it, opened it from a program, or from a page of this site.

    False for another site's links, and for browsers that don't say, as they do over plain HTTP.
    """
    if request.headers.get("authorization", "").lower().startswith("bearer "):
        return True
    return request.headers.get("sec-fetch-site") in ("same-origin", "none")
