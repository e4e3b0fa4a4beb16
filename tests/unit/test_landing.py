"""Copies of files from an object store. Here a folder plays the store; tests/e2e/test_workers.py has a real one."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from include.dlt_pipelines import landing
from include.dlt_pipelines.file_source import FileSource, TableContract

pytestmark = pytest.mark.unit


@pytest.mark.skipif(not find_spec("s3fs"), reason="needs make setup-workers")
def test_a_store_that_does_not_answer_is_a_clear_error_worth_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(
        landing.LandingError, match=r"s3://landing/shop cannot be read: Could not connect.*AWS_"
    ) as away:
        landing.copy("s3://landing/shop", tmp_path)
    assert away.value.retryable


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "c.csv").write_text("not copied")
    (folder / "a.csv").write_text("id\n1\n")
    (folder / "b.csv").write_text("id\n2\n")
    return folder


def copy(store: Path, local: Path) -> dict[str, str]:
    landing.copy(f"file://{store}", local)
    return {path.name: path.read_text() for path in local.glob("[!.]*")}


def test_the_copy_follows_the_store_and_reads_only_what_changed(store: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    assert copy(store, local) == {"a.csv": "id\n1\n", "b.csv": "id\n2\n"}
    before = (local / "a.csv").stat()
    (store / "b.csv").write_text("id\n3\n")
    assert copy(store, local) == {"a.csv": "id\n1\n", "b.csv": "id\n3\n"}
    after = (local / "a.csv").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (store / "a.csv").unlink()
    (local / ".b.csv.part").write_text("of a killed copy")
    assert copy(store, local) == {"b.csv": "id\n3\n"}
    assert {path.name for path in local.iterdir()} == {"b.csv", ".copied.json"}


def test_a_lost_or_damaged_copy_is_made_again(store: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    copy(store, local)
    (local / "a.csv").unlink()
    (local / ".copied.json").write_text("{")
    assert copy(store, local) == {"a.csv": "id\n1\n", "b.csv": "id\n2\n"}


def test_a_store_that_cannot_be_read_says_so_and_keeps_the_copy(store: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    copy(store, local)
    with pytest.raises(landing.LandingError, match=r"nowhere cannot be read: .*Nothing was loaded") as error:
        landing.copy(f"file://{tmp_path}/nowhere", local)
    assert error.value.retryable
    assert (local / "a.csv").exists()
    with pytest.raises(landing.LandingError, match="cannot be read"):
        landing.copy("nonsense://somewhere", local)


def test_a_source_reads_its_copy(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SOURCES__SHOP__DATA_DIR", f"file://{store}")
    source = FileSource("shop", folder="nowhere", tables=(TableContract("a", {"id": "BIGINT"}, primary_key=("id",)),))
    source.check_files()
    assert (source.data_dir / "a.csv").read_text() == "id\n1\n"
