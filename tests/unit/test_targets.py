"""The engines behind `DBT_TARGET`: which there are, what is checked of them, what happens without their parts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dbt.config.renderer import ProfileRenderer
from dbt_common.context import set_invocation_context

from include.settings import DBT_PROJECT, dbt_target
from include.warehouse.errors import WarehouseError
from include.warehouse.targets import TARGETS, named, target
from include.warehouse.targets.base import Target
from testing.project import NAME, PROJECT

pytestmark = pytest.mark.unit

BROKEN = """
from include.warehouse.targets.base import Check, Release, nothing
from include.warehouse.targets.duckdb_file import DuckDBFile


class Broken(DuckDBFile):
    def publish(self, run_id: str, clean: Check = nothing) -> Release:
        return super().publish(run_id, clean)
"""


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_keeps_the_promise(name: str) -> None:
    if name in ("ducklake", "postgres"):
        pytest.importorskip("psycopg")
    if name in ("bigquery", "snowflake"):
        pytest.importorskip({"bigquery": "google.cloud.bigquery", "snowflake": "snowflake.connector"}[name])
    found = named(name)
    assert isinstance(found, Target) and found.name == name
    assert found is named(name)


def test_a_wrong_signature_in_a_target_fails_the_linter(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    command = ["mypy", "--config-file", PROJECT / "pyproject.toml", tmp_path / "broken.py"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'Signature of "publish" incompatible with supertype' in done.stdout


@pytest.mark.parametrize("given", ["", None, "duckdb"])
def test_a_target_that_is_empty_is_the_default(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBT_TARGET", raising=False)
    if given is not None:
        monkeypatch.setenv("DBT_TARGET", given)
    assert dbt_target() == "duckdb" and target() is named("duckdb")
    made = subprocess.run(
        ["make", "-s", "--eval=given:; @echo $$DBT_TARGET", "given"], cwd=PROJECT, capture_output=True, text=True
    )
    assert made.stdout == "duckdb\n"


def test_dbts_profile_takes_empty_variables_for_the_defaults_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBT_TARGET", "WAREHOUSE_DIR", "PGPORT"):
        monkeypatch.setenv(name, "")
    set_invocation_context(os.environ)
    given = yaml.safe_load((DBT_PROJECT / "profiles.yml").read_text())["analytics"]
    profile = ProfileRenderer({}).render_data(given)
    assert profile["target"] == "duckdb"
    assert profile["outputs"]["duckdb"]["path"] == f"../../data/{NAME}.duckdb"
    assert profile["outputs"]["postgres"]["port"] == 5432


def test_an_unknown_target_is_reported_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBT_TARGET", "duckdbb")
    with pytest.raises(
        WarehouseError, match="must be one of duckdb, encrypted, ducklake, postgres, bigquery, snowflake, not 'duckdbb'"
    ):
        target()


def run(folder: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"PYTHONPATH": str(folder), "WAREHOUSE_DIR": str(folder / "data"), **env}
    return subprocess.run([sys.executable, *code.split()], cwd=folder, env=given, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["ducklake", "postgres"])
def test_without_its_package_a_target_says_what_to_install(name: str, tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(\"No module named 'psycopg'\", name='psycopg')")
    path = f"{tmp_path}:{PROJECT}"
    done = run(tmp_path, "-m include.warehouse show", DBT_TARGET=name, PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: DBT_TARGET={name} needs packages of its own: make setup-{name} (No module named 'psycopg')\n"
    )


def test_the_other_targets_can_be_deleted(tmp_path: Path) -> None:
    """The pipeline by hand, on the default target."""
    ignored = shutil.ignore_patterns("target", "logs", "__pycache__", "data")
    copy = Path(shutil.copytree(PROJECT / "include", tmp_path / "include", ignore=ignored)).parent
    shutil.copytree(PROJECT / "include" / "data", copy / "include" / "data")
    for name in ("airflow.env", "pools.json"):
        shutil.copy(PROJECT / name, copy)
    for name in ("ducklake", "postgres", "pg_releases", "bigquery", "snowflake", "remote"):
        (copy / "include" / "warehouse" / "targets" / f"{name}.py").unlink()
    build = (
        "from include.warehouse.targets import target\n"
        "with target().open_working() as db: db.execute('create schema marts; create table marts.t as select 1 as i')\n"
        "target().publish('run', lambda _: None)\n"
    )
    (copy / "build.py").write_text(build)
    assert run(copy, "-m include.dlt_pipelines jaffle_shop").returncode == 0
    assert run(copy, "build.py").stderr == ""
    shown = run(copy, "-m include.warehouse show").stdout
    assert ["marts.t", "1"] in [line.split() for line in shown.splitlines()] and "jaffle_shop_raw.raw_orders" in shown
    deleted = run(copy, "-m include.warehouse show", DBT_TARGET="postgres")
    assert (deleted.returncode, deleted.stderr) == (
        1,
        "error: DBT_TARGET=postgres needs include/warehouse/targets/postgres.py, which has been deleted from this "
        "project.\n",
    )
