"""Who may write a warehouse that an Airflow serves, and which holder the error names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from include.warehouse import guard
from include.warehouse.errors import WarehouseError, WarehouseLockedError
from include.warehouse.targets import target

pytestmark = [pytest.mark.unit, pytest.mark.files]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def warehouse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def other_checkout(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "include", tmp_path / "other" / "include", ignore=shutil.ignore_patterns("target", "logs"))
    for name in ("airflow.env", "dbt_build_graph.py", "pools.json"):
        shutil.copy(ROOT / name, tmp_path / "other")
    return tmp_path / "other"


def in_checkout(folder: Path, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {"PYTHONPATH": str(folder), "DLT_PROJECT_DIR": str(folder / "include" / "dlt_pipelines"), **environment}
    return subprocess.run(command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True)


LOAD = (sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop")


def test_another_checkout_cannot_load_into_a_served_warehouse_unless_on_purpose(other_checkout: Path) -> None:
    with guard.serving("http://127.0.0.1:8080"):
        refused = in_checkout(other_checkout, *LOAD)
        assert refused.returncode == 1
        assert f"is served by the Airflow of another checkout: {ROOT} at http://127.0.0.1:8080" in refused.stderr
        assert "make preview" in refused.stderr
        with target().open_working():  # the serving checkout itself
            pass
        assert in_checkout(other_checkout, *LOAD, WAREHOUSE_SHARED="1").returncode == 0
        # What is not written can be compared.
        compared = in_checkout(other_checkout, sys.executable, "-m", "include.change", "diff")
        assert "Nothing is published" in compared.stderr
    assert in_checkout(other_checkout, *LOAD).returncode == 0


def test_the_lock_of_a_killed_airflow_is_nobodys(warehouse: Path) -> None:
    warehouse.mkdir()
    (warehouse / ".served").write_text('{"checkout": "/elsewhere", "pid": 1, "url": "http://127.0.0.1:8080"}')
    guard.check_checkout()
    with guard.serving("http://127.0.0.1:8081"):
        guard.check_checkout()


def test_a_second_airflow_on_the_same_warehouse_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with guard.serving("http://127.0.0.1:8080"):
        with guard.serving("http://127.0.0.1:8080"):  # of this checkout
            pass
        monkeypatch.setattr(guard, "REPOSITORY_ROOT", tmp_path)
        with pytest.raises(WarehouseError, match="another checkout"), guard.serving("http://127.0.0.1:8081"):
            pass


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux lists who holds a file")
def test_who_holds_the_working_database_is_named(warehouse: Path) -> None:
    with target().open_working():
        guard.check_free(0)  # this process
    guard.check_free(0)
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    path = warehouse / "jaffle_shop.duckdb"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "1\n"
        with pytest.raises(WarehouseLockedError, match=rf"is open in a process \(PID {holder.pid}\).*make preview"):
            guard.check_free(0.1)
        folders = ("--project-dir", "include/dbt_project", "--profiles-dir", "include/dbt_project")
        program = str(Path(sys.executable).with_name("dbt"))
        dbt = in_checkout(ROOT, program, "--quiet", "run", *folders, "--target-path", str(warehouse / "target"))
        assert dbt.returncode != 0
        assert f"(PID {holder.pid})" in dbt.stdout
        assert "Traceback" not in dbt.stdout + dbt.stderr
        holder.communicate("")
    guard.check_free(0)
