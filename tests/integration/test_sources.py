"""Every kind of source goes through the same `load`: a REST API, a generator, a second set of CSV files."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dlt
import pytest
from dlt.extract import DltSource
from dlt.sources.rest_api import rest_api_source

from include.dlt_pipelines import loaders
from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.files import SourceFileError, contract
from include.dlt_pipelines.load import SourceContractError, find_source, load
from include.runs import artifacts
from include.warehouse import builds, paths
from include.warehouse.targets import target
from testing.project import NAME, unchecked
from testing.targets import fetch_all

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "data"))
    return tmp_path


def rows(query: str) -> list[tuple[Any, ...]]:
    with target().open_working() as connection:
        fetch_all(connection)
        return connection.execute(query).fetchall()


def load_and_publish(source: DltSource, run_id: str) -> artifacts.Load:
    loaded = load(source, run_id)
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts; create or replace table marts.t as select 1 as i")
    target().publish(run_id, unchecked)
    return loaded


class Api:
    """A web service with two collections, on loopback."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = [{"id": n, "name": f"item {n}", "tags": [{"t": "a"}]} for n in range(1, 4)]
        self.stores: list[dict[str, Any]] = [{"id": 1, "city": "Accra"}]
        self.asked: list[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.asked.append(self.path)
                address = urlsplit(self.path)
                found = getattr(api, address.path.strip("/"))
                if since := parse_qs(address.query).get("since"):
                    found = [one for one in found if one["id"] > int(since[0])]
                body = json.dumps(found).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def source(self) -> DltSource:
        return rest_api_source(
            {
                "client": {"base_url": f"http://127.0.0.1:{self.server.server_port}"},
                "resources": [
                    {
                        "name": "items",
                        "primary_key": "id",
                        "write_disposition": "merge",
                        "endpoint": {
                            "path": "items",
                            "params": {"since": "{incremental.start_value}"},
                            "incremental": {"cursor_path": "id", "initial_value": 0},
                            "paginator": "single_page",
                        },
                    },
                    {"name": "stores", "endpoint": {"path": "stores", "paginator": "single_page"}},
                ],
                "resource_defaults": {"write_disposition": "replace"},
            },
            name="wholesale",
        )


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.server.shutdown()


def test_a_rest_source_loads_incrementally_into_its_own_schema_with_a_summary(api: Api) -> None:
    first = load_and_publish(api.source(), "run-1")
    assert {name: table.rows_loaded for name, table in first.tables.items()} == {
        "items": 3,
        "items__tags": 3,
        "stores": 1,
    }
    assert artifacts.loads_of("run-1") == [first] and first.source == "wholesale"
    assert rows("select distinct _dlt_load_id from wholesale_raw.items") == [(first.load_id,)]

    api.items.append({"id": 4, "name": "item 4", "tags": []})
    load(api.source(), "run-2")
    assert "/items?since=3" in api.asked, "dlt's state was restored from the warehouse"
    assert rows("select id from wholesale_raw.items order by 1") == [(1,), (2,), (3,), (4,)]
    with target().open_working() as connection:
        recorded = {one.node: one for one in builds.loads(connection)}
        assert recorded["wholesale_raw.items"].run_id == "run-2" and recorded["wholesale_raw.items"].stateful
        schemas = {schema for schema, _ in target().relations(connection)}
    assert schemas == {"marts", "warehouse", "wholesale_raw"}, "dlt's helper schema is gone"


def test_a_new_column_fails_the_load_until_a_full_refresh(api: Api) -> None:
    load_and_publish(api.source(), "run-1")
    before = rows("from wholesale_raw.stores"), rows("from wholesale_raw.items order by id")
    api.stores = [{"id": 1, "city": "Accra", "phone": "1"}]
    api.items.append({"id": 4, "name": "item 4", "tags": []})
    with pytest.raises(SourceContractError, match=r"wholesale: .*phone.*Nothing was loaded.*full_refresh"):
        load(api.source(), "run-2")
    assert (rows("from wholesale_raw.stores"), rows("from wholesale_raw.items order by id")) == before

    changed = load(api.source(), "run-3", full_refresh=True)
    assert "stores.phone: absent -> VARCHAR" in changed.schema_changes
    assert rows("select count(*), max(phone) from wholesale_raw.items, wholesale_raw.stores") == [(4, "1")]


def test_an_incremental_load_after_a_restore_loses_no_rows(api: Api) -> None:
    load_and_publish(api.source(), "run-1")
    api.items += [{"id": n, "name": "new", "tags": []} for n in (4, 5)]
    load(api.source(), "run-2")
    target().restore()
    load(api.source(), "run-3")
    assert rows("select id from wholesale_raw.items order by 1") == [(n,) for n in range(1, 6)]


def test_an_unpublished_runs_rows_do_not_survive_in_a_merged_table(api: Api) -> None:
    load_and_publish(api.source(), "green")
    api.items.append({"id": 9, "name": "a mistake", "tags": []})
    load(api.source(), "red")
    api.items[-1] = {"id": 4, "name": "item 4", "tags": []}
    load(api.source(), "next")
    assert rows("select id from wholesale_raw.items order by 1") == [(1,), (2,), (3,), (4,)]


def test_a_source_that_fails_on_its_last_table_changes_no_table() -> None:
    @dlt.source(name="numbers")
    def numbers(last: int, broken: bool) -> Any:
        @dlt.resource(write_disposition="append")
        def one() -> Iterator[Any]:
            yield [{"n": last}]

        @dlt.resource(write_disposition="append")
        def two() -> Iterator[Any]:
            yield [{"n": last}]
            if broken:
                raise RuntimeError("the connection was lost")

        return one, two

    load_and_publish(numbers(1, broken=False), "run-1")
    with pytest.raises(Exception, match="the connection was lost"):
        load(numbers(2, broken=True), "run-2")
    assert rows("select n from numbers_raw.one union all select n from numbers_raw.two") == [(1,), (1,)]
    load(numbers(3, broken=False), "run-3")
    assert rows("select n from numbers_raw.one order by 1") == [(1,), (3,)]


def numbered(rows: list[dict[str, Any]], **hints: Any) -> DltSource:
    @dlt.source(name="numbers")
    def numbers() -> Any:
        return dlt.resource(rows, name="one", **hints), dlt.resource([{"n": 1}], name="two")

    return numbers()


@pytest.mark.parametrize("disposition", ["replace", "append", "merge"])
def test_an_empty_resource_with_declared_columns_makes_an_empty_table(disposition: str) -> None:
    columns = {"n": {"data_type": "bigint", "nullable": False}, "seen_at": {"data_type": "timestamp"}}
    hints = {"columns": columns, "write_disposition": disposition, "primary_key": "n"}
    load_and_publish(numbered([], **hints), "run-1")
    kinds = rows("select column_name, data_type from duckdb_columns() where table_name = 'one' order by column_index")
    assert kinds[:2] == [("n", "BIGINT"), ("seen_at", "TIMESTAMP WITH TIME ZONE")]
    load_and_publish(numbered([{"n": 1, "seen_at": "2026-01-01T00:00:00Z"}], **hints), "run-2")
    assert rows("select n, year(seen_at) from numbers_raw.one") == [(1, 2026)]
    load_and_publish(numbered([], **hints), "run-3")
    assert rows("select n from numbers_raw.one") == ([] if disposition == "replace" else [(1,)])
    load(numbered([], **hints), "run-4", full_refresh=True)
    assert rows("select n from numbers_raw.one") == []


def test_an_empty_resource_without_columns_fails_the_load_only_if_dbt_reads_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_and_publish(numbered([]), "run-1")
    assert "numbers: no rows for numbers_raw.one, whose columns are not known" in caplog.text
    monkeypatch.setattr(loaders, "_read_by_dbt", lambda: {("numbers_raw", "one")})
    with pytest.raises(loaders.EmptyResourceError, match=r"no rows for numbers_raw\.one.*Declare its columns"):
        load(numbered([]), "run-2")
    load(numbered([{"n": 1}]), "run-3")
    assert rows("select n from numbers_raw.one") == [(1,)]


def test_a_second_file_source_needs_only_a_declaration(folder: Path) -> None:
    (folder / "stores").mkdir()
    (folder / "stores" / "stores.csv").write_text("id,opened\n1,2024-02-29\n2,2024-02-30\n")
    stores = FileSource(
        "stores", str(folder / "stores"), (TableContract("stores", {"id": "BIGINT", "opened": "DATE"}, ("id",)),), 1
    )
    shop = find_source("jaffle_shop")
    load(shop, "run")
    loaded = load(stores, "run")
    assert (loaded.rows_loaded, loaded.rows_rejected) == (1, 1)
    assert [one.source for one in artifacts.loads_of("run")] == ["jaffle_shop", "stores"]
    assert rows("select table_name, line from stores_raw.rejected_rows") == [("stores", 3)]
    assert rows("select count(*) from jaffle_shop_raw.rejected_rows") == [(0,)]
    assert rows("select count(*) from jaffle_shop_raw.raw_orders") == [(99,)]
    with pytest.raises(SourceFileError, match="at most 0 tolerated"):
        load(stores, "run", max_rejected_rows=0)


@pytest.mark.not_on("bigquery", reason="its emulator does not tell how many digits a NUMERIC column has")
@pytest.mark.not_on("snowflake", reason="names are without quotes there, and come back in lower case")
def test_every_contract_type_is_loaded_as_declared_under_any_column_name(folder: Path) -> None:
    values = {"VARCHAR": "ä", "BOOLEAN": "true", "DATE": "2024-02-29", "TIME": "12:00:00.000001"}
    columns = {f"Column {at}": type_ for at, type_ in enumerate((*contract.TYPES, "DECIMAL(38,2)"))}
    row = []
    for type_ in columns.values():
        stamp = "2024-02-29 12:00:00" + ("+05:00" if "ZONE" in type_ else "")
        row.append(values.get(type_) or (stamp if type_.startswith("TIMESTAMP") else "1"))
    (folder / "typed").mkdir()
    (folder / "typed" / "t.csv").write_text(f"{','.join(columns)}\n{','.join(row)}\n")
    load(FileSource("typed", str(folder / "typed"), (TableContract("t", columns, ("Column 0",)),)), "run")
    found = rows("select column_name, data_type from duckdb_columns() where table_name = 't' order by column_index")
    stored = [(name, target().stored_type(type_)) for name, type_ in columns.items()]
    assert found == [*stored, ("_dlt_load_id", "VARCHAR")]
    assert rows("select count(columns(*)) from typed_raw.t") == [(1,) * (len(columns) + 1)]


@pytest.mark.files
def test_a_second_warehouse_has_its_own_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(find_source("jaffle_shop"), "scheduled__2026-11-24")
    monkeypatch.setenv("WAREHOUSE_NAME", NAME)  # both are reset after the test
    monkeypatch.setenv("WAREHOUSE_DIR", str(folder / "data"))
    paths.use_warehouse("marketing")
    assert paths.working_path() == folder / "data" / "marketing" / "marketing.duckdb"
    load(find_source("jaffle_shop"), "scheduled__2026-11-24")
    assert (folder / "data" / f"{NAME}.duckdb").exists() and paths.working_path().exists()
    assert len(list((folder / "data").rglob("load-jaffle_shop.json"))) == 2


def test_a_failed_artifact_write_rolls_back_the_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = find_source("jaffle_shop")
    load(shop, "run-1")
    (paths.artifacts_dir() / "run-2").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="run-2"):
        load(shop, "run-2")
    with target().open_working() as connection:
        assert {one.run_id for one in builds.loads(connection)} == {"run-1"}
