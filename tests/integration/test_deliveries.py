"""A set of files is reported once, when all of it is there and whole."""

import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from include.dlt_pipelines.deliveries import Seen, Watch, last_load
from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.load import load
from testing.targets import object_store

pytestmark = pytest.mark.integration


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileSource:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "data"))
    (tmp_path / "in").mkdir()
    tables = (
        TableContract("stores", {"id": "BIGINT"}, ()),
        TableContract("sales", {"id": "BIGINT"}, (), files="sales*.csv"),
    )
    return FileSource("stores", str(tmp_path / "in"), tables)


def deliver(source: FileSource, name: str) -> None:
    (source.data_dir / f".{name}").write_text("id\n1\n")
    (source.data_dir / f".{name}").rename(source.data_dir / name)


def looks(watch: Watch, number: int = 3) -> list[Seen]:
    return [one for one in (watch.look() for _ in range(number)) if one.is_complete or one.is_late]


def test_a_set_is_reported_once_when_its_last_file_is_renamed_into_place(source: FileSource) -> None:
    watch = Watch(source)
    assert looks(watch) == []
    deliver(source, "sales_1.csv")
    assert looks(watch) == [] and watch.look().missing == ("stores",)
    deliver(source, "stores.csv")
    assert looks(watch) == [Seen(True, ("sales_1.csv", "stores.csv"))]

    load(source, "run-1")
    assert looks(watch) == [] and looks(Watch(source)) == [], "what is loaded is not new, also after a restart"
    deliver(source, "sales_2.csv")
    assert looks(watch) == []
    deliver(source, "stores.csv")
    assert looks(watch) == [Seen(True, ("sales_2.csv", "stores.csv"))], "the older file of the folder is not new"


def test_a_file_that_still_grows_is_not_whole(source: FileSource) -> None:
    watch = Watch(source)
    deliver(source, "stores.csv")
    deliver(source, "sales.csv")
    for number in range(3):
        with (source.data_dir / "sales.csv").open("a") as file:
            file.write(f"{number}\n")
        assert not watch.look().is_complete
    assert watch.look().is_complete


def test_what_is_missing_at_the_deadline_is_told_once(source: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock[0])
    watch = Watch(source, deadline_seconds=60)
    deliver(source, "stores.csv")
    assert looks(watch) == []
    clock[0] += 61
    late = [Seen(False, ("stores.csv",), ("sales",), is_late=True)]
    assert looks(watch) == late
    assert looks(Watch(source, deadline_seconds=60)) == late, "a watch that starts again does not start counting again"
    deliver(source, "sales.csv")
    assert looks(watch) == [Seen(True, ("sales.csv", "stores.csv"))]


def test_a_load_that_failed_on_its_rows_waits_for_new_files(source: FileSource) -> None:
    deliver(source, "stores.csv")
    (source.data_dir / "sales.csv").write_text("id\nx\n")
    with pytest.raises(Exception, match="1 row"):
        load(source, "run-1")
    assert last_load("stores") > 0 and looks(Watch(source)) == []
    os.utime(source.data_dir / "sales.csv")
    deliver(source, "stores.csv")
    assert [one.is_complete for one in looks(Watch(source))] == [True]


@pytest.mark.skipif(not find_spec("s3fs"), reason="needs make setup-workers")
def test_a_set_in_an_object_store_is_reported_once_also_after_the_store_was_away(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    with object_store() as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SOURCES__STORES__DATA_DIR", "s3://lake/in/")
        watch, remote = Watch(source), fsspec.filesystem("s3", use_listings_cache=False)

        def put(name: str) -> None:
            # The time of the store's files is in seconds: one of the second in which a load began may be older.
            time.sleep(1.1)
            remote.pipe_file(f"lake/in/{name}", b"id\n1\n")

        assert looks(watch) == []
        put("sales_1.csv.gz")
        put("unrelated.csv")
        assert looks(watch) == [] and watch.look().missing == ("stores",)
        remote.rm("lake/in/sales_1.csv.gz")
        put("sales_1.csv")
        put("stores.csv")
        store.service.kill()
        assert looks(watch) == []
        store.service.start()
        assert looks(watch) == [Seen(True, ("sales_1.csv", "stores.csv"))]
        time.sleep(1.1)
        load(source, "run-1")
        assert looks(watch) == [] and looks(Watch(source)) == [], "what is loaded is not new, also after a restart"
        put("sales_2.csv")
        put("stores.csv")
        assert looks(Watch(source)) == [Seen(True, ("sales_2.csv", "stores.csv"))]
