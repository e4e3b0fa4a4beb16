"""The pages, rendered on the server; each works without JavaScript."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

import duckdb
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.logging.decorators import action_logging
from airflow.configuration import conf
from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from sqlalchemy.orm import Session

from include.runs import artifacts, project
from include.settings import default_warehouse, in_warehouse, warehouse_name
from include.sql import identifier
from include.warehouse import hold
from include.warehouse.errors import WarehouseError, size_text
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import dbt_docs, files, metrics, published, query
from warehouse_ui import actions, charts, downloads, incident, tokens, views
from warehouse_ui.access import (
    Visitor,
    VisitorDep,
    dag_id,
    is_own_navigation,
    may_clear,
    may_note,
    may_operate,
    may_roll_back,
    rollback_dag_id,
    same_origin,
)
from warehouse_ui.history import RUNS, in_progress, last_runs

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TESTS = 300  # of a row each, with a mark for each of the last runs
_NONE, _MINUS = "\u2013", "\u2212"
RunId = Annotated[str, Query(max_length=250)]
Chosen = Annotated[str, Query(max_length=200)]
TaskId = Annotated[str, Query(max_length=300)]
ReleaseId = Annotated[str, Query(max_length=200)]


def prepare(base_path: str, prefix: str, version: str) -> None:
    """Set up the templates for where the application is mounted.

    Args:
        base_path: path of Airflow's base URL.
        prefix: path of this application.
        version: version of the static files.
    """
    root = base_path + prefix
    _templates.globals.update(root=root)

    def run_link(run_id: str, task_id: str = "", dag_id: str = "") -> str:
        task = f"/tasks/{quote(task_id, safe='')}" if task_id else ""
        return f"{base_path}/dags/{quote(dag_id or warehouse_name(), safe='')}/runs/{quote(run_id, safe='')}{task}"

    def table_link(schema: str, table: str) -> str:
        return f"{_home()}/tables/{quote(schema, safe='')}/{quote(table, safe='')}"

    def incident_link(run_id: str = "", task_id: str = "") -> str:
        wanted = {name: one for name, one in (("run_id", run_id), ("task_id", task_id)) if one}
        return f"{_home()}/incident" + (f"?{urlencode(wanted)}" if wanted else "")

    def test_link(unique_id: str, run_id: str = "") -> str:
        return f"{_home()}/tests/{quote(unique_id, safe='')}" + (f"?run_id={quote(run_id, safe='')}" if run_id else "")

    _templates.globals.update(
        base_path=base_path,
        version=version,
        run_link=run_link,
        table_link=table_link,
        test_link=test_link,
        incident_link=incident_link,
        in_words=views.in_words,
        own_changes=views.own_changes,
        home_of=_home,
        quoted=_quoted,
        charts=charts,
        numeric_columns=_numeric_columns,
        mask=files.MASK,
    )
    _templates.filters.update(
        size=_size,
        ago=_ago,
        when=_when,
        seconds=_seconds,
        prose=_prose,
        runbook=_runbook,
        runbook_section=_section,
        signed=_signed,
        share=_share,
        counted=lambda number, thing: f"{number:,} {thing}{'s' if number != 1 else ''}",
    )


def render(visitor: Any, template: str, status: int = 200, **values: object) -> HTMLResponse:
    """Render a page."""
    always = {
        "visitor": visitor,
        "held": hold.current() if visitor else None,
        "home": _home(),
        "dag_id": dag_id(),
        "rollback_dag_id": rollback_dag_id(),
        "busy": False,
        "has_metrics": bool(visitor) and _has_metrics(),
    }
    return HTMLResponse(_templates.get_template(template).render(always | values), status)


def _has_metrics() -> bool:
    try:
        return metrics.is_installed() and metrics.declared(published.current())
    except WarehouseError:  # for the page to say
        return False


def _home(name: str = "") -> str:
    """Return the path of a warehouse's pages; by default of the one that is shown."""
    name = name or warehouse_name()
    return f"{_templates.globals['root']}" + ("" if name == default_warehouse() else f"/w/{name}")


def problem(_request: Request, status: int, message: str) -> HTMLResponse:
    """Render an error page."""
    titles = {403: "Not allowed", 404: "Not found", 429: "Busy", 503: "The warehouse cannot be read"}
    return render(None, "problem.html", status, title=titles.get(status, "Something went wrong"), message=message)


