"""The command line: its output, and one line per error."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from include.warehouse.__main__ import main
from include.warehouse.paths import published_path, working_path
from include.warehouse.targets import target
from testing.project import unchecked

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def warehouse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def two_releases() -> None:
    with target().open_working() as connection:
        connection.execute("create schema marts")
        connection.execute("create table marts.customers as select range + 1 as customer_id from range(1234)")
    target().publish("run:1", unchecked)
    target().publish("run2", unchecked)


@pytest.mark.parametrize("command", ["show", "releases"])
def test_an_empty_warehouse_gets_a_helpful_message(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 0
    assert "yet: a run that passes its tests publishes the first" in capsys.readouterr().out


@pytest.mark.usefixtures("two_releases")
def test_releases_marks_what_readers_see(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["releases"]) == 0
    header, _, newest, oldest, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["release", "run", "created", "(UTC)", "code", "size"]
    assert newest.split()[:3] == ["*", "run2", "run2"]
    assert oldest.split()[0].startswith("run-1-") and oldest.split()[1] == "run:1"


@pytest.mark.usefixtures("two_releases")
def test_the_old_command_name_works_and_says_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["releases"])
    listed = capsys.readouterr().out
    assert main(["snapshots"]) == 0
    assert capsys.readouterr() == (listed, "`snapshots` is now `releases`; the next version drops the old name.\n")


@pytest.mark.usefixtures("two_releases")
def test_rollback_says_what_readers_see_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollback", "run:1"]) == 0
    assert "Readers now see run-1-" in capsys.readouterr().out


@pytest.mark.usefixtures("two_releases")
def test_show_prints_what_readers_see_and_how_to_open_it(capsys: pytest.CaptureFixture[str], warehouse: Path) -> None:
    assert main(["show"]) == 0
    out = capsys.readouterr().out
    path = str(published_path())
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[:6])
    assert facts["path"] == path and facts["release"] == facts["run"] == "run2"
    assert facts["created"].endswith("UTC") and facts["age"].startswith("0:00:") and facts["size"].endswith("iB")
    assert ["marts.customers", "1,234"] in [line.split() for line in out.splitlines()]
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")][2:] == ["1", "2", "3", "4", "5"]
    assert f'duckdb.connect("{path}", read_only=True)' in out
    assert "warehouse.builds" not in out
    one_liner = next(line for line in out.splitlines() if "python -c" in line).strip()
    shown = subprocess.run(
        one_liner.replace("python", sys.executable, 1), shell=True, check=True, capture_output=True, text=True
    )
    assert "customers" in shown.stdout


def run(*arguments: str, module: str = "warehouse") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"include.{module}", *arguments]
    environment = {**os.environ, "WAREHOUSE_LOCK_TIMEOUT": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def assert_one_line(completed: subprocess.CompletedProcess[str], *words: str) -> None:
    assert completed.returncode == 1
    assert completed.stdout == ""
    assert completed.stderr.startswith("error: ") and len(completed.stderr.splitlines()) == 1, completed.stderr
    assert all(word in completed.stderr for word in words), completed.stderr


@pytest.mark.usefixtures("two_releases")
def test_errors_are_one_line_and_exit_code_1(warehouse: Path) -> None:
    assert_one_line(run("rollback", "nope"), "'nope'", "Kept: run2, run-1-")
    with duckdb.connect(str(working_path())):
        assert_one_line(run("failures", module="runs"), "is locked by", f"PID {os.getpid()}")
    working_path().write_bytes(b"garbage")
    assert_one_line(run("failures", module="runs"), "is damaged", "make restore")


@pytest.mark.usefixtures("two_releases")
def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m include.warehouse show | head -n 1"
    completed = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout.startswith("path") and completed.stderr == ""
