"""Publish, list, prune and roll back in one process."""

import os
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from include.warehouse import (
    NotReadyError,
    PublishError,
    UnknownSnapshotError,
    WarehouseCorruptError,
    WarehouseError,
    list_snapshots,
    open_read_only,
    open_working,
    publish,
    published_path,
    published_snapshot,
    rollback,
)
from tests.conftest import NAME, unchecked

pytestmark = pytest.mark.unit

RUN = "manual__2026-11-23T09:40:00+00:00"


@pytest.fixture(autouse=True)
def warehouse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.delenv("WAREHOUSE_KEEP_SNAPSHOTS", raising=False)
    build(1)
    return tmp_path


def build(generation: int) -> None:
    """Build the working database as a run does, with a generation that readers can check."""
    with open_working() as connection:
        connection.execute("create schema if not exists marts; create schema if not exists staging")
        connection.execute(f"create or replace table marts.customers as select {generation} as g from range(1000)")
        connection.execute("create or replace view staging.stg as select g from marts.customers")


def seen() -> int:
    """Return the generation that a reader sees."""
    with duckdb.connect(str(published_path()), read_only=True) as connection:
        row = connection.execute("select distinct g from staging.stg").fetchone()
    assert row is not None
    return int(row[0])


def hidden_files(warehouse: Path) -> list[str]:
    return sorted(
        path.name
        for folder in ("snapshots", "published")
        for path in (warehouse / folder).glob("*")
        if path.name != ".lock" and not path.name.endswith(".duckdb")
    )


def test_publish_shows_readers_a_read_only_hard_link_of_the_snapshot(warehouse: Path) -> None:
    before = datetime.now(UTC)
    snapshot = publish(RUN, unchecked)
    assert seen() == 1
    assert published_path().samefile(Path(snapshot.location))
    assert not published_path().is_symlink()
    assert stat.S_IMODE(Path(snapshot.location).stat().st_mode) == 0o444
    assert snapshot.run_id == RUN and snapshot.published
    assert Path(snapshot.location) == warehouse / "snapshots" / f"{snapshot.id}.duckdb"
    assert before <= snapshot.created_at <= datetime.now(UTC)
    assert snapshot.created_at.utcoffset() == timedelta(0)
    assert snapshot.size_bytes == Path(snapshot.location).stat().st_size
    assert [snapshot] == list_snapshots()
    assert snapshot == published_snapshot()
    assert hidden_files(warehouse) == []


def test_readers_see_nothing_of_an_unpublished_run() -> None:
    publish("one", unchecked)
    build(2)
    assert seen() == 1
    publish("two", unchecked)
    assert seen() == 2


def test_an_open_reader_keeps_its_file() -> None:
    publish("one", unchecked)
    with open_read_only(published_path()) as reader:
        build(2)
        publish("two", unchecked)
        assert reader.execute("select distinct g from marts.customers").fetchone() == (1,)
        with open_read_only(published_path()) as another:
            assert another.execute("select distinct g from marts.customers").fetchone() == (2,)


def test_publishing_a_run_again_replaces_its_snapshot() -> None:
    first = publish(RUN, unchecked)
    build(2)
    second = publish(RUN, unchecked)
    assert [second] == list_snapshots()
    assert second.id == first.id and second.created_at > first.created_at
    assert seen() == 2


def test_changes_that_were_only_in_the_write_ahead_log_are_published() -> None:
    writer = "import os, sys, duckdb; c = duckdb.connect(sys.argv[1]); c.execute('update marts.customers set g = 5'); "
    path = published_path().parents[1] / f"{NAME}.duckdb"
    subprocess.run([sys.executable, "-c", f"{writer} os.kill(os.getpid(), 9)", path], check=False)
    assert Path(f"{path}.wal").stat().st_size
    publish(RUN, unchecked)
    assert seen() == 5


def test_only_the_newest_snapshots_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_KEEP_SNAPSHOTS", "3")
    for number in range(5):
        publish(f"run{number}", unchecked)
    assert [snapshot.id for snapshot in list_snapshots()] == ["run4", "run3", "run2"]