@router.get("/")
def overview(session: SessionDep, visitor: VisitorDep) -> HTMLResponse:
    """The state of the warehouse at a glance."""
    found = views.overview(session, RUNS)
    oldest_first = found.runs[::-1]
    names = sorted({name for run in found.runs for name in run.rows | run.rejected})
    trends = [
        (
            name,
            [run.rows.get(name) for run in oldest_first],
            [run.rejected.get(name, 0) for run in oldest_first],
            next((run.run_id for run in found.runs if name in run.rows), ""),
        )
        for name in names
    ]
    readers = {
        name: run.rows[name]
        for run in found.runs
        for name, loaded_by in found.loaded_by.items()
        if run.run_id == loaded_by and name in run.rows
    }
    waiting = views.waiting_release()
    now = datetime.now(UTC)
    return render(
        visitor,
        "overview.html",
        page=found,
        waiting=waiting,
        trends=trends,
        readers=readers,
        now=now,
        busy=in_progress(session, [dag_id(), rollback_dag_id()]),
    )


@router.get("/warehouses")
def warehouses(session: SessionDep, visitor: VisitorDep) -> HTMLResponse:
    """All warehouses of the deployment that the visitor may see."""
    found: dict[str, tuple[views.Overview | None, str]] = {}
    for name in visitor.warehouses:
        with in_warehouse(name):
            try:
                found[name] = views.overview(session, 10), ""
            except WarehouseError as error:
                found[name] = None, str(error)
    return render(visitor, "warehouses.html", found=found, busy=in_progress(session, visitor.warehouses))


@router.get("/tables")
def tables(
    visitor: VisitorDep,
    q: Annotated[str, Query(max_length=200)] = "",
    schema: Chosen = "",
    owner: Chosen = "",
    tag: Chosen = "",
    state: Chosen = "",
) -> HTMLResponse:
    """Every table, by schema, or those that a filter leaves; or what a search finds."""
    if q.strip():
        hits = views.search(q)
        return render(
            visitor, "tables.html", q=q, hits=hits, schemas={}, choices=(), total=0, shown=0, sizes_wait=False
        )
    every = views.tables()
    chosen = {"schema": schema, "owner": owner, "tag": tag, "state": state}
    found = [one for one in every if all(not want or want in one.labels[name] for name, want in chosen.items())]
    choices = [
        (name, want, sorted({label for one in every for label in one.labels[name]})) for name, want in chosen.items()
    ]
    schemas: dict[str, list[views.TableView]] = {}
    for table in found:
        schemas.setdefault(table.schema, []).append(table)
    return render(
        visitor,
        "tables.html",
        q="",
        hits=(),
        schemas=dict(sorted(schemas.items(), key=lambda one: views.schema_order(one[0]))),
        choices=choices,
        total=len(every),
        shown=len(found),
        sizes_wait=views.sizes_wait(),
    )


@router.get("/tables/{schema}/{table}")
def table(visitor: VisitorDep, schema: str, table: str) -> HTMLResponse:
    """One table: columns, tests, lineage, profile, sample."""
    found = views.table_page(schema, table, visitor.operates)
    if found is None:
        raise HTTPException(404, f"There is no table {schema}.{table} in the published database.")
    _, dbt = views.read_state()
    node = dbt.node_of(schema, table)
    graph = Markup("")
    if node and (node.depends_on or found.used_by):
        layers, edges = dbt.lineage(node.unique_id)
        links = _table_links(dbt)
        links.pop(node.unique_id, None)
        graph = charts.lineage(layers, edges, [node.unique_id], links)
    names = {one: dbt.nodes[one] for one in (*found.depends_on, *found.used_by)}
    return render(
        visitor,
        "table.html",
        page=found,
        graph=graph,
        nodes=names,
        profile=_profile(schema, table, visitor.operates),
        is_file=downloads.is_offered(node),
        sizes_wait=views.sizes_wait(),
    )


@router.get("/tables/{schema}/{table}/history")
def table_history(session: SessionDep, visitor: VisitorDep, schema: str, table: str) -> HTMLResponse:
    """One table over the last runs that published it: rows, load, tests, NULLs and distinct values."""
    found = views.table_history(session, schema, table)
    if found is None:
        raise HTTPException(404, f"No run that is kept has published {schema}.{table}.")
    return render(visitor, "history.html", page=found)


