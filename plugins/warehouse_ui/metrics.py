"""The project's metrics, as a page and in the JSON API; there if the package `metricflow` is: `make setup-metrics`."""

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from include.warehouse_catalog import metrics, query
from warehouse_ui import api, charts, pages, views
from warehouse_ui.access import Visitor, VisitorDep

router = APIRouter()
Names = Annotated[list[str], Query(max_length=2 * metrics.MOST, description="Names, one for each time it is given.")]
Limit = Annotated[int, Query(ge=1, le=query.MAX_ROWS, description="Maximum number of rows to return.")]
_BUSY: dict[int | str, dict[str, Any]] = {429: {"model": api.Problem, "description": "Too many queries are running"}}
Grain = Annotated[str, Query(max_length=20, description="For a time that does not name its own.")]


@dataclass(frozen=True)
class Chosen:
    """What somebody wants to know: metrics, what to group them by, and how to show it."""

    metric: list[str]
    by: list[str]
    grain: str
    limit: int
    chart: str = ""

    @property
    def query(self) -> str:
        """Its part of an address."""
        shown = {"metric": self.metric, "by": self.by, "grain": self.grain, "limit": self.limit, "chart": self.chart}
        return urlencode({name: one for name, one in shown.items() if one}, doseq=True)


@router.get("/api/metrics", tags=api.router.tags, responses={**api.router.responses, **_BUSY})
def listed() -> list[metrics.Metric]:
    """Return the metrics of the published project, and what each can be grouped by."""
    try:
        return list(metrics.metrics(views.read_state()[0]))
    except query.QueryBusyError as error:
        raise HTTPException(429, str(error)) from error
    except query.QueryError as error:
        raise HTTPException(503, str(error)) from error


@router.get(
    "/api/metrics/query",
    tags=api.router.tags,
    responses={
        **api.router.responses,
        400: {"model": api.Problem, "description": "There is no such metric or grouping, or the query was stopped"},
        **_BUSY,
    },
)
def values(
    visitor: VisitorDep,
    metric: Names,
    by: Names = [],  # noqa: B006
    grain: Grain = "",
    limit: Limit = query.MAX_ROWS,
) -> metrics.Result:
    """Return the values of metrics; by personal data only for users who may run the pipeline."""
    try:
        return read(visitor, Chosen(metric, by, grain, limit))
    except metrics.PersonalError as error:
        raise HTTPException(403, str(error)) from error
    except query.QueryBusyError as error:
        raise HTTPException(429, str(error)) from error
    except query.QueryError as error:
        raise HTTPException(400, str(error)) from error


@router.get("/metrics", include_in_schema=False)
def page(
    visitor: VisitorDep,
    metric: Names = [],  # noqa: B006
    by: Names = [],  # noqa: B006
    grain: Grain = "",
    limit: Limit = 100,
    chart: Annotated[str, Query(max_length=20)] = "",
) -> HTMLResponse:
    """The metrics, and the values of those that are chosen."""
    chosen = Chosen(metric, [one for one in by if one], grain, limit, chart if chart in charts.RESULT_KINDS else "")
    state, _ = views.read_state()
    found: tuple[metrics.Metric, ...] = ()
    result, error, status = None, "", 200
    try:
        found = metrics.metrics(state)
        if metric:
            result = read(visitor, chosen)
    except query.QueryError as problem:
        statuses = {metrics.PersonalError: 403, query.QueryBusyError: 429}
        error, status = str(problem), statuses.get(type(problem), 400)
    drawn, undrawn = None, ""
    if result and result.answer.rows and chosen.chart:
        try:
            drawn = draw(chosen, result)
        except ValueError as problem:
            undrawn = str(problem)
    return pages.render(
        visitor,
        "metrics.html",
        status,
        found=found,
        groupings=sorted({one.name: one for item in found for one in item.by}.values(), key=lambda one: one.name),
        grains=metrics.GRAINS,
        most=query.MAX_ROWS,
        chosen=chosen,
        result=result,
        release=state.release.id if state else "",
        error=error,
        chart=drawn,
        no_chart=undrawn,
        kinds=charts.RESULT_KINDS,
    )


def read(visitor: Visitor, chosen: Chosen) -> metrics.Result:
    """Return the values of what is chosen, with the visitor's permissions.

    Raises:
        QueryError: as `metrics.values`.
    """
    state, dbt = views.read_state()
    return metrics.values(state, dbt, chosen.metric, chosen.by, chosen.grain, chosen.limit, visitor.operates)


def draw(chosen: Chosen, result: metrics.Result) -> Markup:
    """Draw metrics by what they are grouped by.

    Raises:
        ValueError: that is not one thing, or cannot be drawn.
    """
    if len(chosen.by) != 1:
        raise ValueError("A chart shows metrics by one thing: a time, a dimension or an entity.")
    return charts.result(chosen.chart, result.answer)