def test_the_published_snapshot_is_kept_even_if_it_is_old(monkeypatch: pytest.MonkeyPatch, warehouse: Path) -> None:
    for number in range(3):
        publish(f"run{number}", unchecked)
    rollback("run0")
    # As if the clock was set back: the new snapshot records the oldest creation time.
    monkeypatch.setenv("WAREHOUSE_KEEP_SNAPSHOTS", "1")
    monkeypatch.setattr("include.warehouse.ledger.datetime", _LongAgo)
    publish("run3", unchecked)
    assert [(snapshot.id, snapshot.published) for snapshot in list_snapshots()] == [("run2", False), ("run3", True)]


class _LongAgo(datetime):
    @classmethod
    def now(cls, tz=None) -> datetime:  # type: ignore[no-untyped-def, override]
        return datetime(1999, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_an_invalid_number_of_snapshots_is_reported_before_doing_anything(
    value: str, monkeypatch: pytest.MonkeyPatch, warehouse: Path
) -> None:
    monkeypatch.setenv("WAREHOUSE_KEEP_SNAPSHOTS", value)
    with pytest.raises(WarehouseError, match=f"WAREHOUSE_KEEP_SNAPSHOTS .* not '{value}'"):
        publish(RUN, unchecked)
    assert not (warehouse / "snapshots").exists()


def test_a_warehouse_without_marts_is_not_published(warehouse: Path) -> None:
    publish("one", unchecked)
    with open_working() as connection:
        connection.execute("drop view staging.stg; drop table marts.customers")
    with pytest.raises(NotReadyError, match="no table in marts"):
        publish("two", unchecked)
    assert seen() == 1
    assert hidden_files(warehouse) == []


def test_a_missing_working_database_is_not_created(warehouse: Path) -> None:
    (warehouse / f"{NAME}.duckdb").unlink()
    with pytest.raises(NotReadyError, match="run the pipeline first"):
        publish(RUN, unchecked)
    assert list(warehouse.iterdir()) == []


def test_a_copy_that_differs_is_not_published(monkeypatch: pytest.MonkeyPatch, warehouse: Path) -> None:
    publish("one", unchecked)
    other = warehouse / "other.duckdb"
    shutil.copy(published_path(), other)
    build(2)
    with open_working() as connection:
        connection.execute("insert into marts.customers values (2)")
    tools = warehouse / "tools"
    tools.mkdir()
    (tools / "cp").write_text(f'#!/bin/sh\nfor target; do :; done\nexec cat {other} > "$target"\n')
    (tools / "cp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(PublishError, match=r"differs from the working database in marts\.customers"):
        publish("two", unchecked)
    assert seen() == 1
    assert hidden_files(warehouse) == []
    assert [snapshot.id for snapshot in list_snapshots()] == ["one"]


def test_a_transaction_left_open_in_this_process_blocks_publish(warehouse: Path) -> None:
    with open_working() as connection:
        connection.begin()
        connection.execute("insert into marts.customers values (9)")
        with pytest.raises(PublishError, match=r"(?i)checkpoint"):
            publish(RUN, unchecked)
    assert hidden_files(warehouse) == []


def test_rollback_by_snapshot_id_and_by_run_id(warehouse: Path) -> None:
    old = publish(RUN, unchecked)
    build(2)
    new = publish("two", unchecked)
    assert rollback(old.id) == published_snapshot()
    assert seen() == 1
    assert rollback("two").id == new.id
    assert seen() == 2
    assert rollback(RUN).id == old.id
    assert seen() == 1
    assert [snapshot.published for snapshot in list_snapshots()] == [False, True]
    assert hidden_files(warehouse) == []


def test_rollback_to_the_published_snapshot_changes_nothing(warehouse: Path) -> None:
    publish("one", unchecked)
    assert rollback("one").published
    assert seen() == 1
    assert hidden_files(warehouse) == []


def test_rollback_needs_no_working_database(warehouse: Path) -> None:
    publish("one", unchecked)
    build(2)
    publish("two", unchecked)
    (warehouse / f"{NAME}.duckdb").write_bytes(b"damaged")
    rollback("one")
    assert seen() == 1


def test_an_unknown_snapshot_error_lists_the_kept_ones() -> None:
    publish("one", unchecked)
    publish("two", unchecked)
    with pytest.raises(UnknownSnapshotError, match=r"'three'.* Kept: two, one\."):
        rollback("three")
    with pytest.raises(UnknownSnapshotError):
        rollback("../jaffle_shop")


def test_a_damaged_snapshot_is_not_shown_to_readers(warehouse: Path) -> None:
    publish("one", unchecked)
    publish("two", unchecked)
    damaged = warehouse / "snapshots" / "one.duckdb"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:20000])
    with pytest.raises(WarehouseCorruptError, match=r"one\.duckdb"):
        rollback("one")
    published = published_snapshot()
    assert published is not None and published.id == "two"
    assert hidden_files(warehouse) == []