def _table_links(dbt: project.Project) -> dict[str, str]:
    link: Any = _templates.globals["table_link"]
    return {one.unique_id: link(one.schema, one.table) for one in dbt.nodes.values() if one.schema}


@router.get("/lineage")
def whole_lineage(
    session: SessionDep, visitor: VisitorDep, q: Annotated[str, Query(max_length=200)] = "", everywhere: bool = False
) -> HTMLResponse:
    """All sources, models and exposures; or those that a search finds, with all above and below them."""
    if everywhere:
        dbt, states = views.projects_together(session, visitor.warehouses, visitor.may_see)
        links = {
            one.unique_id: f"{_home(one.unique_id.partition(':')[0])}/tables/{quote(one.schema)}/{quote(one.table)}"
            for one in dbt.nodes.values()
            if one.schema
        }
    else:
        state, dbt = views.read_state()
        states, links = views.node_states(state, dbt), _table_links(dbt)
    layers, edges, found = dbt.whole_lineage(q)
    graph = charts.lineage(layers, edges, found, links, states) if layers else None
    return render(
        visitor,
        "lineage.html",
        q=q,
        everywhere=everywhere,
        graph=graph,
        shown=sum(map(len, layers)),
        total=len(dbt.nodes),
        found=len(found),
    )


def _profile(schema: str, table: str, sees_all: bool) -> Any:
    try:
        return views.table_profile(schema, table, sees_all)
    except duckdb.Error:
        return None


@router.get("/quality")
def quality(session: SessionDep, visitor: VisitorDep, every: bool = False) -> HTMLResponse:
    """Tests over the last runs, and rejected rows."""
    page = views.quality(session, visitor.operates)
    most = len(page.tests) if every else _TESTS
    return render(visitor, "quality.html", page=page, most=most, busy=in_progress(session, [dag_id()]))


@router.get("/tests/{unique_id}")
def test(session: SessionDep, visitor: VisitorDep, unique_id: str, run_id: RunId = "") -> HTMLResponse:
    """One test in one run: result, failing rows, SQL."""
    found = views.test_page(session, unique_id, run_id, visitor.operates)
    if found is None:
        raise HTTPException(404, "There are no results for this test.")
    _, dbt = views.read_state()
    return render(visitor, "test.html", page=found, nodes=[dbt.nodes[one] for one in found.downstream])


@router.get("/incident")
def show_incident(
    session: SessionDep, visitor: VisitorDep, run_id: RunId = "", task_id: TaskId = "", done: TaskId = ""
) -> HTMLResponse:
    """What is failing now, or what failed in a run: cause, rows, who is affected, what to do."""
    found = incident.incident(session, run_id, task_id, visitor.operates)
    if found is None and run_id:
        raise HTTPException(404, f"There is no run {run_id} among the last {RUNS}.")
    kept = views.releases()
    seen = next((at for at, one in enumerate(kept) if one.published), None)
    earlier = kept[seen + 1] if seen is not None and seen + 1 < len(kept) else None
    busy = in_progress(session, [dag_id(), rollback_dag_id()])
    return render(visitor, "incident.html", page=found, done=done, asked_for=task_id, earlier=earlier, busy=busy)


def _incident_address(run_id: str, done: str) -> Response:
    address = urlencode({"run_id": run_id, "done": done})
    return RedirectResponse(f"{_home()}/incident?{address}", 303)


@router.post("/incident/clear", dependencies=[may_clear, same_origin, Depends(action_logging("warehouse_clear"))])
def clear(
    session: SessionDep, visitor: VisitorDep, run_id: Annotated[str, Form()], task_id: Annotated[str, Form()]
) -> Response:
    """Clear a task with all that is downstream of it."""
    actions.clear(session, visitor.user, run_id, task_id)
    return _incident_address(run_id, f"Cleared {task_id} with downstream.")


@router.post("/incident/start", dependencies=[may_operate, same_origin, Depends(action_logging("warehouse_start"))])
def start(
    request: Request,
    session: SessionDep,
    visitor: VisitorDep,
    run_id: Annotated[str, Form()],
    max_rejected_rows: Annotated[str, Form(pattern=r"^\s*\d{0,12}\s*$")] = "",
) -> Response:
    """Start a new run."""
    limit = int(max_rejected_rows) if max_rejected_rows.strip() else None
    started = actions.start_run(request, session, visitor.user, limit)
    return _incident_address(run_id, f"Started {started}.")


