"""The build graph: which nodes are current, regardless of the order tasks were cleared in."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include.runs.build_graph import BuildGraph, UnsupportedNodeError
from include.warehouse import paths
from include.warehouse.builds import CREATE, Node, check_current, drop_unknown, loads, record_load, recorded
from include.warehouse.errors import NotReadyError
from include.warehouse.targets import target
from testing.project import unchecked

pytestmark = pytest.mark.unit

RAW = "shop_raw.orders"
MODEL = Node("model.shop.orders", "code 1", (RAW,))
TEST = Node("test.shop.unique_orders.1", "test code", (MODEL.id,))
NODES = (MODEL, TEST)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with target().open_working() as connection:
        yield connection


def record(connection: duckdb.DuckDBPyConnection, node: Node, build: str | None, passed: bool = True) -> None:
    """Write records as dbt's macros do; `tests/integration/test_build_graph.py` runs the real ones."""
    connection.execute(CREATE)
    parents = {parent: one.build_id for parent, one in recorded(connection).items() if parent in node.parents}
    connection.execute(
        "insert into warehouse.builds select coalesce(max(version), 0) + 1, ?, ?, ?, ?::json::varchar, ?, false, ?,"
        " null, now() from warehouse.builds",
        [node.id, build, node.code, parents, passed, node.name if build else None],
    )


def build_all(connection: duckdb.DuckDBPyConnection, build: str = "build 1") -> None:
    record(connection, MODEL, build)
    record(connection, TEST, None)


def test_nodes_built_and_tested_with_current_code_and_data_are_current(connection: duckdb.DuckDBPyConnection) -> None:
    record_load(connection, "run", {RAW: "files"})
    build_all(connection)
    check_current(connection, NODES)


def test_without_a_load_nothing_is_current(connection: duckdb.DuckDBPyConnection) -> None:
    assert loads(connection) == []
    with pytest.raises(NotReadyError, match="nothing was loaded"):
        check_current(connection, NODES)


def test_nodes_that_have_not_run_are_named_with_the_load_they_wait_for(connection: duckdb.DuckDBPyConnection) -> None:
    record_load(connection, "the-run", {RAW: "files"})
    with pytest.raises(
        NotReadyError, match=r"run the-run loaded at .*\norders: has not run\nunique_orders: has not run"
    ):
        check_current(connection, NODES)


def test_failed_tests_are_named_before_nodes_that_have_not_run(connection: duckdb.DuckDBPyConnection) -> None:
    record_load(connection, "run", {RAW: "files"})
    record(connection, MODEL, "build 1")
    record(connection, TEST, None, passed=False)
    with pytest.raises(NotReadyError, match="with it:\nunique_orders: failed\ncustomers: has not run"):
        check_current(connection, (*NODES, Node("model.shop.customers", "", ())))


def test_new_data_invalidates_builds_and_identical_data_does_not(connection: duckdb.DuckDBPyConnection) -> None:
    record_load(connection, "run", {RAW: "files"})
    build_all(connection)
    record_load(connection, "other", {RAW: "files"})
    check_current(connection, NODES)
    record_load(connection, "other", {RAW: "new files"})
    with pytest.raises(NotReadyError, match=f"orders: ran before {RAW} was last loaded"):
        check_current(connection, NODES)


def test_a_test_result_counts_only_for_the_build_it_ran_on(connection: duckdb.DuckDBPyConnection) -> None:
    record_load(connection, "run", {RAW: "files"})
    build_all(connection)
    record(connection, MODEL, "build 2")
    with pytest.raises(NotReadyError, match="unique_orders: ran before orders was last loaded or built"):
        check_current(connection, NODES)


def test_changed_code_must_be_rerun(connection: duckdb.DuckDBPyConnection) -> None:
    record_load(connection, "run", {RAW: "files"})
    build_all(connection)
    with pytest.raises(NotReadyError, match="orders: was changed since it last ran"):
        check_current(connection, (Node(MODEL.id, "code 2", MODEL.parents), TEST))


def test_a_rolled_back_load_leaves_the_previous_record(connection: duckdb.DuckDBPyConnection) -> None:
    record_load(connection, "run", {RAW: "files"})
    connection.begin()
    record_load(connection, "other", {RAW: "new files"})
    connection.rollback()
    assert [(load.run_id, load.build_id) for load in loads(connection)] == [("run", "files")]


