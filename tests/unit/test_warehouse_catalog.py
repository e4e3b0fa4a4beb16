"""Read the published file and the run artifacts."""

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from include.runs import artifacts, project
from include.warehouse import paths
from include.warehouse.errors import WarehouseError
from include.warehouse.targets import target
from include.warehouse_catalog import dbt_docs, lineage, published
from testing.project import NAME, unchecked

pytestmark = pytest.mark.unit

RUN = "manual__2026-11-23T00:00:00+00:00"
ODD = 'a"b<script>'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    return tmp_path


def publish(run_id: str, *statements: str) -> None:
    with target().open_working() as connection:
        for statement in ("create schema if not exists marts", *statements):
            connection.execute(statement)
    target().publish(run_id, unchecked)


def node(
    name: str, kind: str = "model", depends_on: tuple[str, ...] = (), columns: dict[str, bool] | None = None
) -> dict[str, Any]:
    """A manifest node with columns, each with or without personal data."""
    return {
        "unique_id": f"{kind}.shop.{name}",
        "resource_type": kind,
        "name": name,
        "schema": "marts",
        "alias": name,
        "identifier": name,
        "description": "About it",
        "config": {"materialized": "table"},
        "depends_on": {"nodes": list(depends_on)},
        "columns": {
            column: {"description": column, "config": {"meta": {"contains_pii": pii}}}
            for column, pii in (columns or {}).items()
        },
    }


def keep_manifest(run_id: str, *nodes: dict[str, Any]) -> None:
    kept = paths.run_artifacts_dir(run_id)
    kept.mkdir(parents=True, exist_ok=True)
    manifest = {"nodes": {one["unique_id"]: one for one in nodes}, "sources": {}, "exposures": {}, "groups": {}}
    (kept / artifacts.MANIFEST).write_bytes(gzip.compress(json.dumps(manifest).encode()))


def keep(name: str, content: object) -> None:
    kept = paths.run_artifacts_dir(RUN)
    kept.mkdir(parents=True, exist_ok=True)
    (kept / name).write_text(content if isinstance(content, str) else json.dumps(content))


def table(state: published.State | None, name: str) -> published.Table:
    found = state.table("marts", name) if state else None
    assert found
    return found


def profile_of(found: published.Table) -> published.TableProfile:
    """The profile, once complete."""
    deadline = time.monotonic() + 30
    while not (profile := published.profile(found)).complete:
        assert time.monotonic() < deadline
    return profile


def test_before_the_first_publish_there_is_no_state(folder: Path) -> None:
    assert published.current() is None


def test_a_publish_is_visible_at_once(folder: Path) -> None:
    publish("one", "create table marts.orders as select 1 as id")
    first = published.current()
    publish("two", "insert into marts.orders values (2)")
    second = published.current()
    assert first and second
    assert (first.release.run_id, table(first, "orders").rows) == ("one", 1)
    assert (second.release.run_id, table(second, "orders").rows) == ("two", 2)


def test_a_damaged_published_file_is_reported(folder: Path) -> None:
    paths.published_path().parent.mkdir(parents=True)
    paths.published_path().write_bytes(b"not a database" * 1000)
    with pytest.raises(WarehouseError, match=r"published file|as a release"):
        published.current()


def test_names_with_quotes_and_html_are_read(folder: Path) -> None:
    quoted = ODD.replace('"', '""')
    publish("run", f'create table marts."{quoted}" as select 1 as "{quoted}", 2 as "it\'s"')
    found = table(published.current(), ODD)
    assert [column.name for column in found.columns] == [ODD, "it's"]
    assert found.rows == 1
    assert published.sample(found) == [("1", "2")]
    assert [one.column for one in profile_of(found).columns] == [ODD, "it's"]


def test_table_sizes_are_returned_once_they_are_read(folder: Path) -> None:
    publish("run", "create table marts.big as select md5(range::varchar) as text from range(100000)")
    state = published.current()
    assert state
    deadline = time.monotonic() + 10
    while not (sizes := published.sizes(state)):
        assert time.monotonic() < deadline
    assert 1_000_000 < sizes["marts", "big"] < state.release.size_bytes


