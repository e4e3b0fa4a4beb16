"""Encryption at rest: a real load and dbt build with a key."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from include.warehouse import paths
from include.warehouse.errors import WarehouseError
from include.warehouse.targets import target
from include.warehouse.targets.database_file import open_read_only

pytestmark = [pytest.mark.integration, pytest.mark.long]

PROJECT = Path(__file__).resolve().parents[2]
KEY = "the key's of this test"
PLAIN_TEXT = b"credit_card"


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of an encrypted warehouse, after a load and `dbt build`."""
    root = tmp_path_factory.mktemp("encrypted")
    env = {
        **os.environ,
        "HOME": str(root),
        "WAREHOUSE_DIR": str(root / "warehouse"),
        "WAREHOUSE_ENCRYPTION_KEY": KEY,
        "DBT_TARGET": "encrypted",
        "PYTHONPATH": str(PROJECT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    project = PROJECT / "include" / "dbt_project"
    for command in (
        [sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop"],
        ["dbt", "build", "--project-dir", str(project), "--profiles-dir", str(project), "--target-path", str(root)],
    ):
        done = subprocess.run(command, cwd=PROJECT, env=env, text=True, capture_output=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr
    return env


@pytest.fixture
def keyed(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HOME", "WAREHOUSE_DIR", "WAREHOUSE_ENCRYPTION_KEY", "DBT_TARGET"):
        monkeypatch.setenv(name, env[name])
    return monkeypatch


def test_every_warehouse_file_is_encrypted_and_readable_with_the_key(keyed: pytest.MonkeyPatch) -> None:
    with target().open_working() as connection:
        orders = connection.execute("select count(*) from marts.orders").fetchall()
    assert orders == [(99,)]
    files = [path for path in paths.warehouse_dir().rglob("*.duckdb*") if path.is_file()]
    assert files
    for path in files:
        assert PLAIN_TEXT not in path.read_bytes(), path
    with open_read_only(paths.working_path(), KEY) as reader:
        assert reader.execute("select count(*) from staging.stg_orders").fetchall() == [(99,)]


def test_a_wrong_or_missing_key_is_reported(keyed: pytest.MonkeyPatch) -> None:
    keyed.setenv("WAREHOUSE_ENCRYPTION_KEY", "another")
    with pytest.raises(duckdb.Error, match="Wrong encryption key"):
        target().open_working()
    keyed.setenv("WAREHOUSE_ENCRYPTION_KEY", "")
    with pytest.raises(WarehouseError, match="DBT_TARGET=encrypted needs WAREHOUSE_ENCRYPTION_KEY"):
        target().open_working()
    with pytest.raises(duckdb.Error, match="without a key"), open_read_only(paths.working_path()):
        pass


def test_a_key_with_a_target_that_does_not_encrypt_is_refused(keyed: pytest.MonkeyPatch) -> None:
    for name in ("duckdb", ""):
        keyed.setenv("DBT_TARGET", name)
        with pytest.raises(WarehouseError, match="DBT_TARGET=duckdb does not encrypt its files"):
            target()


def test_a_second_writers_error_names_the_lock_holder(keyed: pytest.MonkeyPatch) -> None:
    program = "from include.warehouse.targets import target; target().open_working(0)"
    with target().open_working():
        second = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, text=True, capture_output=True)
    assert f"PID {os.getpid()}" in second.stderr


def test_dbt_releases_the_database_to_the_rest_of_its_process(env: dict[str, str]) -> None:
    project = str(PROJECT / "include" / "dbt_project")
    program = (
        "import sys; from dbt.cli.main import dbtRunner; from include.warehouse.targets import target;"
        f"places = ['--project-dir', {project!r}, '--profiles-dir', {project!r}, '--target-path', sys.argv[1]];"
        "assert dbtRunner().invoke(['--quiet', 'run', '--select', 'stg_orders', *places]).success;"
        "from include.dbt_session import close_database; close_database();"
        "target().open_working(0).close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, env["HOME"]], cwd=PROJECT, env=env, text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("key", ["gehe\u0131m-und-lang", "back\\slash-and-long", "line\nbreak-and-long"])
def test_a_key_that_would_be_garbled_is_refused_and_not_printed(env: dict[str, str], key: str, tmp_path: Path) -> None:
    project = str(PROJECT / "include" / "dbt_project")
    dbt = ["dbt", "build", "--project-dir", project, "--profiles-dir", project, "--target-path", str(tmp_path)]
    for command in (
        [sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop"],
        [sys.executable, "-m", "include.warehouse", "show"],
        [*dbt, "--log-path", str(tmp_path), "--select", "stg_orders"],
    ):
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env={**env, "WAREHOUSE_ENCRYPTION_KEY": key},
            text=True,
            capture_output=True,
            timeout=200,
        )
        printed = done.stdout + done.stderr + "".join(file.read_text() for file in tmp_path.glob("*.log"))
        assert done.returncode and "WAREHOUSE_ENCRYPTION_KEY may have printable ASCII characters only" in printed, (
            printed
        )
        for shown in (key, repr(key)[1:-1], key.split("-")[0]):
            assert shown not in printed


def test_a_killed_load_leaves_no_plain_file_behind(env: dict[str, str]) -> None:
    folder = Path(env["WAREHOUSE_DIR"]) / "load"
    program = (
        "import os, pathlib, signal; from include.dlt_pipelines import load;"
        f"folder = pathlib.Path({str(folder)!r});"
        "load.rejects.first = lambda *_: ("
        "    print(*folder.rglob('*.parquet'), flush=True), os.kill(os.getpid(), signal.SIGKILL));"
        "load.load(load.find_source('jaffle_shop'), 'killed', full_refresh=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=env, text=True, capture_output=True)
    assert done.returncode == -signal.SIGKILL and "raw_orders" in done.stdout, "it had written plain files"
    while left := [file for file in folder.rglob("*") if file.is_file()]:
        assert left and time.sleep(0.05) is None  # pytest's timeout ends it