def test_only_what_dbt_built_and_does_not_build_any_more_is_dropped(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("create schema marts; create schema shop_raw; create schema gone; create schema audit")
    connection.execute("create table marts.orders as select 1 as i; create view marts.removed as select 1 as i")
    connection.execute("create table marts.orders__dbt_tmp_1 as select 1 as i; create table marts.log as select 1 as i")
    connection.execute("create table shop_raw.orders as select 1 as i; create table gone.orders as select 1 as i")
    connection.execute("create table audit.failing as select 1 as i; create table main.notes as select 1 as i")
    record_load(connection, "run", {RAW: "files"})
    for relation in ("gone.orders", "marts.orders"):  # it moved
        record(connection, MODEL, "build 1")
        connection.execute("update warehouse.builds set relation = ? where relation = 'orders'", [relation])
    for name, relation in (("removed", "marts.removed"), ("failing", "audit.failing"), ("loaded", RAW)):
        record(connection, Node(f"model.shop.{name}", "", ()), "build 1")
        connection.execute("update warehouse.builds set relation = ? where relation = ?", [relation, name])
    dropped = drop_unknown(connection, ["marts.orders"])
    assert sorted(dropped) == ["audit.failing", "gone.orders", "marts.orders__dbt_tmp_1", "marts.removed"]
    left = [".".join(one) for one in target().relations(connection)]
    assert left == ["main.notes", "marts.log", "marts.orders", "shop_raw.orders", "warehouse.builds"]


def load_and_publish(run: str, build: str) -> None:
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts; create or replace table marts.t as select 1 as i")
        record_load(connection, run, {RAW: build})
    target().publish(run, unchecked)


@pytest.mark.files
def test_readers_are_not_moved_back_to_an_older_load(folder: Path) -> None:
    load_and_publish("older", "1")
    older = paths.working_path().read_bytes()
    load_and_publish("newer", "2")
    paths.working_path().write_bytes(older)  # someone restored an old copy
    with pytest.raises(NotReadyError, match=f"readers see a later load of {RAW}.*that of run older"):
        target().publish("older", unchecked)
    published = target().published_release()
    assert published and published.run_id == "newer"

    target().rollback("older")
    load_and_publish("latest", "3")


def test_a_publish_with_a_clock_far_ahead_does_not_block_later_ones(folder: Path) -> None:
    load_and_publish("ahead", "1")
    with target().open_working() as connection:
        connection.execute("update warehouse.builds set recorded_at = recorded_at + interval 400 days")
    target().publish("ahead", unchecked)
    load_and_publish("today", "2")


@pytest.mark.files
def test_a_new_working_database_continues_from_the_published_versions(folder: Path) -> None:
    for build in ("1", "2", "3"):
        load_and_publish("run", build)
    paths.working_path().unlink()
    load_and_publish("after-the-loss", "4")


def test_a_run_cannot_publish_a_release_restored_while_it_was_running(folder: Path) -> None:
    load_and_publish("yesterday", "old files")
    with target().open_working() as connection:
        record_load(connection, "today", {RAW: "new files"})
    target().restore()
    with target().open_working() as connection, pytest.raises(NotReadyError, match="Clear `load` with downstream"):
        check_current(connection, NODES)
    load_and_publish("today", "new files")


def test_functions_are_refused_before_a_run() -> None:
    manifest = {"nodes": {}, "functions": {"function.shop.double_it": {"resource_type": "function"}}}
    with pytest.raises(UnsupportedNodeError, match=r"^double_it \(functions/\): no task can create a function"):
        BuildGraph(manifest).tasks()


def node(id_: str, *reads: str, **more: object) -> dict[str, object]:
    kind, package, name = id_.split(".", 2)
    fqn = [package, *str(more.pop("folder", "")).split("/"), name]
    return {
        "resource_type": kind,
        "package_name": package,
        "original_file_path": f"models/{name}.sql",
        "fqn": [part for part in fqn if part],
        "schema": more.pop("schema", package),
        "alias": name,
        "config": {"materialized": "table"},
        "checksum": {"checksum": name},
        "depends_on": {"nodes": reads},
        **more,
    }


def tasks_of(*nodes: tuple[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The tasks of a project `shop`, by what they run."""
    tasks = BuildGraph({"nodes": dict(nodes), "metadata": {"project_name": "shop"}}).tasks()["nodes"]
    return {one: task for task in tasks.values() for one in task["counts"]}


@pytest.mark.parametrize("schema", ["warehouse", "WAREHOUSE"])
def test_a_table_among_the_pipelines_own_is_refused_before_a_run(schema: str) -> None:
    mixed = ("model.shop.builds", node("model.shop.builds", schema=schema))
    with pytest.raises(UnsupportedNodeError, match=r"^builds: the schema warehouse has the pipeline's own tables"):
        tasks_of(mixed, ("model.shop.sales", node("model.shop.sales")))


def test_no_two_tasks_have_one_name() -> None:
    long = "long_" * 60
    ids = ("model.shop.x", "model.crm.x", "model.shop.a.b", "model.shop.a_b", "model.shop.x_run", f"model.shop.{long}")
    tasks = tasks_of(
        *((id_, node(id_)) for id_ in ids),
        ("test.shop.a_b", node("test.shop.a_b", "model.shop.x", "model.crm.x", relation_name=None)),
        (f"test.shop.{long}", node(f"test.shop.{long}", "model.shop.x", "model.crm.x", relation_name=None)),
        # Two of the same name, which dbt tells apart by their arguments.
        ("test.shop.same.1", node("test.shop.same.1", "model.shop.x", "model.crm.x", relation_name=None)),
        ("test.shop.same.2", node("test.shop.same.2", "model.shop.x", "model.crm.x", relation_name=None)),
    )
    # As Cosmos makes them: a model's task, or the group of it and its tests; a test of several models.
    names = []
    for id_, task in tasks.items():
        name = str(task["unique_id"]).split(".", 2)[2]
        named = name.split(".")[0] + "_test" if id_.startswith("test.") else name.replace(".", "_")
        names += [named] if id_.startswith("test.") else [named, f"{named}_run"]
        assert len(named) < 240, named
    assert len(names) == len({*names})
    assert {str(tasks[id_]["unique_id"]) for id_ in ("model.shop.x", "model.shop.a.b")} == {
        "model.shop.x",
        "model.shop.a.b",
    }, "who was alone keeps its name"


def test_a_test_named_like_a_model_runs_in_its_own_task_only() -> None:
    tasks = tasks_of(
        ("model.shop.x", node("model.shop.x", folder="marts")),
        ("model.shop.y", node("model.shop.y")),
        ("test.shop.y", node("test.shop.y", "model.shop.x", "model.shop.y", original_file_path="tests/y.sql")),
    )
    assert tasks["test.shop.y"]["select"] == "fqn:shop.y,path:tests/y.sql"
    assert tasks["model.shop.x"]["but"] == tasks["model.shop.y"]["but"] == "fqn:shop.y,path:tests/y.sql"
    assert tasks["model.shop.y"]["select"] == "fqn:shop.y"


def test_a_folder_of_any_name_is_selected() -> None:
    tasks = tasks_of(("model.shop.x", node("model.shop.x", folder="a b,{{c}}/*+")))
    assert tasks["model.shop.x"]["select"] == "fqn:shop.a?b???c??.??.x"


def test_what_a_packages_tests_read_without_naming_it_is_built_first() -> None:
    """As elementary's do."""
    metadata = {"namespace": "watcher", "name": "changed"}
    one = ("test.shop.changed.1", node("test.shop.changed.1", "model.shop.x", test_metadata=metadata))
    models = (("model.shop.x", node("model.shop.x")), ("model.watcher.seen", node("model.watcher.seen")))
    tasks = tasks_of(*models, one)
    assert tasks["model.shop.x"]["depends_on"] == {"nodes": ["model.watcher.seen"]}
    assert tasks["test.shop.changed.1"]["depends_on"] == {"nodes": ["model.shop.x"]}, "it stays one of x's"
    more = ("model.watcher.of_x", node("model.watcher.of_x", "model.shop.x"))
    assert tasks_of(*models, one, more)["model.shop.x"]["depends_on"] == {"nodes": []}, "no cycle"
