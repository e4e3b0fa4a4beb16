"""What a release changed is known when it is published, and nothing that goes wrong with that fails a publish."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from include.change import releases
from include.change.databases import find_before, find_database
from include.warehouse import paths
from include.warehouse.errors import UnknownReleaseError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from testing.project import unchecked

pytestmark = [pytest.mark.unit, pytest.mark.files]

Publish = Callable[[str, str], Release]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Publish:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))

    def run(run_id: str, sql: str) -> Release:
        with target().open_working() as connection:
            connection.execute(f"create schema if not exists marts; {sql}")
        return target().publish(run_id, unchecked)

    return run


def test_a_release_is_compared_with_the_one_before(publish: Publish) -> None:
    first = publish("one", "create table marts.t as select i as id, i * 2 as x from range(10) t(i)")
    assert releases.keep_difference(first) == {}
    assert releases.difference_of("one") is None
    second = publish("two", "update marts.t set x = 0 where id = 3; delete from marts.t where id = 4")
    assert releases.keep_difference(second) == {"marts.t": "10 -> 9 rows: 0 added, 1 removed, 1 changed by id"}
    kept = releases.difference_of("two")
    assert kept is not None
    assert (kept.tables[0].changed, kept.tables[0].columns[0].hidden) == (1, True)  # not documented in dbt
    assert find_before(find_database("two")).id == first.id


def test_what_takes_too_long_is_said_not_to_be_compared(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("one", "create table marts.t as select i as id, i as x from range(10) t(i)")
    second = publish("two", "update marts.t set x = 0")
    monkeypatch.setattr(releases, "SECONDS", 0.0)
    assert releases.keep_difference(second) == {"marts.t": "could not be compared: it took too long"}


def test_a_damaged_or_missing_release_fails_nothing(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    publish("one", "create table marts.t as select 1 as id")
    second = publish("two", "insert into marts.t values (2)")
    assert releases.keep_difference(replace(second, id="none", location=f"{second.location}.none")) == {}
    kept = paths.release_path("one")
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:20_000])
    assert releases.keep_difference(second) == {}
    assert "could not be compared" in caplog.text or "Skipping" in caplog.text


def test_a_release_that_is_not_there_is_named_with_those_that_are(publish: Publish) -> None:
    with pytest.raises(UnknownReleaseError, match=r"Nothing is published as .* BASE=file"):
        find_database()
    publish("one", "create table marts.t as select 1 as id")
    with pytest.raises(UnknownReleaseError, match=r"neither a release nor a file 'other'\. Kept releases: one\."):
        find_database("other")
    with pytest.raises(UnknownReleaseError, match="No release before one is kept"):
        find_before(find_database())


@pytest.mark.parametrize(
    ("answer", "readers_see"), [(b"\n", "two"), (b"no\n", "two"), (b"\x04", "two"), (b"Yes\n", "one")]
)
def test_a_rollback_at_a_terminal_says_what_changes_and_asks(publish: Publish, answer: bytes, readers_see: str) -> None:
    publish("one", "create table marts.t as select i as id from range(10) t(i)")
    publish("two", "delete from marts.t where id = 4")
    terminal, end = pty.openpty()
    os.write(terminal, answer)
    command = [sys.executable, "-m", "include.change", "rollback", "one"]
    done = subprocess.run(command, stdin=end, capture_output=True, text=True)
    os.close(end)
    os.close(terminal)
    assert "9 -> 10 rows: 1 added, 0 removed, 0 changed by id" in done.stdout, done.stderr
    assert "Roll back? [y/N]" in done.stdout
    assert done.returncode == (readers_see == "two"), done.stderr
    assert ("Nothing was changed." in done.stdout) is (readers_see == "two")
    published = target().published_release()
    assert published is not None and published.id == readers_see