def test_foreign_and_damaged_files_are_skipped_with_a_warning(
    warehouse: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = publish("good", unchecked)
    folder = warehouse / "snapshots"
    content = Path(good.location).read_bytes()
    (folder / "empty.duckdb").touch()
    (folder / "text.duckdb").write_text("not a database")
    (folder / "half.duckdb").write_bytes(content[: len(content) // 2])
    (folder / "copy.duckdb").write_bytes(content)
    (folder / "folder.duckdb").mkdir()
    (folder / "dangling.duckdb").symlink_to("nowhere")
    (folder / "notes.txt").touch()
    rows = {"nulls": "null, null, null", "odd": "'odd', 'odd', 'infinity'::timestamptz", "types": "1, 2, 3"}
    for name, row in rows.items():
        with duckdb.connect(str(folder / f"{name}.duckdb")) as connection:
            connection.execute("create schema warehouse")
            connection.execute(
                f"create table warehouse.snapshot as select * from (values ({row})) _(snapshot_id, run_id, created_at)"
            )
    with duckdb.connect(str(folder / "foreign.duckdb")) as connection:
        connection.execute("create table t as select 1 as i")
    assert list_snapshots() == [good]
    skipped = {path.name for path in folder.iterdir() if any(path.name in message for message in caplog.messages)}
    names = ("empty", "text", "half", "copy", "folder", "nulls", "odd", "types", "foreign")
    expected = {f"{name}.duckdb" for name in names}
    assert skipped == expected
    publish("next", unchecked)  # neither fails nor prunes foreign files
    assert expected <= {path.name for path in folder.iterdir()}


def test_damage_in_one_file_never_hides_the_others(warehouse: Path) -> None:
    good = publish("good", unchecked)
    content = Path(good.location).read_bytes()
    for offset in range(0, len(content), 16384):
        damaged = content[:offset] + os.urandom(2048) + content[offset + 2048 :]
        (warehouse / "snapshots" / f"damaged{offset}.duckdb").write_bytes(damaged)
    assert list_snapshots() == [good]


def test_no_snapshots_yet() -> None:
    assert list_snapshots() == []
    assert published_snapshot() is None


def test_the_published_state_is_known_even_if_its_snapshot_file_is_gone() -> None:
    snapshot = publish("one", unchecked)
    Path(snapshot.location).unlink()
    published = published_snapshot()
    assert published is not None
    assert (published.id, Path(published.location), published.published) == ("one", published_path(), True)


def test_leftovers_of_killed_processes_are_removed_by_the_next_publish_or_rollback(warehouse: Path) -> None:
    for step in (lambda: publish("one", unchecked), lambda: rollback("one")):
        for folder in ("snapshots", "published"):
            (warehouse / folder).mkdir(exist_ok=True)
            (warehouse / folder / ".x.duckdb.tmp").write_bytes(b"half a copy")
            (warehouse / folder / ".x.duckdb.tmp.wal").touch()
        # DuckDB replays a WAL next to a file into it, whoever wrote it.
        (warehouse / "published" / f"{NAME}.duckdb.wal").touch()
        (warehouse / "snapshots" / "one.duckdb.wal").touch()
        step()
        assert hidden_files(warehouse) == []
        assert seen() == 1
