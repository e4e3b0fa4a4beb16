"""Unusual numbers of rows in what was published."""

from pathlib import Path

import pytest

from include import warehouse
from include.runs import artifacts, volumes
from tests.conftest import unchecked

pytestmark = pytest.mark.unit
MANIFEST = {
    "nodes": {"model.swings": {"schema": "marts", "alias": "swings", "config": {"meta": {"volume_check": False}}}},
    "sources": {"source.raw": {"schema": "raw", "identifier": "bursts", "meta": {"volume_check": False}}},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.delenv("WAREHOUSE_KEEP_SNAPSHOTS", raising=False)


def publish(run_id: str, **rows: int) -> warehouse.Snapshot:
    with warehouse.open_working() as con:
        for name, count in rows.items():
            schema = "marts" if name != "bursts" else "raw"
            con.execute(f"create schema if not exists {schema}")
            con.execute(f"create or replace table {schema}.{name} as from range({count})")
    return warehouse.publish(run_id, unchecked)


def unusual(snapshot: warehouse.Snapshot) -> dict[str, str]:
    return volumes.unusual(snapshot, MANIFEST)


def test_the_first_release_and_a_new_table_are_not_unusual() -> None:
    assert unusual(publish("1", orders=1)) == {}
    assert unusual(publish("2", new=1_000_000)) == {}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (1_000_000, "1,000,000 rows; the last 2 releases had 99 to 110"),
        (221, "221 rows; the last 2 releases had 99 to 110"),
        (220, ""),
        (50, ""),
        (49, "49 rows; the last 2 releases had 99 to 110"),
        (0, "0 rows; the last 2 releases had 99 to 110"),
    ],
)
def test_less_than_half_or_more_than_twice_the_rows_are_unusual(rows: int, text: str) -> None:
    publish("1", orders=99)
    publish("2", orders=110)
    assert unusual(publish("3", orders=rows)) == ({"marts.orders": text} if text else {})


def test_few_rows_technical_tables_and_tables_left_out_are_not_unusual() -> None:
    before = {"few": 1, "swings": 1, "bursts": 1, "_dlt_loads": 1, "rejected_rows": 0}
    publish("1", orders=1, **before)
    assert unusual(publish("2", few=50, swings=1000, bursts=1000, _dlt_loads=1000, rejected_rows=1000)) == {}


def test_only_releases_before_it_count() -> None:
    first = publish("1", orders=99)
    publish("2", orders=1000)
    assert unusual(first) == {}


def test_what_is_unusual_is_kept_until_the_run_publishes_again() -> None:
    publish("1", orders=1)
    assert artifacts.volumes_of("1") == {}
    artifacts.run_artifacts_dir("1").mkdir(parents=True)
    artifacts.keep_volumes("1", {"marts.orders": "many"})
    assert artifacts.volumes_of("1") == {"marts.orders": "many"}
    assert artifacts.results_of("1") == []
    artifacts.keep_volumes("1", {})
    assert artifacts.volumes_of("1") == {}
