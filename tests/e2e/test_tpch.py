"""TPC-H from `.tbl` files, through new-source and a real Airflow: its queries, as models, give the official answers."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from testing.airflow_processes import Deployment
from testing.project import NAME, PROJECT, Copy

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(3000)]

SCALE = float(os.environ.get("TPCH_SCALE", "0.01"))  # there are answers for 0.01, 0.1 and 1
CONFIG = "{{ config(schema='marts', materialized='table') }}"
RELATIONSHIPS = 9


def generate(folder: Path) -> tuple[dict[str, list[str]], dict[int, str], dict[int, str]]:
    """Write the files; return the columns of each table, the queries and their answers."""
    import duckdb_extensions

    folder.mkdir()
    with duckdb.connect() as connection:
        duckdb_extensions.import_extension("tpch", con=connection)
        connection.execute(f"load tpch; call dbgen(sf={SCALE})")
        tables = [name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()]
        columns = {}
        for table in tables:
            # As dbgen writes them: no header, and a delimiter after the last value.
            connection.execute(
                f"copy (select *, null as nothing from {table}) to '{folder}/{table}.tbl' (delimiter '|', header false)"
            )
            columns[table] = [name for name, *_ in connection.execute(f"describe {table}").fetchall()]
        queries = dict(connection.execute("select query_nr, query from tpch_queries()").fetchall())
        answers = connection.execute(
            "select query_nr, answer from tpch_answers() where scale_factor = ?", [SCALE]
        ).fetchall()
    return columns, queries, dict(answers)


def model(query: str, tables: list[str], staged: dict[str, str]) -> str:
    sources = ",\n".join(f"{table} as (select * from {{{{ ref('{staged[table]}') }}}})" for table in tables)
    return f"{CONFIG}\nwith\n{sources},\nanswer as (\n{query.strip().rstrip(';')}\n)\nselect * from answer\n"


def plain(row: tuple[str | None, ...]) -> tuple[str, ...]:
    """Return values as texts, numbers with ten digits: sums of doubles depend on their order."""

    def text(value: str | None) -> str:
        try:
            return f"{float(value or ''):.10g}"
        except ValueError:
            return value or ""

    return tuple(map(text, row))


def test_the_queries_of_tpch_give_the_official_answers(tmp_path: Path) -> None:
    columns, queries, answers = generate(tmp_path / "tbl")
    copy = Copy(tmp_path / "project")
    header = "; ".join(f"{table}: {', '.join(names)}" for table, names in columns.items())
    files = " ".join(f"{tmp_path}/tbl/{table}.tbl" for table in columns)
    copy.run(f"{sys.executable} scripts/new_source.py {files} --name tpch --header {shlex.quote(header)}")
    staging = copy.file("include/dbt_project/models/staging")
    staged = {
        table: next(one.stem for one in staging.glob("*.sql") if f"source('tpch', '{table}')" in one.read_text())
        for table in columns
    }
    described = [staging.joinpath(f"{name}.yml").read_text() for name in staged.values()]
    assert sum(text.count("relationships:") for text in described) == RELATIONSHIPS
    for number, query in queries.items():
        copy.write(f"include/dbt_project/models/tpch/q{number}.sql", model(query, list(columns), staged))
    deployment = Deployment(tmp_path, copy.root, probes=False)
    deps = next(line for line in (PROJECT / "Makefile").read_text().splitlines() if line.startswith("DBT_DEPS"))
    commands = f"{deps.split(':= ')[1]} && python -m include.runs.manifest"
    subprocess.run(commands, shell=True, cwd=copy.file("include/dbt_project"), env=deployment.env, check=True)
    deployment.initialise()
    with deployment.running() as airflow:
        run = airflow.trigger(NAME)
        assert run.state == "success", run.tasks()
    for number, answer in answers.items():
        with duckdb.connect(str(deployment.published), read_only=True) as connection:
            found = connection.execute(f"select columns(*)::varchar from marts.q{number}").fetchall()
        expected = [tuple(line.split("|")) for line in answer.splitlines()[1:]]
        assert sorted(map(plain, found)) == sorted(map(plain, expected)), number
