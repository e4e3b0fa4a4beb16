"""Publish, list, prune and roll back in one process."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from include.warehouse.errors import (
    NotReadyError,
    PublishError,
    UnknownReleaseError,
    WarehouseCorruptError,
    WarehouseError,
)
from include.warehouse.paths import published_path
from include.warehouse.targets import duckdb_file, target
from include.warehouse.targets.base import keep_releases
from include.warehouse.targets.database_file import open_read_only
from testing.project import NAME, unchecked

pytestmark = pytest.mark.unit

RUN = "manual__2026-11-23T09:40:00+00:00"


@pytest.fixture(autouse=True)
def warehouse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.delenv("WAREHOUSE_KEEP_RELEASES", raising=False)
    build(1)
    return tmp_path


def build(generation: int) -> None:
    """Build the working database as a run does, with a generation that readers can check."""
    with target().open_working() as connection:
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
        for folder in ("releases", "published")
        for path in (warehouse / folder).glob("*")
        if path.name != ".lock" and not path.name.endswith(".duckdb")
    )


def test_publish_shows_readers_a_read_only_hard_link_of_the_release(warehouse: Path) -> None:
    before = datetime.now(UTC)
    release = target().publish(RUN, unchecked)
    assert seen() == 1
    assert published_path().samefile(Path(release.location))
    assert not published_path().is_symlink()
    assert stat.S_IMODE(Path(release.location).stat().st_mode) == 0o444
    assert release.run_id == RUN and release.published
    assert Path(release.location) == warehouse / "releases" / f"{release.id}.duckdb"
    assert before <= release.created_at <= datetime.now(UTC)
    assert release.created_at.utcoffset() == timedelta(0)
    assert release.size_bytes == Path(release.location).stat().st_size
    assert [release] == target().list_releases()
    assert release == target().published_release()
    assert hidden_files(warehouse) == []


def test_readers_see_nothing_of_an_unpublished_run() -> None:
    target().publish("one", unchecked)
    build(2)
    assert seen() == 1
    target().publish("two", unchecked)
    assert seen() == 2


def test_an_open_reader_keeps_its_file() -> None:
    target().publish("one", unchecked)
    with open_read_only(published_path()) as reader:
        build(2)
        target().publish("two", unchecked)
        assert reader.execute("select distinct g from marts.customers").fetchone() == (1,)
        with open_read_only(published_path()) as another:
            assert another.execute("select distinct g from marts.customers").fetchone() == (2,)


def test_publishing_a_run_again_replaces_its_release() -> None:
    first = target().publish(RUN, unchecked)
    build(2)
    second = target().publish(RUN, unchecked)
    assert [second] == target().list_releases()
    assert second.id == first.id and second.created_at > first.created_at
    assert seen() == 2


def test_a_release_is_read_once_unless_another_process_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = target().publish(RUN, unchecked)
    assert target().list_releases() == [first]
    build(2)
    second = duckdb_file.DuckDBFile("duckdb").publish(RUN, unchecked)
    assert target().list_releases() == [second] and second.created_at > first.created_at
    monkeypatch.setattr(duckdb_file, "open_duckdb", None)
    assert target().list_releases() == [second] == [target().published_release()]


def test_changes_that_were_only_in_the_write_ahead_log_are_published() -> None:
    writer = "import os, sys, duckdb; c = duckdb.connect(sys.argv[1]); c.execute('update marts.customers set g = 5'); "
    path = published_path().parents[1] / f"{NAME}.duckdb"
    subprocess.run([sys.executable, "-c", f"{writer} os.kill(os.getpid(), 9)", path], check=False)
    assert Path(f"{path}.wal").stat().st_size
    target().publish(RUN, unchecked)
    assert seen() == 5


def test_only_the_newest_releases_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_KEEP_RELEASES", "3")
    for number in range(5):
        target().publish(f"run{number}", unchecked)
    assert [release.id for release in target().list_releases()] == ["run4", "run3", "run2"]


def test_the_published_release_is_kept_even_if_it_is_old(monkeypatch: pytest.MonkeyPatch, warehouse: Path) -> None:
    for number in range(3):
        target().publish(f"run{number}", unchecked)
    target().rollback("run0")
    # As if the clock was set back: the new release records the oldest creation time.
    monkeypatch.setenv("WAREHOUSE_KEEP_RELEASES", "1")
    monkeypatch.setattr("include.warehouse.builds.datetime", _LongAgo)
    target().publish("run3", unchecked)
    assert [(release.id, release.published) for release in target().list_releases()] == [
        ("run2", False),
        ("run3", True),
    ]


class _LongAgo(datetime):
    @classmethod
    def now(cls, tz=None) -> datetime:  # type: ignore[no-untyped-def, override]
        return datetime(1999, 1, 1, tzinfo=UTC)


def test_the_old_name_of_a_setting_still_counts_if_the_new_one_is_not_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WAREHOUSE_KEEP_SNAPSHOTS", "2")
    assert keep_releases() == 2
    assert "WAREHOUSE_KEEP_SNAPSHOTS is now WAREHOUSE_KEEP_RELEASES" in caplog.text
    monkeypatch.setenv("WAREHOUSE_KEEP_RELEASES", "3")
    assert keep_releases() == 3


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_an_invalid_number_of_releases_is_reported_before_doing_anything(
    value: str, monkeypatch: pytest.MonkeyPatch, warehouse: Path
) -> None:
    monkeypatch.setenv("WAREHOUSE_KEEP_RELEASES", value)
    with pytest.raises(WarehouseError, match=f"WAREHOUSE_KEEP_RELEASES .* not '{value}'"):
        target().publish(RUN, unchecked)
    assert not (warehouse / "releases").exists()


def test_a_warehouse_without_marts_is_not_published(warehouse: Path) -> None:
    target().publish("one", unchecked)
    with target().open_working() as connection:
        connection.execute("drop view staging.stg; drop table marts.customers")
    with pytest.raises(NotReadyError, match="only loaded tables"):
        target().publish("two", unchecked)
    assert seen() == 1
    assert hidden_files(warehouse) == []


def test_a_missing_working_database_is_not_created(warehouse: Path) -> None:
    (warehouse / f"{NAME}.duckdb").unlink()
    with pytest.raises(NotReadyError, match="run the pipeline first"):
        target().publish(RUN, unchecked)
    assert list(warehouse.iterdir()) == []


def test_a_copy_that_differs_is_not_published(monkeypatch: pytest.MonkeyPatch, warehouse: Path) -> None:
    target().publish("one", unchecked)
    other = warehouse / "other.duckdb"
    shutil.copy(published_path(), other)
    build(2)
    with target().open_working() as connection:
        connection.execute("insert into marts.customers values (2)")
    tools = warehouse / "tools"
    tools.mkdir()
    (tools / "cp").write_text(f'#!/bin/sh\nfor target; do :; done\nexec cat {other} > "$target"\n')
    (tools / "cp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(PublishError, match=r"differs from the working database in marts\.customers"):
        target().publish("two", unchecked)
    assert seen() == 1
    assert hidden_files(warehouse) == []
    assert [release.id for release in target().list_releases()] == ["one"]


def test_a_transaction_left_open_in_this_process_blocks_publish(warehouse: Path) -> None:
    with target().open_working() as connection:
        connection.begin()
        connection.execute("insert into marts.customers values (9)")
        with pytest.raises(PublishError, match=r"(?i)checkpoint"):
            target().publish(RUN, unchecked)
    assert hidden_files(warehouse) == []


def test_rollback_by_release_id_and_by_run_id(warehouse: Path) -> None:
    old = target().publish(RUN, unchecked)
    build(2)
    new = target().publish("two", unchecked)
    assert target().rollback(old.id) == target().published_release()
    assert seen() == 1
    assert target().rollback("two").id == new.id
    assert seen() == 2
    assert target().rollback(RUN).id == old.id
    assert seen() == 1
    assert [release.published for release in target().list_releases()] == [False, True]
    assert hidden_files(warehouse) == []


def test_what_is_published_is_one_release_while_readers_are_switched() -> None:
    kept = {}
    for generation, run_id in enumerate(("one", "two"), 1):
        build(generation)
        release = target().publish(run_id, unchecked)
        kept[release.id] = release.location
    done = threading.Event()

    def switch() -> None:
        for number in range(60):
            target().rollback(("one", "two")[number % 2])
        done.set()

    switching = threading.Thread(target=switch)
    switching.start()
    while not done.is_set():
        found = target().published_release()
        assert found is not None and found.published and found.location == kept[found.id]
    switching.join()


def test_rollback_to_the_published_release_changes_nothing(warehouse: Path) -> None:
    target().publish("one", unchecked)
    assert target().rollback("one").published
    assert seen() == 1
    assert hidden_files(warehouse) == []


def test_rollback_needs_no_working_database(warehouse: Path) -> None:
    target().publish("one", unchecked)
    build(2)
    target().publish("two", unchecked)
    (warehouse / f"{NAME}.duckdb").write_bytes(b"damaged")
    target().rollback("one")
    assert seen() == 1


def test_an_unknown_release_error_lists_the_kept_ones() -> None:
    target().publish("one", unchecked)
    target().publish("two", unchecked)
    with pytest.raises(UnknownReleaseError, match=r"'three'.* Kept: two, one\."):
        target().rollback("three")
    with pytest.raises(UnknownReleaseError):
        target().rollback("../jaffle_shop")


def test_a_damaged_release_is_not_shown_to_readers(warehouse: Path) -> None:
    target().publish("one", unchecked)
    target().publish("two", unchecked)
    damaged = warehouse / "releases" / "one.duckdb"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:20000])
    with pytest.raises(WarehouseCorruptError, match=r"one\.duckdb"):
        target().rollback("one")
    published = target().published_release()
    assert published is not None and published.id == "two"
    assert hidden_files(warehouse) == []


def test_foreign_and_damaged_files_are_skipped_with_a_warning(
    warehouse: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = target().publish("good", unchecked)
    folder = warehouse / "releases"
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
                f"create table warehouse.release as select * from (values ({row})) _(release_id, run_id, created_at)"
            )
    with duckdb.connect(str(folder / "foreign.duckdb")) as connection:
        connection.execute("create table t as select 1 as i")
    assert target().list_releases() == [good]
    skipped = {path.name for path in folder.iterdir() if any(path.name in message for message in caplog.messages)}
    names = ("empty", "text", "half", "copy", "folder", "nulls", "odd", "types", "foreign")
    expected = {f"{name}.duckdb" for name in names}
    assert skipped == expected
    target().publish("next", unchecked)  # neither fails nor prunes foreign files
    assert expected <= {path.name for path in folder.iterdir()}


def test_damage_in_one_file_never_hides_the_others(warehouse: Path) -> None:
    good = target().publish("good", unchecked)
    content = Path(good.location).read_bytes()
    for offset in range(0, len(content), 16384):
        damaged = content[:offset] + os.urandom(2048) + content[offset + 2048 :]
        (warehouse / "releases" / f"damaged{offset}.duckdb").write_bytes(damaged)
    assert target().list_releases() == [good]


def test_no_releases_yet() -> None:
    assert target().list_releases() == []
    assert target().published_release() is None


def test_the_published_state_is_known_even_if_its_release_file_is_gone() -> None:
    release = target().publish("one", unchecked)
    Path(release.location).unlink()
    published = target().published_release()
    assert published is not None
    assert (published.id, Path(published.location), published.published) == ("one", published_path(), True)


def test_leftovers_of_killed_processes_are_removed_by_the_next_publish_or_rollback(warehouse: Path) -> None:
    for step in (lambda: target().publish("one", unchecked), lambda: target().rollback("one")):
        for folder in ("releases", "published"):
            (warehouse / folder).mkdir(exist_ok=True)
            (warehouse / folder / ".x.duckdb.tmp").write_bytes(b"half a copy")
            (warehouse / folder / ".x.duckdb.tmp.wal").touch()
        # DuckDB replays a WAL next to a file into it, whoever wrote it.
        (warehouse / "published" / f"{NAME}.duckdb.wal").touch()
        (warehouse / "releases" / "one.duckdb.wal").touch()
        step()
        assert hidden_files(warehouse) == []
        assert seen() == 1


@pytest.fixture
def old_warehouse(warehouse: Path) -> Path:
    """A warehouse as it was when releases were called snapshots: the folder, and the table in each file."""
    for number, run in enumerate(("one", "two"), 1):
        build(number)
        path = Path(target().publish(run, unchecked).location)
        path.chmod(0o644)
        with duckdb.connect(str(path)) as connection:
            connection.execute("alter table warehouse.release rename release_id to snapshot_id")
            connection.execute("alter table warehouse.release rename to snapshot")
        path.chmod(0o444)
    (warehouse / "releases").rename(warehouse / "snapshots")
    return warehouse


def test_releases_of_an_older_version_are_listed_and_rolled_back_to(old_warehouse: Path) -> None:
    assert [(one.id, one.published) for one in target().list_releases()] == [("two", True), ("one", False)]
    assert (old_warehouse / "snapshots").exists()  # readers change nothing
    target().rollback("one")
    assert seen() == 1
    assert not (old_warehouse / "snapshots").exists()
    assert published_path().samefile(old_warehouse / "releases" / "one.duckdb")
    assert [(one.id, one.published) for one in target().list_releases()] == [("two", False), ("one", True)]


def test_a_publish_after_an_upgrade_keeps_what_was_published_before(old_warehouse: Path) -> None:
    target().restore("one")  # with the old table, which goes with the publish
    with target().open_working() as connection:
        build_record = "select table_name from duckdb_tables() where schema_name = 'warehouse' order by all"
        for name in ("load", "node"):  # as the versions before the build graph left them
            connection.execute(f"create table warehouse.{name} (run_id varchar)")
        assert {("snapshot",), ("load",), ("node",)} <= set(connection.execute(build_record).fetchall())
    target().publish("three", unchecked)
    assert seen() == 1
    assert [one.id for one in target().list_releases()] == ["three", "two", "one"]
    with open_read_only(published_path()) as reader:
        assert reader.execute(build_record).fetchall() == [("builds",), ("release",)]
    assert hidden_files(old_warehouse) == []


def test_processes_that_meet_at_the_upgrade_wait_for_each_other(old_warehouse: Path) -> None:
    command = [sys.executable, "-m", "include.warehouse", "rollback"]
    runs = [subprocess.Popen([*command, run], stdout=subprocess.DEVNULL) for run in ("one", "two") * 3]
    assert [run.wait() for run in runs] == [0] * len(runs)
    assert sorted(path.name for path in (old_warehouse / "releases").iterdir()) == [".lock", "one.duckdb", "two.duckdb"]
    assert not (old_warehouse / "snapshots").exists()


def test_releases_that_an_older_version_published_meanwhile_are_taken_over(old_warehouse: Path) -> None:
    (old_warehouse / "releases").mkdir()
    (old_warehouse / "releases" / "one.duckdb").write_bytes(b"the run has published again since")
    target().rollback("one")
    assert seen() == 1
    assert not (old_warehouse / "snapshots").exists()
    assert [one.id for one in target().list_releases()] == ["two", "one"]
