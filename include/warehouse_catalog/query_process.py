"""The process that `query.py` starts for one query: reads a JSON request from stdin, writes a JSON answer to stdout.

It runs isolated (`python -I`), imports nothing from the project, and is not meant to be imported.
"""

import contextlib
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb

# Everything but reading the attached database is disabled, then locked.
_CLOSED = (
    "set temp_directory = ''",
    "set python_enable_replacements = false",
    "set enable_external_access = false",
    "set autoinstall_known_extensions = false",
    "set autoload_known_extensions = false",
    "set threads = 1",
    "set lock_configuration = true",
)


def main() -> None:
    """Answer one request."""
    order = json.load(sys.stdin)
    sys.stdin.close()
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Second line of defence: no file writes, and limited memory and time, whatever DuckDB does.
    cpu = int(order["seconds"]) + 2
    for limit, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, 2 * order["memory_bytes"]),
    ):
        resource.setrlimit(limit, (most, most))
    try:
        answer = _answer(order)
    except duckdb.InterruptException:
        answer = {"error": f"Stopped after {order['seconds']:g} s, the time limit for queries."}
    except (duckdb.Error, ValueError) as error:
        answer = {"error": str(error).split("\n\nStack Trace")[0][:5000]}
    except MemoryError:
        answer = {"error": "The result needs more memory than a query may use."}
    json.dump(answer, sys.stdout)


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"set memory_limit = '{order['memory_bytes']}B'")
        for statement in order["attach"]:
            connection.execute(statement)
        connection.execute(f"use {order['database']}")
        for statement in _CLOSED:
            connection.execute(statement)
        statements = connection.extract_statements(order["sql"])
        if len(statements) != 1:
            raise ValueError(
                f"One statement at a time: got {len(statements)}." if statements else "There is no statement."
            )
        # SHOW, DESCRIBE and SUMMARIZE are SELECTs for DuckDB's parser.
        if statements[0].type != duckdb.StatementType.SELECT:
            raise ValueError(f"Only SELECT is allowed here, not {statements[0].type.name}.")
        timer = threading.Timer(order["seconds"], connection.interrupt)
        timer.daemon = True
        timer.start()
        started = time.monotonic()
        relation = connection.sql(order["sql"])  # bound, but not run until rows are fetched
        columns, types = relation.columns, [str(kind) for kind in relation.types]
        if len(columns) > order["max_columns"]:
            raise ValueError(
                f"A result may have at most {order['max_columns']:,} columns; this one has {len(columns):,}."
            )
        texts = ", ".join(f"cast(#{at} as varchar) as c{at}" for at in range(1, len(columns) + 1))
        cursor = relation.limit(order["max_rows"] + 1).project(texts)
        rows: list[Any] = []
        size, truncated = 0, False
        for row in _rows(cursor):
            size += sum(len(value) for value in row if value is not None) + 8 * len(row)
            if len(rows) == order["max_rows"] or size > order["max_bytes"]:
                truncated = True
                break
            rows.append(row)
        timer.cancel()
        seconds = round(time.monotonic() - started, 3)
        return {"columns": columns, "types": types, "rows": rows, "truncated": truncated, "seconds": seconds}


def _rows(relation: Any) -> Iterator[tuple[Any, ...]]:
    if hasattr(relation, "iter_rows"):  # DuckDB 2, whose relations have no fetchmany
        return iter(relation.iter_rows())
    return chain.from_iterable(iter(lambda: relation.fetchmany(256), []))


if __name__ == "__main__":
    main()