def test_a_broken_view_has_no_count_and_breaks_nothing(folder: Path) -> None:
    publish(
        "run",
        "create table marts.t as select 1 as id",
        "create view marts.v as from marts.t",
        "drop table marts.t",
        "create table marts.left as select 1 as id",
    )
    assert table(published.current(), "v").rows is None
    assert table(published.current(), "left").rows == 1


def test_a_profile_has_nulls_distinct_values_and_histograms_of_numbers_and_days(folder: Path) -> None:
    publish(
        "run",
        "create table marts.t as select range as n, date '2026-01-01' + cast(range as integer) as day,"
        " if(range % 2 = 0, null, 'odd') as word, 'infinity'::date as never, {'a': range} as nested from range(100)",
    )
    profile = profile_of(table(published.current(), "t"))
    number, day, word, never, nested = profile.columns
    assert (profile.rows, profile.sampled, profile.exact, profile.complete) == (100, 100, True, True)
    assert (number.nulls, number.distinct, number.minimum, number.maximum) == (0, 100, "0", "99")
    assert sum(one.rows for one in number.bins) == 100 and len(number.bins) == 12
    assert day.bins[0].label.startswith("2026-01-01 to ")
    assert (word.nulls, word.bins) == (50, (published.Bin("odd", 50),))
    assert never.minimum == "infinity"
    assert nested.distinct == 100


def test_statistics_of_a_large_table_are_of_all_rows_and_only_its_histograms_from_a_sample(folder: Path) -> None:
    publish(
        "run",
        "create table marts.t as select range as n, if(range = 777777, 'x', null) as rare, {'a': 1} as nested"
        " from range(1000000)",
        "create view marts.v as from marts.t",
    )
    for name in ("t", "v"):
        profile = profile_of(table(published.current(), name))
        number, rare, _ = profile.columns
        assert (profile.rows, profile.exact) == (1_000_000, True)
        assert (number.minimum, number.maximum, number.nulls) == ("0", "999999", 0)
        assert 990_000 < number.distinct <= 1_000_000 and number.approximate
        assert (rare.nulls, rare.distinct, rare.maximum, rare.approximate) == (999_999, 1, "x", False)
        assert 20_000 < profile.sampled < 2 * published.PROFILE_ROWS
        assert sum(one.rows for one in number.bins) == profile.sampled


