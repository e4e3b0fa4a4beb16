"""Permissions, checked with Airflow's auth manager, so that its roles apply here too."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, get_user, requires_access_dag
from airflow.configuration import conf
from airflow.models.dag import DagModel, DagTag
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBearer
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette._utils import get_route_path

from include.settings import default_warehouse, warehouse_name
from warehouse_ui.tokens import Login

Method = Literal["GET", "POST", "PUT"]
# What a token is good for: no page, and nothing that changes anything. What it limits to some tables reads those.
_FOR_TOKENS = re.compile(r"(GET|HEAD) /files/.+|GET /api/.+|POST /api/query|POST /query\.(csv|parquet)|[A-Z]+ /mcp")
_FOR_SOME_TABLES = re.compile(r"(GET|HEAD) /files/.+|GET /api/(tables(/.+)?|search)|[A-Z]+ /mcp")


def dag_id() -> str:
    """Return the DAG that fills the warehouse that is shown."""
    return warehouse_name()


def rollback_dag_id() -> str:
    """Return the DAG that rolls it back."""
    return f"{warehouse_name()}_rollback"


def _requires(
    what: str,
    permission: str,
    method: Method,
    entity: DagAccessEntity | None = None,
    dag: Callable[[], str] = dag_id,
) -> Any:
    """Return a dependency that refuses whoever lacks a permission on the warehouse's DAG, and names it."""

    def inner(request: Request, user: GetUserDep) -> None:
        try:
            requires_access_dag(method, entity, param_dag_id=dag())(request, user)
        except HTTPException as error:
            if error.status_code != 403:
                raise
            raise HTTPException(
                403, f"To {what} takes the permission to {permission} the DAG {dag()}, which your role does not have."
            ) from None

    return Depends(inner)


# Whoever may see the pipeline's DAG may read; whoever may run it may see personal data and query.
may_read = _requires("see the warehouse", "read", "GET")
may_operate = _requires("query the warehouse or start a run", "start runs of", "POST", DagAccessEntity.RUN)
may_roll_back = _requires("roll back", "start runs of", "POST", DagAccessEntity.RUN, rollback_dag_id)
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
        warehouses: those of this deployment that they may see.
        scope: what their token is limited to: schemas, and tables as `SCHEMA.TABLE`; empty for all.
    """

    user: BaseUser
    operates: bool
    rolls_back: bool
    clears: bool
    notes: bool
    warehouses: tuple[str, ...]
    scope: tuple[str, ...] = ()

    def may_see(self, dag: str) -> bool:
        """Whether they may see a DAG."""
        return _may(self.user, "GET", None, dag)

    def reads(self, schema: str, table: str) -> bool:
        """Whether a token, if that is what they have, is for this table."""
        return not self.scope or schema in self.scope or f"{schema}.{table}" in self.scope


def _warehouses(session: Session) -> list[str]:
    """Return the DAGs that fill a warehouse: those that `elt.elt_dag` has made."""
    query = select(DagModel.dag_id).join(DagModel.tags).where(DagTag.name == "elt", ~DagModel.is_stale)
    return sorted(session.scalars(query))


def _token_login(request: Request) -> Login | None:
    found: Login | None = getattr(request.state, "token_login", None)
    return found


async def user_of(request: Request) -> BaseUser:
    """Return whose token a request has, or else Airflow's user; takes the place of Airflow's `get_user`."""
    login = _token_login(request)
    return login.user if login else await get_user(request, None, await HTTPBearer(auto_error=False)(request))


def _within_token(request: Request) -> None:
    """Refuse a token what it is not for: another warehouse, pages, changes, and other tables than its own."""
    login = _token_login(request)
    if login is None:
        return
    wanted = f"{request.method} {get_route_path(request.scope)}"
    if login.token.warehouse != dag_id():
        raise HTTPException(403, f"This token is for the warehouse {login.token.warehouse}.")
    if not _FOR_TOKENS.fullmatch(wanted):
        raise HTTPException(403, "A token reads tables as files, the API and MCP only.")
    if login.token.scope and not _FOR_SOME_TABLES.fullmatch(wanted):
        raise HTTPException(403, f"This token reads {', '.join(login.token.scope)} only, as files or by /api/tables.")


within_token = Depends(_within_token)


def _visitor(request: Request, user: GetUserDep, session: SessionDep) -> Visitor:
    login = _token_login(request)
    return Visitor(
        user,
        _may(user, "POST", DagAccessEntity.RUN, dag_id()),
        login is None and _may(user, "POST", DagAccessEntity.RUN, rollback_dag_id()),
        login is None and _may(user, "PUT", DagAccessEntity.TASK_INSTANCE, dag_id()),
        login is None and _may(user, "PUT", DagAccessEntity.RUN, dag_id()),
        tuple(one for one in _warehouses(session) if _may(user, "GET", None, one)),
        login.token.scope if login else (),
    )


def _known(session: SessionDep) -> None:
    if dag_id() != default_warehouse() and dag_id() not in _warehouses(session):
        raise HTTPException(404, f"There is no warehouse {dag_id()}.")


is_known = Depends(_known)


VisitorDep = Annotated[Visitor, Depends(_visitor)]


def _may(user: BaseUser, method: Method, entity: DagAccessEntity | None, dag: str) -> bool:
    return bool(
        get_auth_manager().is_authorized_dag(
            method=method,
            access_entity=entity,
            details=DagDetails(id=dag, team_name=DagModel.get_team_name(dag)),
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
