"""What publish may trust: which nodes have passed on the data in the working database."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include import warehouse
from include.warehouse import NotReadyError, check_ready, loaded, record_load, record_nodes

pytestmark = pytest.mark.unit

NODES = ("model.shop.orders", "test.shop.unique_orders.1")


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as con:
        yield con


def record(con: duckdb.DuckDBPyConnection, node: str, status: str, code: str = "select 1") -> None:
    record_nodes(con, "run", [(node, status, code)], lambda _: ["test.shop.unique_orders.1"])


def test_all_nodes_have_passed(con: duckdb.DuckDBPyConnection) -> None:
    record_load(con, "run", "files")
    for node, status in zip(NODES, ("success", "warn"), strict=True):
        record(con, node, status)
    check_ready(con, NODES)


def test_nothing_was_loaded_or_run(con: duckdb.DuckDBPyConnection) -> None:
    assert loaded(con) is None
    with pytest.raises(NotReadyError, match="nothing was loaded"):
        check_ready(con, NODES)
    record_load(con, "run", "files")
    with pytest.raises(NotReadyError, match="orders: has not run on these data\nunique_orders: has not run"):
        check_ready(con, NODES)


@pytest.mark.parametrize("status", ["fail", "error", "skipped"])
def test_a_node_that_did_not_pass_is_named(con: duckdb.DuckDBPyConnection, status: str) -> None:
    record_load(con, "run", "files")
    record(con, NODES[0], "success")
    record(con, NODES[1], status)
    with pytest.raises(NotReadyError, match=f"unique_orders: {status}") as told:
        check_ready(con, NODES)
    assert "run run loaded at" in str(told.value) and "\norders:" not in str(told.value)


def test_new_data_want_everything_built_again_and_the_same_data_do_not(con: duckdb.DuckDBPyConnection) -> None:
    record_load(con, "run", "files")
    for node in NODES:
        record(con, node, "success")
    record_load(con, "other", "files")
    check_ready(con, NODES)
    record_load(con, "other", "new files")
    with pytest.raises(NotReadyError, match="that run other loaded"):
        check_ready(con, NODES)


def test_a_model_built_from_new_code_wants_what_is_below_built_again(con: duckdb.DuckDBPyConnection) -> None:
    record_load(con, "run", "files")
    for node in NODES:
        record(con, node, "success")
    record(con, NODES[0], "success")
    check_ready(con, NODES)
    record(con, NODES[0], "success", code="select 2")
    with pytest.raises(NotReadyError, match="unique_orders: has not run"):
        check_ready(con, NODES)


def test_a_load_that_is_rolled_back_leaves_the_record_of_before(con: duckdb.DuckDBPyConnection) -> None:
    record_load(con, "run", "files")
    con.begin()
    record_load(con, "other", "new files")
    con.rollback()
    load = loaded(con)
    assert load and (load.run_id, load.data) == ("run", "files")


def test_readers_are_not_moved_back_to_older_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    for run in ("older", "newer"):
        with warehouse.open_working() as con:
            con.execute("create schema if not exists marts; create or replace table marts.t as select 1 as i")
            record_load(con, run, run)
        warehouse.publish(run)
    with warehouse.open_working() as con:
        con.execute("update warehouse.load set run_id = 'older', loaded_at = loaded_at - interval 1 hour")
    with pytest.raises(NotReadyError, match="readers see data that run newer loaded") as told:
        warehouse.publish("older")
    assert "make rollback" in str(told.value)
    published = warehouse.published_snapshot()
    assert published and published.run_id == "newer"

    warehouse.rollback("older")
    with warehouse.open_working() as con:
        record_load(con, "latest", "latest")
    assert warehouse.publish("latest").published


def test_a_run_in_whose_midst_a_snapshot_was_restored_can_not_publish_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    with warehouse.open_working() as con:
        con.execute("create schema marts; create table marts.t as select 1 as i")
        record_load(con, "yesterday", "old files")
    warehouse.publish("yesterday")
    with warehouse.open_working() as con:
        record_load(con, "today", "new files")
    warehouse.restore()
    with pytest.raises(NotReadyError, match="Clear `load` with downstream"):
        warehouse.publish("today")
    with warehouse.open_working() as con:
        assert con.execute("from marts.t").fetchall() == [(1,)]
        record_load(con, "today", "new files")
    assert warehouse.publish("today").run_id == "today"
