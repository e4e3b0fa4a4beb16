"""Open the working database: wait for the lock holder, and handle unusable files."""

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from include.duckdb_session import STORAGE_VERSION
from include.settings import REPOSITORY_ROOT
from include.warehouse.errors import WarehouseCorruptError, WarehouseError, WarehouseLockedError
from include.warehouse.locks import releases_lock
from include.warehouse.paths import working_path
from include.warehouse.targets import target
from testing.project import NAME

pytestmark = pytest.mark.unit

HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def warehouse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "warehouse"))
    return tmp_path / "warehouse"


@contextlib.contextmanager
def another_process() -> Iterator[subprocess.Popen[str]]:
    """Hold the working database in a real process until its standard input is closed."""
    working_path().parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(working_path())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def fill() -> bytes:
    with target().open_working() as connection:
        connection.execute("create table numbers as select range as number, random() as noise from range(200000)")
    return working_path().read_bytes()


def test_creates_the_folder_and_the_database(warehouse: Path) -> None:
    with target().open_working() as connection:
        connection.execute("create table t as select 1 as i")
    assert (warehouse / f"{NAME}.duckdb").exists()


def test_waits_until_the_holder_releases_the_lock_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    with another_process() as holder:
        assert holder.stdin is not None
        threading.Timer(0.5, holder.stdin.close).start()
        with target().open_working(timeout_seconds=300) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    assert len(caplog.messages) == 1
    assert f"PID {holder.pid}" in caplog.messages[0]


def test_names_the_holder_and_what_to_do_after_the_timeout(warehouse: Path) -> None:
    with another_process() as holder:
        started = time.monotonic()
        with pytest.raises(WarehouseLockedError) as caught:
            target().open_working(timeout_seconds=0.3)
        assert time.monotonic() - started >= 0.3
    message = str(caught.value)
    assert str(warehouse / f"{NAME}.duckdb") in message
    assert f"(PID {holder.pid}), command line: " in message
    assert "import sys, duckdb" in message
    assert f"Readers should open the published file {warehouse}/published/{NAME}.duckdb instead" in message
    assert "then clear the task" in message


def test_the_timeout_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_LOCK_TIMEOUT", "0")
    with another_process(), pytest.raises(WarehouseLockedError, match="waited 0 s"):
        target().open_working()
    monkeypatch.setenv("WAREHOUSE_LOCK_TIMEOUT", "soon")
    with pytest.raises(WarehouseError, match="WAREHOUSE_LOCK_TIMEOUT must be a number of seconds, not 'soon'"):
        target().open_working()


def test_a_killed_holder_leaves_its_commits_and_no_lock() -> None:
    with another_process() as holder:
        holder.kill()
        holder.wait()
        with target().open_working(timeout_seconds=0) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"customer_id,first_name\n1,Ann\n",
        lambda content: os.urandom(50_000),
        lambda content: content[:1000],
        lambda content: content[: len(content) // 2],
        lambda content: content[:4096] + os.urandom(8192) + content[12288:],
    ],
    ids=["text", "garbage", "first bytes", "half", "headers overwritten"],
)
def test_a_damaged_file_is_moved_aside_by_restore_and_recreated(damage, warehouse: Path) -> None:  # type: ignore[no-untyped-def]
    content = fill()
    path = warehouse / f"{NAME}.duckdb"
    path.write_bytes(damage(content))
    Path(f"{path}.wal").write_bytes(b"what had not been checkpointed")
    with pytest.raises(WarehouseCorruptError) as caught:
        target().open_working()
    assert str(path) in str(caught.value)
    assert "make restore" in str(caught.value)
    said = target().restore()
    moved = sorted(path.name.split("Z")[-1] for path in warehouse.glob(f"{NAME}.duckdb.damaged-*"))
    assert not path.exists() and not Path(f"{path}.wal").exists() and moved == ["", ".wal"]
    assert f"{NAME}.duckdb.damaged-" in said and "The next load creates a new working database" in said
    with target().open_working() as connection:
        assert connection.execute("show tables").fetchall() == []


