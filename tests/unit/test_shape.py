"""What is unusual about the shape of a release."""

from pathlib import Path

import pytest

from include.runs import artifacts, shape
from include.warehouse.targets import target
from testing.project import unchecked

pytestmark = pytest.mark.unit
MANIFEST = {
    "nodes": {"model.swings": {"schema": "marts", "alias": "swings", "config": {"meta": {"shape_check": False}}}},
    "sources": {"source.raw": {"schema": "raw", "identifier": "bursts", "meta": {"shape_check": False}}},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.delenv("WAREHOUSE_KEEP_RELEASES", raising=False)


def publish(run_id: str, **tables: int | str) -> dict[str, str]:
    """Publish tables, each of a number of rows or from a query, and return what is unusual about them."""
    with target().open_working() as connection:
        for name, rows in tables.items():
            schema = "marts" if name != "bursts" else "raw"
            connection.execute(f"create schema if not exists {schema}")
            query = rows if isinstance(rows, str) else f"select 1 as one from range({rows})"
            connection.execute(f"create or replace table {schema}.{name} as {query}")
    return shape.check(target().publish(run_id, unchecked), MANIFEST)


def test_the_first_release_and_a_new_table_are_not_unusual() -> None:
    assert publish("1", orders=1) == {}
    assert publish("2", new=1_000_000) == {}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (1_000_000, "1,000,000 rows (99 to 110 in the last 2 releases)"),
        (221, "221 rows (99 to 110 in the last 2 releases)"),
        (220, ""),
        (50, ""),
        (49, "49 rows (99 to 110 in the last 2 releases)"),
        (0, "0 rows (99 to 110 in the last 2 releases)"),
    ],
)
def test_less_than_half_or_more_than_twice_the_rows_are_unusual(rows: int, text: str) -> None:
    publish("1", orders=99)
    publish("2", orders=110)
    assert publish("3", orders=rows) == ({"marts.orders": text} if text else {})


@pytest.mark.parametrize(
    ("nulls", "text"),
    [
        (1000, "amount is NULL in 100 % of the rows (0 % to 20 % in the last 2 releases)"),
        (301, "amount is NULL in 30.1 % of the rows (0 % to 20 % in the last 2 releases)"),
        (300, ""),
        (0, ""),
    ],
)
def test_another_share_of_nulls_is_unusual(nulls: int, text: str) -> None:
    for run_id, number in (("1", 0), ("2", 200)):
        publish(run_id, orders=f"select if(range < {number}, null, 1) as amount from range(1000)")
    unusual = publish("3", orders=f"select if(range < {nulls}, null, 1) as amount from range(1000)")
    assert unusual == ({"marts.orders": text} if text else {})


def test_nulls_in_few_rows_are_not_unusual() -> None:
    publish("1", orders="select 1 as amount from range(49)")
    assert publish("2", orders="select null::integer as amount from range(49)") == {}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (1, "status has 1 distinct value (4 in the release before)"),
        (2, ""),
        (7, ""),
        (12, "(4 in the release before)"),
        (0, ""),
    ],
)
def test_less_than_half_or_more_than_twice_the_distinct_values_are_unusual(values: int, text: str) -> None:
    publish("1", orders="select range % 4 as status, range as id from range(100)")
    status = f"range % {values}" if values else "null::bigint"
    found = publish("2", orders=f"select {status} as status, range as id from range(100)").get("marts.orders", "")
    assert ("distinct" in found) == bool(text)
    assert found.endswith(text) if text else True


def test_distinct_values_that_come_with_the_rows_are_told_once() -> None:
    publish("1", orders="select range as id from range(100)")
    found = publish("2", orders="select range as id from range(1000)")
    assert found == {"marts.orders": "1,000 rows (100 in the release before)"}


def test_few_rows_technical_tables_and_columns_and_tables_left_out_are_not_unusual() -> None:
    before = {"few": 1, "swings": 1, "bursts": 1, "_dlt_loads": 1, "rejected_rows": 0}
    publish("1", orders="select range as _dlt_load_id from range(100)", **before)
    after = {"few": 50, "swings": 1000, "bursts": 1000, "_dlt_loads": 1000, "rejected_rows": 1000}
    assert publish("2", orders="select 1 as _dlt_load_id from range(100)", **after) == {}


def test_only_releases_before_it_count() -> None:
    publish("1", orders=99)
    first = next(one for one in target().list_releases() if one.run_id == "1")
    publish("2", orders=1000)
    assert shape.check(first, MANIFEST) == {}


def test_a_release_that_takes_too_long_is_compared_by_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    publish("1", orders="select range % 4 as status from range(100)")
    monkeypatch.setattr(shape, "SECONDS", 0.0)
    assert publish("2", orders="select 1 as status from range(999)") == {
        "marts.orders": "999 rows (100 in the release before)"
    }
    assert artifacts.shape_of("2")["marts.orders"].columns == {}


def test_what_is_unusual_is_kept_until_the_run_publishes_again() -> None:
    assert artifacts.unusual_in("1") == {}
    publish("1", orders=99)
    publish("2", orders=999)
    assert artifacts.unusual_in("2") == {"marts.orders": "999 rows (99 in the release before)"}
    assert artifacts.results_of("2") == []
    publish("2", orders=99)
    assert artifacts.unusual_in("2") == {}


def test_a_damaged_file_counts_as_unknown() -> None:
    publish("1", orders=99)
    for content in ("", "[]", "{}", '{"unusual": [], "tables": {"marts.orders": 1}}'):
        (artifacts.run_artifacts_dir("1") / "shape.json").write_text(content)
        assert artifacts.unusual_in("1") == {}
        assert artifacts.shape_of("1") == {}
    assert publish("2", orders=999) == {}
