"""A warehouse of an earlier version: to this version, and back, with both versions' own code."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import duckdb
import pytest

from include.settings import airflow_env
from include.warehouse.targets import target
from testing.project import NAME, PROJECT

pytestmark = [pytest.mark.integration, pytest.mark.files, pytest.mark.long]

# Before releases were called so; with today's versions of Airflow, dlt, dbt and DuckDB.
PREVIOUS = "578efa7"


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """A checkout of the earlier version."""
    done = subprocess.run(["git", "archive", PREVIOUS], cwd=PROJECT, capture_output=True)
    if done.returncode:
        pytest.skip(f"needs the history of the repository: {done.stderr.decode().strip()}")
    folder = tmp_path / "previous"
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Version:
    """A checkout, its environment and a warehouse that it shares with others."""

    def __init__(self, project: Path, root: Path) -> None:
        self.project, self.root = project, root
        outside = re.compile("AIRFLOW|WAREHOUSE|SOURCES__|DBT_|DLT_|MAKE")
        self.env = {name: value for name, value in os.environ.items() if not outside.match(name)}
        self.env |= {name: value for name, value in airflow_env(project).items() if not name.startswith("AIRFLOW")}
        self.env |= {
            "WAREHOUSE_DIR": str(root / "warehouse"),
            "SOURCES__JAFFLE_SHOP__DATA_DIR": str(root / "csv"),
            "DLT_PROJECT_DIR": str(project / "include" / "dlt_pipelines"),
            "PYTHONPATH": str(project),
            "PUBLISH_DIRTY_TREE": "allow",
        }

    def command(self, *words: str, folder: str = "") -> str:
        done = subprocess.run(words, cwd=self.project / folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    def run(self, run_id: str) -> None:
        """Load, build and publish, by hand as the README shows."""
        dbt = self.project / "include" / "dbt_project"
        self.command(sys.executable, "-m", "include.dlt_pipelines", NAME)
        if (dbt / "packages.yml").exists():
            self.command("dbt", "--quiet", "deps", folder="include/dbt_project")
        self.command("dbt", "--quiet", "build", "--profile", "analytics", folder="include/dbt_project")
        self.command(sys.executable, "-m", "include.runs", "publish", run_id)


def test_a_warehouse_of_an_earlier_version_goes_to_this_one_and_back(
    tmp_path: Path, previous: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PROJECT / "include" / "data", tmp_path / "csv")
    old, new = Version(previous, tmp_path), Version(PROJECT, tmp_path)
    published = tmp_path / "warehouse" / "published" / f"{NAME}.duckdb"

    def order(number: int) -> None:
        with (tmp_path / "csv" / "raw_orders.csv").open("a") as file:
            file.write(f"{number},1,2018-04-10,placed\n")

    def look(query: str) -> list[tuple[object, ...]]:
        with duckdb.connect(str(published), read_only=True) as connection:
            return connection.execute(query).fetchall()

    old.run("one")
    before = published.read_bytes()
    with duckdb.connect(str(tmp_path / "warehouse" / f"{NAME}.duckdb")) as connection:  # of still older versions
        connection.execute("create table warehouse.load (run_id varchar); create table warehouse.node (id varchar)")

    order(100)
    new.run("two")
    assert look("select count(*) from marts.orders") == [(100,)]
    own = "select table_name from duckdb_tables() where schema_name = 'warehouse' order by all"
    assert look(own) == [("builds",), ("release",)]
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "warehouse"))
    assert [(one.id, one.published) for one in target().list_releases()] == [("two", True), ("one", False)]
    new.command(sys.executable, "-m", "include.warehouse", "rollback", "one")
    assert published.read_bytes() == before
    new.command(sys.executable, "-m", "include.warehouse", "release-hold")

    order(101)
    old.run("three")
    assert look("select count(*) from marts.orders") == [(101,)]
    order(102)
    new.run("four")
    assert look("select count(*) from marts.orders") == [(102,)]
    assert {"two", "four"} <= {one.id for one in target().list_releases()}
