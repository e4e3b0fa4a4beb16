"""A date cut from a moment does not depend on the time zone of the machine that loads, builds or reads it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from include.duckdb_session import open_duckdb
from include.settings import REPOSITORY_ROOT
from testing import feature_project

pytestmark = [pytest.mark.integration, pytest.mark.files]

PROGRAM = """
import json, sys
from pathlib import Path
from dbt.cli.main import dbtRunner
from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.load import load
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from include.runs.publish import publish
from include.warehouse.targets import target

folder = Path(sys.argv[1])
table = TableContract("raw", {"id": "BIGINT", "happened_at": "TIMESTAMP WITH TIME ZONE"}, ("id",))
load(FileSource("one", str(folder), (table,)), "a-run")
project = str(folder / "project")
options = ["--project-dir", project, "--profiles-dir", project, "--log-path", project]
assert dbtRunner().invoke(["--quiet", "build", *options]).success
DuckDBConnectionManager.close_all_connections()
publish("a-run", folder / "project" / "target" / "manifest.json")
with target().open_release() as reader:
    rows = [reader.execute(f"select id, d::varchar from marts.{one} order by id").fetchall() for one in ("t", "v")]
print("ROWS", json.dumps(rows))
"""


def dates(folder: Path, zone: str) -> list[list[list[object]]]:
    """What readers see in a table and in a view of a warehouse that was made in a time zone."""
    folder.mkdir()
    (folder / "raw.csv").write_text("id,happened_at\n1,2026-01-01 23:30:00+00\n2,2026-01-02 00:30:00+00\n")
    feature_project.write(folder / "project", machinery_only=True)
    models = folder / "project" / "models"
    models.mkdir()
    sql = "select id, cast(happened_at as date) as d from {{ source('one', 'raw') }}"
    (models / "t.sql").write_text(sql)
    (models / "v.sql").write_text("{{ config(materialized='view') }} " + sql)
    (models / "sources.yml").write_text("sources: [{name: one, schema: one_raw, tables: [{name: raw}]}]")
    env = {
        "TZ": zone,
        "WAREHOUSE_DIR": str(folder / "data"),
        "PYTHONPATH": str(REPOSITORY_ROOT),
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], env=os.environ | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = next(line for line in done.stdout.splitlines() if line.startswith("ROWS "))
    rows: list[list[list[object]]] = json.loads(found.removeprefix("ROWS "))
    return rows


@pytest.mark.long
def test_marts_are_equal_on_machines_of_different_time_zones(tmp_path: Path) -> None:
    utc = [[1, "2026-01-01"], [2, "2026-01-02"]]
    for zone in ("Pacific/Kiritimati", "America/Los_Angeles"):
        assert dates(tmp_path / zone.split("/")[1], zone) == [utc, utc]


def test_the_setting_is_the_zone_of_every_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    monkeypatch.setenv("WAREHOUSE_TIMEZONE", "Asia/Tokyo")
    with open_duckdb() as connection:
        cut = "select cast(timestamptz '2026-01-01 23:30:00+00' as date)::varchar"
        assert connection.execute(cut).fetchall() == connection.cursor().execute(cut).fetchall() == [("2026-01-02",)]