@router.post("/incident/note", dependencies=[may_note, same_origin, Depends(action_logging("warehouse_note"))])
def acknowledge(
    session: SessionDep,
    visitor: VisitorDep,
    run_id: Annotated[str, Form()],
    note: Annotated[str, Form(min_length=1, max_length=800)],
) -> Response:
    """Acknowledge a failure with a note, which Airflow shows on the run, too."""
    actions.acknowledge(session, visitor.user, run_id, note)
    return _incident_address(run_id, "Acknowledged.")


@router.get("/task/{task_id}")
def task(session: SessionDep, visitor: VisitorDep, task_id: str, run_id: RunId) -> Response:
    """What a dbt task did in a run; target of the link on the task."""
    if not run_id:
        raise HTTPException(404, "The run id is missing.")
    node, results = views.node_of_task(run_id, task_id)
    sql = [(one, artifacts.compiled_sql(run_id, one)) for one in results]
    load = next((one for one in artifacts.loads_of(run_id) if f"load.{one.source}" == task_id), None)
    if node is None and not results and not any(one.run_id == run_id for one in last_runs(session)):
        raise HTTPException(404, f"The task {task_id} has no results in this run.")
    state, _ = views.read_state()
    is_published = bool(node and state and state.table(node.schema, node.table))
    return render(
        visitor,
        "task.html",
        task_id=task_id,
        run_id=run_id,
        node=node,
        results=sql,
        is_published=is_published,
        load=load,
        failed=artifacts.error_of(run_id, task_id) is not None or bool(load and load.error),
    )


@router.get("/releases")
def releases(session: SessionDep, visitor: VisitorDep, started: RunId = "", decided: RunId = "") -> HTMLResponse:
    """The kept releases, and the one that waits for a person."""
    return render(
        visitor,
        "releases.html",
        releases=views.releases(),
        waiting=views.waiting_release(),
        started=started,
        decided=decided,
        busy=in_progress(session, [dag_id(), rollback_dag_id()]),
    )


@router.get("/releases/{release_id}/changes")
def changes(visitor: VisitorDep, release_id: str) -> HTMLResponse:
    """What a release changed for readers."""
    waiting = views.waiting_release()
    if waiting and waiting.id != release_id:
        waiting = None
    chosen = waiting or next((one for one in views.releases() if one.id == release_id), None)
    if chosen is None:
        raise HTTPException(404, "This release no longer exists.")
    tables = views.changes_of(chosen.run_id)
    return render(visitor, "changes.html", chosen=chosen, waits=bool(waiting), tables=tables)


@router.get("/snapshots")
def snapshots() -> Response:
    """The old address of the kept releases, for one version."""
    return RedirectResponse(f"{_home()}/releases", 307)


@router.get("/releases/{release_id}/rollback", dependencies=[may_roll_back])
def confirm_rollback(visitor: VisitorDep, release_id: str) -> HTMLResponse:
    """Ask for confirmation before rolling back."""
    kept = views.releases()
    chosen = next((one for one in kept if one.id == release_id), None)
    if chosen is None:
        raise HTTPException(404, "This release no longer exists.")
    now = next((one for one in kept if one.published), None)
    try:
        tables = views.changes_by_rollback(chosen.id)
    except (WarehouseError, duckdb.Error):  # a damaged release: the rollback says what is wrong with it
        tables = None
    return render(visitor, "rollback.html", chosen=chosen, now=now, tables=tables)


@router.post(
    "/releases/{release_id}/rollback",
    dependencies=[may_roll_back, same_origin, Depends(action_logging("warehouse_rollback"))],
)
def roll_back(request: Request, session: SessionDep, visitor: VisitorDep, release_id: str) -> Response:
    """Start the rollback DAG."""
    run_id = actions.roll_back(request, session, visitor.user, release_id)
    return RedirectResponse(f"{_home()}/releases?started={quote(run_id, safe='')}", 303)


