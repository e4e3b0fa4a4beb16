"""Serve an emulator of Snowflake, in its own environment, with what fakesnow 0.12 lacks: `python FILE PORT`."""

import gzip
import importlib
import json
import re
import sys

import duckdb
import pyarrow
import uvicorn
from fakesnow import arrow, cursor, transforms
from snowflake.connector.errors import ProgrammingError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

# They cannot be named with their database here; dbt drops what it makes for itself.
_TEMPORARY = re.compile(r"\b(create or replace)\s+temporary\s+(table|view)\b", re.IGNORECASE)
QUERIES = "/queries/v1/query-request"
server = importlib.import_module("fakesnow.server")  # the package has a function of this name
_execute = cursor.FakeSnowflakeCursor._execute
_timestamps = arrow.timestamp_to_sf_struct


def execute(self, *args):
    """Run a statement. What DuckDB refuses would else be answered with 500, which clients repeat for minutes."""
    try:
        return _execute(self, *args)
    except duckdb.Error as error:
        raise ProgrammingError(msg=str(error), errno=1) from error


def timestamps(column):
    """Send timestamps. No value would else arrive as 1970."""
    made, missing = _timestamps(column), pyarrow.array([one is None for one in column.to_pylist()])
    parts = [part.fill_null(0) for part in made.flatten()]
    return pyarrow.StructArray.from_arrays(parts, fields=list(made.type), mask=missing)


async def query(request: Request) -> Response:
    """Answer a request of several statements, of which the emulator runs the first only: one after the other."""
    body = await request.body()
    given = json.loads(gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body)
    several = (given.get("parameters") or {}).get("MULTI_STATEMENT_COUNT", 1) != 1
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-encoding"]
    for text in given["sqlText"].split(";\n") if several else [given["sqlText"]]:
        text = _TEMPORARY.sub(r"\1 \2", text, count=1)
        one = json.dumps({**given, "sqlText": text}).encode()

        async def receive(one=one):
            return {"type": "http.request", "body": one, "more_body": False}

        answer = await server.query_request(Request({**request.scope, "headers": headers}, receive))
        if answer.status_code == 500:  # clients repeat it for minutes
            return JSONResponse({**json.loads(answer.body), "data": {}})
        if not json.loads(answer.body)["success"]:
            break
    return answer


if __name__ == "__main__":
    cursor.FakeSnowflakeCursor._execute = execute
    arrow.timestamp_to_sf_struct = timestamps
    transforms.numeric_agg_implicit_cast = lambda expression: expression  # it would add up decimals as doubles
    routes = [one for one in server.routes if one.path != QUERIES]
    app = Starlette(routes=[Route(QUERIES, query, methods=["POST"]), *routes])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