def test_a_table_that_takes_too_long_to_read_is_sampled_and_reported_as_such(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("run", "create table marts.t as select range as n from range(3000000)")
    monkeypatch.setattr(published, "PROFILE_SECONDS", 2.0)
    # Far longer than the limit on any machine: 10^13 rows.
    endless = "select sum(a.range * b.range) from range(10000000) a, range(1000000) b"
    monkeypatch.setattr(published, "_statistics", lambda connection, *_: connection.execute(endless))
    profile = published._read_profile(table(published.current(), "t"))
    assert (profile.exact, profile.complete) == (False, True)
    assert profile.rows == profile.sampled < 2 * published.PROFILE_ROWS


def test_the_manifest_of_the_publishing_run_is_used(folder: Path) -> None:
    keep_manifest("run", node("orders", columns={"id": False, "name": True}))
    assert project.of_run("run").node_of("marts", "orders")
    assert not project.of_run("run").node_of("marts", "customers")


def test_only_a_documented_column_without_personal_data_is_open(folder: Path) -> None:
    keep_manifest("run", node("orders", columns={"id": False, "name": True}))
    dbt = project.of_run("run")
    orders = dbt.node_of("marts", "orders")
    assert [dbt.is_open(orders, name) for name in ("ID", "name", "unknown")] == [True, False, False]
    assert not dbt.is_open(None, "id")


@pytest.mark.parametrize(
    ("tested", "column", "is_open"),
    [
        ("id", "unique_field", True),
        ("name", "unique_field", False),
        ("name", "n_records", True),
        ("id", "id", True),
        ("id", "name", False),
        ("id", "made_up", False),
        ("", "value_field", False),
    ],
)
def test_failing_rows_show_only_columns_known_to_be_open(folder: Path, tested: str, column: str, is_open: bool) -> None:
    test = {**node("t", "test", ("model.shop.orders",)), "column_name": tested, "attached_node": "model.shop.orders"}
    keep_manifest("run", node("orders", columns={"id": False, "name": True}), test)
    dbt = project.of_run("run")
    assert dbt.is_open_in_test(dbt.tests["test.shop.t"], column) is is_open


def test_a_search_of_the_lineage_shows_what_is_above_a_node_that_is_between_two_found_ones() -> None:
    parents = {"top": (), "found_1": (), "middle": ("top", "found_1"), "found_2": ("middle",), "other": ()}
    nodes = {
        name: project.Node(name, name, "model", "s", name, "view", "", "", (), above, {}, None)
        for name, above in parents.items()
    }
    layers, _, found = project.Project(nodes).whole_lineage("found")
    assert {node.name for layer in layers for node in layer} == {"top", "found_1", "middle", "found_2"}
    assert found == {"found_1", "found_2"}


def test_lineage_goes_both_ways_and_is_layered_by_longest_path(folder: Path) -> None:
    keep_manifest(
        "run",
        node("raw"),
        node("staged", depends_on=("model.shop.raw",)),
        node("mart", depends_on=("model.shop.staged", "model.shop.raw")),
        node("report", depends_on=("model.shop.mart",)),
        node("other"),
    )
    layers, edges = project.of_run("run").lineage("model.shop.mart")
    assert [[one.name for one in layer] for layer in layers] == [["raw"], ["staged"], ["mart"], ["report"]]
    assert len(edges) == 4


def test_a_damaged_manifest_gives_an_empty_project(folder: Path) -> None:
    keep_manifest("run")
    (paths.run_artifacts_dir("run") / artifacts.MANIFEST).write_bytes(b"not gzip")
    assert project.of_run("run") == project.Project()


def test_a_failed_load_has_its_error_and_rejected_rows(folder: Path) -> None:
    rejected = {
        "table_name": "raw_orders",
        "file": "a.csv",
        "line": 3,
        "column_name": "id",
        "reason": "bad",
        "text": "x",
    }
    failed = artifacts.Load(
        RUN,
        "shop",
        error="1 row(s) rejected",
        rejected=(rejected,),
        tables={"raw_orders": artifacts.TableLoad(2, 1)},
    )
    artifacts.keep(artifacts.write_load(failed))
    artifacts.keep(artifacts.write_load(artifacts.Load(RUN, "another", load_id="1")))
    assert artifacts.loads_of(RUN) == [artifacts.Load(RUN, "another", load_id="1"), failed]
    assert failed.rows_loaded == 0 and failed.rows_rejected == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"tables": 3}', '{"results": [{}]}'])
def test_unreadable_artifacts_are_ignored(folder: Path, content: str) -> None:
    keep("load-shop.json", content)
    keep("transform.orders.test.json", content)
    assert artifacts.loads_of(RUN) == []
    assert artifacts.results_of(RUN) == []


def test_a_failed_test_has_its_rows_and_sql(folder: Path) -> None:
    result = {
        "unique_id": "test.shop.t",
        "status": "fail",
        "failures": 2,
        "execution_time": 0.1,
        "compiled_code": "select 1",
    }
    keep("transform.orders.test.json", {"results": [result]})
    failure = {"name": "t", "rows": 2, "table": None, "columns": ["id", "name"], "sample": [[1, None], [2, "<b>"]]}
    keep("transform.orders.test.failures.json", {"test.shop.t": failure})
    found = artifacts.test_results_of(RUN)["test.shop.t"]
    assert (found.task_id, found.status, found.failures) == ("transform.orders.test", "fail", 2)
    kept = artifacts.failure_of(RUN, found)
    assert (kept.rows, kept.columns, kept.sql) == (2, ("id", "name"), "select 1")
    assert kept.sample == (("1", None), ("2", "<b>"))


