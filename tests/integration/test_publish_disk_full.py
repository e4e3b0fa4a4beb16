"""Publishing on a small file system that runs out of space."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.runs.figures import figures
from include.warehouse import disk
from include.warehouse.errors import DiskFullError
from include.warehouse.paths import published_path, working_path
from include.warehouse.targets import target
from testing.project import NAME, unchecked

pytestmark = pytest.mark.integration


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs a small file system, but mount failed: {mounted.stderr.strip()}")
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "warehouse"))
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def build() -> None:
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts")
        connection.execute("create or replace table marts.customers as select random() as noise from range(400000)")


def leave_free(disk: Path, space: int) -> None:
    status = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"")
    with filler.open("wb") as file:
        file.write(b"x" * max(0, status.f_bavail * status.f_frsize - space))


def test_a_full_disk_changes_nothing_and_reports_the_space_needed(small_disk: Path) -> None:
    build()
    target().publish("one", unchecked)
    target().publish("two", unchecked)
    before = published_path().read_bytes()
    leave_free(small_disk, 1_000_000)
    with pytest.raises(DiskFullError, match="No space left on device") as caught:
        target().publish("three", unchecked)

    message = str(caught.value)
    assert ".three.duckdb.tmp" in message
    space = re.search(r"needs (\d+) bytes, (\d+) are available", message)
    assert space is not None and int(space[1]) == working_path().stat().st_size
    assert 0 < int(space[2]) < int(space[1])
    assert "Free some space or lower WAREHOUSE_KEEP_RELEASES, then publish again" in message
    assert published_path().read_bytes() == before
    assert [release.id for release in target().list_releases()] == ["two", "one"]
    names = {
        path.name for folder in ("releases", "published") for path in (small_disk / "warehouse" / folder).iterdir()
    }
    assert names == {".lock", "one.duckdb", "two.duckdb", f"{NAME}.duckdb"}

    (small_disk / "filler").unlink()
    assert target().publish("three", unchecked).published


def test_a_disk_that_fills_is_seen_while_a_run_still_fits(small_disk: Path) -> None:
    build()
    target().publish("one", unchecked)
    found = disk.look()
    assert found and found.shortage == "" and found.total == 24 * 1024 * 1024
    leave_free(small_disk, working_path().stat().st_size * 3 // 2)
    found = disk.look()
    assert found and re.search(rf"The disk of {small_disk}/warehouse has .* left of 24", found.shortage), found
    figure = next(one for one in figures(NAME) if one.name == "warehouse.disk.free")
    assert figure.value == found.free
    assert target().publish("two", unchecked).published, "seen before a run fails"


def test_a_restore_that_does_not_fit_changes_nothing_and_says_what_it_needs(small_disk: Path) -> None:
    build()
    target().publish("one", unchecked)
    before = working_path().read_bytes()
    leave_free(small_disk, 1_000_000)
    with pytest.raises(DiskFullError, match=r"the copy needs \d+ bytes, \d+ are available .* then restore again"):
        target().restore()
    assert working_path().read_bytes() == before
    (small_disk / "filler").unlink()
    assert "The working database is now" in target().restore()


def test_rollback_works_on_a_full_disk(small_disk: Path) -> None:
    build()
    target().publish("one", unchecked)
    target().publish("two", unchecked)
    leave_free(small_disk, 0)
    target().rollback("one")
    published = target().published_release()
    assert published is not None and published.id == "one"
