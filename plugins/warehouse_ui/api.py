"""The JSON API: the same data as the pages, with the same permissions."""

from dataclasses import dataclass
from typing import Annotated, Any

import duckdb
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.logging.decorators import action_logging
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from pydantic import BaseModel, Field

from include.warehouse import hold
from include.warehouse.errors import first_line
from include.warehouse_catalog import query
from include.warehouse_catalog.published import TableProfile
from warehouse_ui import actions, views
from warehouse_ui.access import VisitorDep, may_operate, may_roll_back, rollback_dag_id, same_origin
from warehouse_ui.history import RUNS, Run, last_runs


@dataclass(frozen=True)
class Problem:
    """An error response."""

    detail: str


@dataclass(frozen=True)
class Started:
    """A run that was started."""

    dag_id: str
    run_id: str


class QueryOrder(BaseModel):
    """A query on the published database."""

    sql: str = Field(description="One SELECT statement.", max_length=100_000)
    limit: int = Field(query.MAX_ROWS, ge=1, le=query.MAX_ROWS, description="Maximum number of rows to return.")


router = APIRouter(
    prefix="/api",
    tags=["Warehouse"],
    responses={
        401: {"model": Problem, "description": "Not logged in"},
        403: {"model": Problem, "description": "Not permitted for this role"},
        503: {"model": Problem, "description": "The published file cannot be read"},
    },
)
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "Not found"}}
_ROLLBACK: dict[str, Any] = {
    "status_code": 202,
    "responses": _NOT_FOUND,
    "dependencies": [may_roll_back, same_origin, Depends(action_logging("warehouse_rollback"))],
}
RunLimit = Annotated[int, Query(ge=1, le=RUNS, description="How many runs, newest first.")]


@router.get("/overview")
def overview(session: SessionDep, runs: RunLimit = 10) -> views.Overview:
    """Return the published release, its freshness and tests, and the last runs."""
    return views.overview(session, runs)


@router.get("/runs")
def runs(session: SessionDep, limit: RunLimit = RUNS) -> list[Run]:
    """Return the pipeline's last runs, newest first."""
    return last_runs(session, limit)


@router.get("/tables")
def tables(visitor: VisitorDep) -> list[views.TableView]:
    """Return every table and view of the published database."""
    return [one for one in views.tables() if visitor.reads(one.schema, one.name)]


@router.get("/search")
def search(
    visitor: VisitorDep,
    q: Annotated[str, Query(max_length=200, description="Words, all of which must be found.")] = "",
) -> list[views.Hit]:
    """Return the tables, columns and tests whose name or description has all of these words."""
    return [one for one in views.search(q) if visitor.reads(one.schema, one.table)]


@router.get("/tables/{schema}/{table}", responses=_NOT_FOUND)
def table(visitor: VisitorDep, schema: str, table: str) -> views.TablePage:
    """Return a table's columns, tests and sample rows; personal data only for users who may run the pipeline."""
    found = views.table_page(schema, table, visitor.operates) if visitor.reads(schema, table) else None
    if found is None:
        raise HTTPException(404, f"There is no table {schema}.{table}.")
    return found


@router.get("/tables/{schema}/{table}/profile", responses=_NOT_FOUND)
def profile(visitor: VisitorDep, schema: str, table: str) -> TableProfile:
    """Return a profile of a table's columns, from a sample if the table is large."""
    try:
        found = views.table_profile(schema, table, visitor.operates) if visitor.reads(schema, table) else None
    except duckdb.Error as error:
        raise HTTPException(422, f"This table cannot be profiled: {first_line(error)}") from error
    if found is None:
        raise HTTPException(404, f"There is no table {schema}.{table}.")
    return found


@router.get("/tables/{schema}/{table}/history", responses=_NOT_FOUND)
def history(session: SessionDep, visitor: VisitorDep, schema: str, table: str) -> views.TableHistory:
    """Return a table's rows, tests and columns over the last runs that published it."""
    found = views.table_history(session, schema, table) if visitor.reads(schema, table) else None
    if found is None:
        raise HTTPException(404, f"No run has published {schema}.{table}.")
    return found


@router.get("/quality")
def quality(session: SessionDep, visitor: VisitorDep) -> views.Quality:
    """Return every test over the last runs, and the rejected rows."""
    return views.quality(session, visitor.operates)


@router.get("/tests/{unique_id}", responses=_NOT_FOUND)
def test(
    session: SessionDep,
    visitor: VisitorDep,
    unique_id: str,
    run_id: Annotated[str, Query(description="Empty: the last run that has a result.", max_length=250)] = "",
) -> views.TestPage:
    """Return a test's result in one run, its SQL and its failing rows."""
    found = views.test_page(session, unique_id, run_id, visitor.operates)
    if found is None:
        raise HTTPException(404, "There are no results for this test.")
    return found


@router.get("/releases")
@router.get("/snapshots", deprecated=True)  # the old name, for one version
def releases() -> list[views.ReleaseView]:
    """Return the kept releases, newest first."""
    return views.releases()


@router.post("/releases/{release_id}/rollback", **_ROLLBACK)
@router.post("/snapshots/{release_id}/rollback", deprecated=True, **_ROLLBACK)
def rollback(
    request: Request, session: SessionDep, visitor: VisitorDep, release_id: Annotated[str, Path(max_length=250)]
) -> Started:
    """Start the rollback DAG, which switches readers to this release."""
    return Started(rollback_dag_id(), actions.roll_back(request, session, visitor.user, release_id))


@router.get("/hold")
def held() -> hold.Hold | None:
    """Return the rollback that keeps runs from publishing; null if none does."""
    return hold.current()


@router.post(
    "/hold/release",
    status_code=202,
    responses=_NOT_FOUND,
    dependencies=[may_roll_back, same_origin, Depends(action_logging("warehouse_release_hold"))],
)
def release_hold(request: Request, session: SessionDep, visitor: VisitorDep) -> Started:
    """Start the rollback DAG, to let runs publish again."""
    if hold.current() is None:
        raise HTTPException(404, "No rollback holds.")
    return Started(rollback_dag_id(), actions.release_hold(request, session, visitor.user))


@router.post(
    "/query",
    responses={
        400: {
            "model": Problem,
            "description": "The query was refused, stopped or invalid; the detail may be DuckDB's message",
        },
        429: {"model": Problem, "description": "Too many queries are running"},
    },
    dependencies=[may_operate, same_origin],
)
def run_query(order: QueryOrder) -> query.Answer:
    """Run one SELECT, read-only, with limited time, memory and rows."""
    try:
        return query.run(order.sql, order.limit)
    except query.QueryBusyError as error:
        raise HTTPException(429, str(error)) from error
    except query.QueryError as error:
        raise HTTPException(400, str(error)) from error
