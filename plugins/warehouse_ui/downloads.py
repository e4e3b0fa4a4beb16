"""Tables as files: `/files/SCHEMA.TABLE.parquet` and `.csv`, of what is published or of a kept release."""

from typing import Annotated

import duckdb
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse

from include.runs import project
from include.settings import REJECTED_ROWS
from include.warehouse.errors import first_line
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import files
from warehouse_ui.access import Visitor, VisitorDep

router = APIRouter(include_in_schema=False)


@router.api_route("/files/{file}", methods=["GET", "HEAD"])
def table_file(
    request: Request, visitor: VisitorDep, file: str, release: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """A table of what is published, or of a kept release, as a file. Answers range and conditional requests."""
    chosen = _release(release)
    dbt = project.of_run(chosen.run_id)
    offered = [one for one in dbt.nodes.values() if is_offered(one) and visitor.reads(one.schema, one.table)]
    tables = {f"{node.schema}.{node.table}": node for node in offered}
    name, _, kind = file.rpartition(".")
    node = tables.get(name)
    # Rejected rows hold whatever was in a file: for those who may see personal data only.
    rejected = visitor.operates and name.endswith(f".{REJECTED_ROWS}") and node is None
    rejected = rejected and visitor.reads(name.rpartition(".")[0], REJECTED_ROWS)
    if (node is None and not rejected) or kind not in files.FORMATS:
        raise HTTPException(404, f"There is no file {file}. Files: {', '.join(sorted(tables))}; .parquet or .csv.")
    try:
        schema, table = (node.schema, node.table) if node else (name.rpartition(".")[0], REJECTED_ROWS)
        masked = _masked(chosen, dbt, node, visitor) if node else []
        path = files.table_file(chosen, schema, table, kind, masked)
    except files.FileBusyError as error:
        raise HTTPException(503, str(error), {"Retry-After": "60"}) from error
    except files.FileError as error:
        raise HTTPException(507, str(error)) from error
    except duckdb.Error as error:
        raise HTTPException(404, f"{file} cannot be read in {chosen.id}: {first_line(error)}") from error
    # Ask each time: another release may be published, or the run of this one may have published again.
    headers = {"Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie", "X-Release": chosen.id}
    answer = FileResponse(path, media_type=files.FORMATS[kind], filename=file, stat_result=path.stat(), headers=headers)
    wanted = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if answer.headers["etag"] in wanted or "*" in wanted:
        return Response(status_code=304, headers=headers | {"ETag": answer.headers["etag"]})
    return answer


def is_offered(node: project.Node | None) -> bool:
    """Return whether a table is offered as files: what dbt builds, not what it reads."""
    return node is not None and node.kind not in ("source", "exposure")


def _release(release_id: str) -> Release:
    if not release_id:
        # Not the one marked in the list, which has none while readers are switched.
        if published := target().published_release():
            return published
        raise HTTPException(404, "Nothing is published yet.")
    kept = target().list_releases()
    found = next((one for one in kept if one.id == release_id), None)
    if found is None:
        raise HTTPException(404, f"There is no release {release_id}. Kept: {', '.join(one.id for one in kept)}.")
    return found


def _masked(release: Release, dbt: project.Project, node: project.Node, visitor: Visitor) -> list[str]:
    if visitor.operates:
        return []
    columns = files.columns_of(release, node.schema, node.table)
    return [name for name in columns if not dbt.is_open(node, name)]