def test_a_retry_replaces_cached_results(folder: Path) -> None:
    for status in ("fail", "pass"):
        keep("a.test.json", {"results": [{"unique_id": "test.shop.t", "status": status}]})
        assert artifacts.test_results_of(RUN)["test.shop.t"].status == status


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("Could not convert string \"Ann\" to 'INT64'", "Could not convert string"),
        ("Expected 4 columns, found 2", "Expected 4 columns, found 2"),
        ("Could not convert string: 'a\"b'", "Could not convert string"),
    ],
)
def test_a_reason_is_shown_without_the_value(reason: str, shown: str) -> None:
    assert artifacts.without_values(reason) == shown


def test_dbts_catalog_has_the_types_and_rows_of_the_published_file(folder: Path) -> None:
    publish("run", "create table marts.orders as select 1::bigint as id")
    keep_manifest("run", node("orders", columns={"id": False}))
    entry = dbt_docs.catalog(published.current(), project.of_run("run"))["nodes"]["model.shop.orders"]
    assert entry["columns"]["id"] == {"type": "BIGINT", "index": 1, "name": "id", "comment": None}
    assert entry["stats"]["row_count"]["value"] == 1


def test_dbts_page_requests_no_missing_files() -> None:
    page = dbt_docs.page()
    assert "favicon" not in page.split("<script", 1)[0]
    assert ' xlink:href="{{ getIcon' not in page


def test_reading_leaves_no_lock_on_the_published_file(folder: Path) -> None:
    publish("run", "create table marts.orders as select 1 as id")
    published.sample(table(published.current(), "orders"))
    with duckdb.connect(str(paths.published_path()), read_only=True) as connection:
        assert connection.execute("from marts.orders").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        (
            'with o as (select * from "{db}"."staging"."stg_orders") select id, upper(status) as s from o',
            {"id": ("id",), "s": ("status",)},
        ),
        (
            "select sum(case when status = 'x' then amount end) as x from staging.stg_orders where id > 1",
            {"x": ("amount", "status")},
        ),
        ("select 1 as one, id as Id2 from staging.stg_orders", {"one": (), "id2": ("id",)}),
        ("select * from staging.stg_orders", {"id": ("id",), "status": ("status",), "amount": ("amount",)}),
        ("this is not SQL (", {}),
    ],
)
def test_a_columns_sources_are_read_from_compiled_sql(
    sql: str, found: dict[str, tuple[str, ...]], folder: Path
) -> None:
    tables = "create table marts.m as select 1 as a; create schema staging"
    publish("run", tables, "create table staging.stg_orders as select 1 as id, 'x' as status, 2.0 as amount")
    state = published.current()
    assert state
    names = lineage.columns(sql.format(db=NAME), state)
    assert {name: tuple(column for _, _, column in sources) for name, sources in names.items()} == found
    assert {source[:2] for sources in names.values() for source in sources} <= {("staging", "stg_orders")}


def test_a_cleared_tasks_results_replace_those_that_were_read_before(folder: Path) -> None:
    written = folder / "run_results.json"

    def end(status: str) -> None:
        written.write_text(json.dumps({"results": [{"unique_id": "test.shop.one", "status": status, "message": None}]}))
        artifacts.keep_results(written, RUN, "transform.one.test", {})

    def age() -> None:
        """Make the run's folder as old as that of a run that ended; what is read from it is then read once."""
        old = paths.run_artifacts_dir(RUN).stat().st_mtime_ns - 10**10
        os.utime(paths.run_artifacts_dir(RUN), ns=(old, old))

    assert artifacts.test_results_of(RUN) == {}
    end("fail")
    assert artifacts.test_results_of(RUN)["test.shop.one"].status == "fail"
    age()
    assert [artifacts.results_of(RUN)[0].status for _ in range(2)] == ["fail", "fail"]
    end("pass")
    assert artifacts.results_of(RUN)[0].status == "pass" == artifacts.test_results_of(RUN)["test.shop.one"].status
    age()
    artifacts.keep(artifacts.write_load(artifacts.Load(RUN, "shop", load_id="1")))
    assert [one.load_id for one in artifacts.loads_of(RUN)] == ["1"]
    age()
    artifacts.keep(artifacts.write_load(artifacts.Load(RUN, "shop", load_id="2")))
    assert [one.load_id for one in artifacts.loads_of(RUN)] == ["2"]