def test_a_mismatched_write_ahead_log_is_reported_as_damage(warehouse: Path) -> None:
    fill()
    writer = "import sys, os, duckdb; c = duckdb.connect(sys.argv[1]); c.execute('create table late as select 1 i'); "
    subprocess.run([sys.executable, "-c", f"{writer} os.kill(os.getpid(), 9)", working_path()], check=False)
    log = Path(f"{working_path()}.wal")
    stale = log.read_bytes()
    target().open_working().close()  # replays it
    log.write_bytes(stale)
    with pytest.raises(WarehouseCorruptError, match="WAL"):
        target().open_working()


def test_a_new_file_can_be_read_by_duckdb_1_5(warehouse: Path) -> None:
    """Also if a newer one makes it: make test-next. dbt by hand may be the first to open it."""
    with target().open_working() as connection:
        version = "select tags['storage_version'] from duckdb_databases() where database_name = current_database()"
        assert connection.execute(version).fetchall() == [(f"{STORAGE_VERSION}+",)]
    profiles = yaml.safe_load((REPOSITORY_ROOT / "include" / "dbt_project" / "profiles.yml").read_text())
    options = profiles["analytics"]["outputs"]["duckdb"]["config_options"]
    assert options == {"storage_compatibility_version": STORAGE_VERSION}


@pytest.mark.parametrize("size", [0, 4096, 8192])
def test_a_file_whose_creation_was_killed_is_recreated(size: int, warehouse: Path) -> None:
    content = fill()
    (warehouse / f"{NAME}.duckdb").write_bytes(content[:size])
    with target().open_working() as connection:
        assert connection.execute("show tables").fetchall() == []


def test_other_errors_are_neither_lock_nor_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "Corrupt-lock"))
    working_path().mkdir(parents=True)  # a folder where the file should be
    with pytest.raises(duckdb.IOException, match="Is a directory"):
        target().open_working()


def open_as_nobody(directory: str, answers: Any) -> None:
    if os.geteuid() == 0:  # root may open everything
        os.setuid(65534)
    os.environ["WAREHOUSE_DIR"] = directory
    try:
        target().open_working()
    except WarehouseError as error:
        answers.send(str(error))


def test_a_missing_permission_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setenv("WAREHOUSE_DIR", directory)
        fill()
        working_path().chmod(0)
        processes = multiprocessing.get_context("spawn")
        answers, theirs = processes.Pipe()
        process = processes.Process(target=open_as_nobody, args=(directory, theirs))
        process.start()
        process.join()
        assert answers.poll() and re.search(
            rf"This user cannot write the working database {working_path()} .*Permission denied.*Grant write access",
            answers.recv(),
        )


def test_the_releases_lock_names_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_LOCK_TIMEOUT", "0.2")
    with (
        releases_lock(),
        pytest.raises(WarehouseLockedError, match=rf"PID {os.getpid()}\).*waited 0.2 s"),
        releases_lock(),
    ):
        pass
    with releases_lock():
        pass


@pytest.mark.parametrize("end", ["end_turn", "kill"])
def test_a_task_waits_for_the_one_that_writes_until_it_ends_its_turn_or_is_killed(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    program = (
        "from include.warehouse.targets import target; target().begin_turn(); print('ready', flush=True); input();"
        "target().end_turn(); input()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY_ROOT
    ) as writer:
        assert writer.stdout and writer.stdin and writer.stdout.readline() == "ready\n"
        waiting = threading.Thread(target=target().begin_turn)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        if end == "kill":
            writer.kill()
        else:
            writer.stdin.write("\n")
            writer.stdin.flush()
        waiting.join(10)
        assert not waiting.is_alive()
        writer.kill()
    assert f"Waiting for the task that is writing: a process (PID {writer.pid})" in caplog.text
    assert "s for the task that was writing" in caplog.text
    target().end_turn()


def test_a_process_that_has_kept_its_turn_does_not_wait_for_itself() -> None:
    target().begin_turn()
    again = threading.Thread(target=target().begin_turn, daemon=True)
    again.start()
    again.join(10)
    assert not again.is_alive()
    target().end_turn()
