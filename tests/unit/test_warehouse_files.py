"""Tables as Parquet and CSV files."""

import resource
import threading
from pathlib import Path

import duckdb
import pytest

from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import files
from testing.project import unchecked

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setenv("WAREHOUSE_KEEP_RELEASES", "1")


def publish(run_id: str, *statements: str) -> Release:
    with target().open_working() as connection:
        for statement in ("create schema if not exists marts", *statements):
            connection.execute(statement)
    return target().publish(run_id, unchecked)


def odd() -> Release:
    return publish(
        "run",
        "create or replace table marts.t (id bigint, name varchar, paid decimal(10, 2), day date)",
        "insert into marts.t values (1, '=1+1', 0.10, null), (-2, 'a \"b\"' || chr(10) || 'c', -12.34, '2026-01-31'),"
        " (null, '-x', null, null)",
        "create or replace view marts.v as from marts.t",
    )


@pytest.mark.parametrize("table", ["t", "v"])
def test_a_file_has_the_tables_rows_and_types(table: str) -> None:
    release = odd()
    path = files.table_file(release, "marts", table, "parquet")
    with target().open_release(release) as connection:
        assert duckdb.sql(f"from '{path}'").fetchall() == connection.execute(f"from marts.{table}").fetchall()
        assert duckdb.sql(f"from '{path}'").types == connection.sql(f"from marts.{table}").types


def test_a_csv_file_has_numbers_as_they_are_and_no_formulas() -> None:
    text = files.table_file(odd(), "marts", "t", "csv").read_text()
    assert text == 'id,name,paid,day\n1,\'=1+1,0.10,\n-2,"a ""b""\nc",-12.34,2026-01-31\n,\'-x,,\n'


def test_masked_columns_are_in_a_file_of_their_own() -> None:
    release = odd()
    paths = [files.table_file(release, "marts", "t", "csv", masked) for masked in (("name", "day"), ())]
    assert [line.split(",")[1] for line in paths[0].read_text().splitlines()] == ["name", *3 * ["•••"]]
    assert "•" not in paths[1].read_text()


def test_simultaneous_requests_write_once(monkeypatch: pytest.MonkeyPatch) -> None:
    release, written, real = odd(), [], files._write
    monkeypatch.setattr(files, "_write", lambda *given: (written.append(given), real(*given)))
    threads = [threading.Thread(target=files.table_file, args=(release, "marts", "t", "csv")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1


def test_files_go_with_their_release_and_when_the_space_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    old = files.table_file(odd(), "marts", "t", "csv")
    release = publish("next")
    one = files.table_file(release, "marts", "t", "csv")
    assert not old.exists()
    monkeypatch.setattr(files, "MAX_BYTES", 0)
    assert files.table_file(release, "marts", "t", "parquet").exists()
    assert not one.exists()


def test_a_run_that_publishes_again_has_new_files() -> None:
    assert "=1+1" in files.table_file(odd(), "marts", "t", "csv").read_text()
    again = publish("run", "create or replace table marts.t as select 2 as id")
    assert files.table_file(again, "marts", "t", "csv").read_text() == "id\n2\n"
    assert len(list(files.files_dir().iterdir())) == 1


def test_a_failed_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "select sum(a.range * b.range) as n from range(1000000) as a, range(1000000) as b"
    release = publish("run", "create table marts.t as select 1 as n", f"create view marts.slow as {endless}")
    monkeypatch.setattr(files, "SECONDS", 0.2)
    with pytest.raises(files.FileError, match=r"more than 0\.2 s"):
        files.table_file(release, "marts", "slow", "parquet")
    assert [path for path in files.files_dir().rglob("*") if path.is_file()] == []


def test_a_full_disk_is_reported_and_leaves_nothing() -> None:
    release = publish("run", "create table marts.t as select range as n from range(100000)")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(files.FileError, match=r"No space left in .*files"):
            files.table_file(release, "marts", "t", "csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for path in files.files_dir().rglob("*") if path.is_file()] == []


def test_an_encrypted_warehouse_offers_no_unencrypted_files(monkeypatch: pytest.MonkeyPatch) -> None:
    release = odd()
    monkeypatch.setenv("WAREHOUSE_ENCRYPTION_KEY", "x" * 44)
    monkeypatch.setenv("DBT_TARGET", "encrypted")
    with pytest.raises(files.FileError, match="encrypted"):
        files.table_file(release, "marts", "t", "csv")
    assert not files.files_dir().exists()