@router.post(
    "/releases/{release_id}/decision",
    dependencies=[may_roll_back, same_origin, Depends(action_logging("warehouse_decision"))],
)
def decide(
    request: Request,
    session: SessionDep,
    visitor: VisitorDep,
    release_id: str,
    decision: Annotated[Literal["approve", "refuse"], Form()],
    note: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    """Approve or refuse the release that waits, by the rollback DAG."""
    run_id = actions.decide(request, session, visitor.user, release_id, decision, note)
    return RedirectResponse(f"{_home()}/releases?decided={quote(run_id, safe='')}", 303)


@router.post(
    "/release-hold",
    dependencies=[may_roll_back, same_origin, Depends(action_logging("warehouse_release_hold"))],
)
def release_hold(request: Request, session: SessionDep, visitor: VisitorDep) -> Response:
    """Start the rollback DAG, to let runs publish again."""
    run_id = actions.release_hold(request, session, visitor.user)
    return RedirectResponse(f"{_home()}/releases?started={quote(run_id, safe='')}", 303)


@router.get("/query", dependencies=[may_operate])
def query_form(
    request: Request,
    visitor: VisitorDep,
    sql: Annotated[str, Query(max_length=10_000)] = "",
    release: ReleaseId = "",
    chart: Annotated[str, Query(max_length=20)] = "",
) -> HTMLResponse:
    """An empty query, or the result of one at its address."""
    if not sql.strip():
        return _query_page(visitor, sql)
    if not is_own_navigation(request):  # another site's link must not run a query with this user's login
        return _query_page(visitor, sql, release, chart=chart, is_foreign=True)
    return _answer(visitor, sql, release, chart)


@router.post("/query", dependencies=[may_operate, same_origin])
def run_query(
    visitor: VisitorDep,
    sql: Annotated[str, Form()] = "",
    release: Annotated[str, Form()] = "",
    chart: Annotated[str, Form()] = "",
) -> HTMLResponse:
    """A query and its result, also as a chart."""
    return _answer(visitor, sql, release, chart)


def _answer(visitor: Visitor, sql: str, release: str, chart: str) -> HTMLResponse:
    try:
        return _query_page(visitor, sql, release, answer=query.run(sql, release=_kept(release)), chart=chart)
    except query.QueryBusyError as error:
        return _query_page(visitor, sql, release, error=str(error), chart=chart, status=429)
    except query.QueryError as error:
        return _query_page(visitor, sql, release, error=str(error), chart=chart, status=400)


def _kept(release_id: str) -> Release | None:
    """Return a kept release, or None for what readers see."""
    kept = target().list_releases() if release_id else []
    found = next((one for one in kept if one.id == release_id), None)
    if release_id and found is None:
        raise query.QueryError(
            f"The release {release_id} is no longer kept. Run the query on what readers see now, or on one of: "
            f"{', '.join(one.id for one in kept) or 'none'}."
        )
    return found


@router.post("/query.csv", dependencies=[may_operate, same_origin])
def query_csv(visitor: VisitorDep, sql: Annotated[str, Form()] = "", release: Annotated[str, Form()] = "") -> Response:
    """The result of a query as a CSV file."""
    try:
        answer = query.run(sql, query.MAX_CSV_ROWS, release=_kept(release))
    except query.QueryError as error:
        return _query_page(visitor, sql, release, error=str(error), status=400)
    headers = {"Content-Disposition": 'attachment; filename="query.csv"'}
    return StreamingResponse(query.csv_lines(answer), media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/query.parquet", dependencies=[may_operate, same_origin])
def query_parquet(
    visitor: VisitorDep, sql: Annotated[str, Form()] = "", release: Annotated[str, Form()] = ""
) -> Response:
    """The result of a query as a Parquet file."""
    try:
        data = query.parquet(query.run(sql, query.MAX_CSV_ROWS, release=_kept(release)))
    except query.QueryError as error:
        return _query_page(visitor, sql, release, error=str(error), status=400)
    headers = {"Content-Disposition": 'attachment; filename="query.parquet"'}
    return Response(data, media_type="application/vnd.apache.parquet", headers=headers)


def _query_page(
    visitor: Visitor,
    sql: str,
    release: str = "",
    *,
    answer: query.Answer | None = None,
    chart: str = "",
    error: str = "",
    status: int = 200,
    is_foreign: bool = False,
) -> HTMLResponse:
    state = published.current()
    kept = target().list_releases()
    pinned = release or (state.release.id if state else "")
    chart = chart if chart in charts.RESULT_KINDS else ""
    wanted = {"sql": sql, "release": pinned, "chart": chart}
    address = f"{_home()}/query?{urlencode({name: one for name, one in wanted.items() if one})}"
    drawn, undrawn = None, ""
    if answer and answer.rows and chart:
        try:
            drawn = charts.result(chart, answer)
        except ValueError as problem:
            undrawn = str(problem)
    return render(
        visitor,
        "query.html",
        status,
        sql=sql,
        answer=answer,
        releases=kept,
        release=release,
        pinned=pinned,
        address=address if len(address) < 8000 else "",
        is_foreign=is_foreign,
        chart=drawn,
        no_chart=undrawn,
        kinds=charts.RESULT_KINDS,
        saved=query.saved(),
        error=error,
        limits=query,
        tables=sorted(state.tables, key=lambda one: views.table_order(one.schema, one.name)) if state else (),
    )


@router.get("/connect")
def connect(request: Request, visitor: VisitorDep) -> HTMLResponse:
    """How to read the tables with other tools, from other machines."""
    state, dbt = views.read_state()
    useful = views.most_useful(state, dbt)
    site = f"{request.url.scheme}://{request.url.netloc}{_templates.globals['base_path']}"
    root = conf.get("api", "base_url", fallback="").rstrip("/") or site
    return render(
        visitor,
        "connect.html",
        root=root,
        files=f"{root}{_home().removeprefix(str(_templates.globals['base_path']))}/files",
        has_mcp=find_spec("mcp") is not None,
        is_file=target().can_be_sandboxed,
        path=target().published_location(),
        how_to_open=target().how_to_open(),
        release=state.release.id if state else "",
        example=f"{useful.schema}.{useful.table}" if useful else "",
    )


@router.get("/tokens")
def own_tokens(session: SessionDep, visitor: VisitorDep) -> HTMLResponse:
    """The visitor's tokens for programs."""
    return _tokens_page(session, visitor)


@router.post("/tokens", dependencies=[same_origin, Depends(action_logging("warehouse_token"))])
def make_token(
    session: SessionDep,
    visitor: VisitorDep,
    name: Annotated[str, Form(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")],
    days: Annotated[int, Form()],
    scope: Annotated[str, Form(max_length=10_000)] = "",
) -> HTMLResponse:
    """Make a token, and show it this once."""
    wanted = list(dict.fromkeys(one for part in scope.split(",") if (one := part.strip())))
    state = published.current()
    known = {name for one in (state.tables if state else ()) for name in (one.schema, f"{one.schema}.{one.name}")}
    error = ""
    if unknown := [one for one in wanted if one not in known]:
        error = f"There is no schema or table {', '.join(unknown)} in what is published."
    elif not name.strip():
        error = "A token needs a name."
    elif days not in tokens.DAYS:
        error = f"A token is valid for {', '.join(map(str, tokens.DAYS))} days."
    else:
        try:
            text = tokens.make(session, visitor.user, dag_id(), name.strip(), wanted, days)
            return _tokens_page(session, visitor, made=text, name=name.strip())
        except tokens.TokenError as problem:
            error = str(problem)
    return _tokens_page(session, visitor, error=error, name=name, scope=scope)


@router.post(
    "/tokens/{token_id}/revoke", dependencies=[same_origin, Depends(action_logging("warehouse_token_revoked"))]
)
def revoke_token(
    session: SessionDep, visitor: VisitorDep, token_id: Annotated[int, PathParameter(ge=0, lt=2**31)]
) -> Response:
    """Revoke one of the visitor's tokens."""
    if not tokens.revoke(session, visitor.user, token_id):
        raise HTTPException(404, "You have no such token.")
    return RedirectResponse(f"{_home()}/tokens", 303)


def _tokens_page(
    session: Session, visitor: Visitor, made: str = "", name: str = "", scope: str = "", error: str = ""
) -> HTMLResponse:
    return render(
        visitor,
        "tokens.html",
        422 if error else 200,
        tokens=[one for one in tokens.tokens_of(session, visitor.user) if one.warehouse == dag_id()],
        days=tokens.DAYS,
        made=made,
        name=name,
        scope=scope,
        error=error,
    )


@router.get("/dbt-docs")
def dbt_docs_without_slash() -> Response:
    """Redirect to the trailing slash: dbt's page loads its files by relative URL."""
    return RedirectResponse(f"{_home()}/dbt-docs/")


@router.get("/dbt-docs/")
def dbt_docs_page() -> HTMLResponse:
    """The dbt documentation of the published state."""
    # It has no dark theme: inverting its colours makes one.
    style = "[data-theme=dark] { filter: invert(.92) hue-rotate(180deg); background: #fff }"
    theme = f'<script src="../static/app.js"></script><style>{style}</style>'
    return HTMLResponse(dbt_docs.page().replace("</head>", f"{theme}</head>", 1))


@router.get("/dbt-docs/manifest.json")
def dbt_docs_manifest() -> Response:
    """The manifest for the dbt documentation page."""
    state = published.current()
    path = project.manifest_path(state.release.run_id if state else None)
    if path is None:
        raise HTTPException(404, "There is no dbt manifest yet.")
    return Response(project.read_manifest(path), media_type="application/json")


@router.get("/dbt-docs/catalog.json")
def dbt_docs_catalog() -> JSONResponse:
    """Columns and sizes for the dbt documentation page."""
    return JSONResponse(dbt_docs.catalog(*views.read_state()))


def _size(size_bytes: int | None) -> str:
    return _NONE if size_bytes is None else size_text(size_bytes)


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "less than a minute"


def _when(moment: datetime | None) -> Markup:
    if moment is None:
        return escape(_NONE)
    moment = moment.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(timespec="seconds"), f"{moment:%Y-%m-%d %H:%M} UTC"
    )


def _quoted(name: str) -> str:
    """Return a name as SQL needs it."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else identifier(name)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _signed(number: int) -> str:
    return f"{'+' if number > 0 else _MINUS if number else '±'}{abs(number):,}"


def _share(part: int, whole: int) -> str:
    """Format a share as a percentage that is 0 or 100 only if it is exactly that."""
    percent = round(100 * part / whole)
    if part and not percent:
        return "< 1 %"
    return "> 99 %" if percent == 100 and part < whole else f"{percent} %"


def _prose(text: str) -> Markup:
    """Render a dbt description: paragraphs, tables and `code`, everything else verbatim."""
    shown = Markup("")
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in paragraph.splitlines()]
        if len(lines) > 2 and all(line.startswith("|") for line in lines) and not set(lines[1]) - set("|-: "):
            shown += _table(lines[0], lines[2:])
        else:
            shown += Markup("<p>{}</p>").format(_code(paragraph))
    return shown


def _runbook(text: str) -> Markup:
    """Render a section of the runbook: paragraphs, quotations, code, tables, lists; links as their text."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}([^*\n]+)\*{1,2}(?![\w*])", r"\1", text)
    shown = Markup("")
    for at, part in enumerate(re.split(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)):
        if at % 2:
            shown += Markup('<pre tabindex="0">{}</pre>').format(part)
            continue
        for paragraph in re.split(r"\n\s*\n", part.strip()):
            if paragraph.startswith(">"):
                quoted = re.sub(r"^> ?", "", paragraph, flags=re.MULTILINE)
                shown += Markup("<blockquote>{}</blockquote>").format(_code(quoted))
            elif items := re.findall(r"^\d+\. (.*?)(?=^\d+\. |\Z)", paragraph, flags=re.MULTILINE | re.DOTALL):
                shown += Markup("<ol>{}</ol>").format(
                    Markup("").join(Markup("<li>{}</li>").format(_code(one)) for one in items)
                )
            else:
                shown += _prose(paragraph)
    return shown


def _section(title: str) -> tuple[str, str]:
    return title, incident.section(title)


def _code(text: str) -> Markup:
    parts = enumerate(re.split(r"`([^`]+)`", text))
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in parts)


def _table(head: str, rows: list[str]) -> Markup:
    def cells(line: str, cell: Markup) -> Markup:
        values = (_code(value.strip()) for value in line.strip("|").split("|"))
        return Markup("<tr>{}</tr>").format(Markup("").join(map(cell.format, values)))

    body = Markup("").join(cells(row, Markup("<td>{}</td>")) for row in rows)
    header = cells(head, Markup('<th scope="col">{}</th>'))
    return Markup("<table><thead>{}</thead><tbody>{}</tbody></table>").format(header, body)


def _numeric_columns(rows: Sequence[Sequence[str | None]]) -> list[bool]:
    """Return for each column whether its values are numbers, which line up at the right."""
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return [bool(values) and all(_NUMBER.fullmatch(value) for value in values) for values in columns]


_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
