"""The published marts on a real PostgreSQL and a real MariaDB, with readers in a loop, kills, and odd values."""

import contextlib
import gzip
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import duckdb_extensions
import pytest

from include.runs import artifacts
from include.runs.manifest import current
from include.serving import RELEASE, ServeError, serve
from include.serving.mysql import MySQL
from include.serving.postgres import Postgres
from include.sql import identifier, literal
from include.warehouse import paths
from include.warehouse.targets import target
from testing import targets
from testing.project import NAME, unchecked

pytestmark = [pytest.mark.integration, pytest.mark.files, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = f"{NAME}_marts"
MANIFEST = current().manifest
PUBLISHES = int(os.environ.get("SERVE_PUBLISHES", "4"))


@dataclass
class Server:
    """A database server of one kind, with a user `loader` that may create schemas."""

    kind: str
    port: int
    password: str

    @property
    def url(self) -> str:
        path = "/postgres" if self.kind == "postgres" else ""
        return f"{'postgresql' if path else 'mysql'}://loader@127.0.0.1:{self.port}{path}"

    @contextlib.contextmanager
    def session(self, user: str = "loader") -> Iterator[Any]:
        """Yield a function that runs a query of the server's own SQL and returns its rows."""
        with duckdb.connect() as connection:
            extension = f"{self.kind}_scanner"
            duckdb_extensions.import_extension(extension, con=connection)
            connection.load_extension(extension)
            database = ", database 'postgres'" if self.kind == "postgres" else ""
            login = f"host '127.0.0.1', port '{self.port}', user '{user}', password '{self.password}'{database}"
            connection.execute(f"create secret one (type {self.kind}, {login})")
            connection.execute(f"attach '' as server (type {self.kind}, secret one)")

            def run(query: str, rows: bool = True) -> Any:
                if not rows:
                    return connection.execute(f"call {self.kind}_execute('server', {literal(query)})")
                return connection.execute(f"from {self.kind}_query('server', {literal(query)})").fetchall()

            yield run

    def query(self, query: str) -> list[tuple[Any, ...]]:
        with self.session() as run:
            return list(run(query))


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    with targets.postgres() as server:
        password = secrets.token_hex(8)
        with server.connect() as connection:
            connection.execute(f"create role loader login createrole password '{password}'")
            connection.execute("grant create on database postgres to loader")
            connection.execute(f"create role reader login password '{password}'")
        yield Server("postgres", server.port, password)


@contextlib.contextmanager
def mariadb() -> Iterator[Server]:
    server, install = (
        shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("mariadbd", "mariadb-install-db")
    )
    if not server or not install:
        pytest.skip("needs MariaDB: apt-get install mariadb-server")
    password, port = secrets.token_hex(8), targets.free_port()
    user = ["--user=mysql"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = root / "data"
        root.chmod(0o711)
        init = root / "init.sql"
        statements = [
            f"create user loader@'127.0.0.1' identified by '{password}';",
            "grant all on *.* to loader@'127.0.0.1' with grant option;",
            f"create user reader@'127.0.0.1' identified by '{password}';",
        ]
        init.write_text("\n".join(statements))  # the server reads a statement per line
        init.chmod(0o644)  # in a folder that only this test's user can list
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        data.mkdir()
        if user:
            shutil.chown(data, "mysql")
        subprocess.run([install, "--no-defaults", *user, f"--datadir={data}", "--skip-test-db"], check=True, **quiet)
        command = [server, "--no-defaults", *user, f"--datadir={data}", "--bind-address=127.0.0.1", f"--port={port}"]
        command += [
            f"--socket={data}/socket",
            f"--init-file={init}",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        found = Server("mysql", port, password)
        service = targets.Service(command, lambda: found.query("select 1"), stderr=subprocess.DEVNULL)
        try:
            yield found
        finally:
            service.stop()


@pytest.fixture(scope="module", params=[postgres, mariadb], ids=lambda one: one.__name__)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with request.param() as server:
        yield server


@pytest.fixture(autouse=True)
def selected(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setenv("SERVE_URL", server.url)
    monkeypatch.setenv("SERVE_PASSWORD", server.password)
    with server.session() as run:
        for end in ("", "_old", "_new"):
            cascade = " cascade" if server.kind == "postgres" else ""
            run(f"drop schema if exists {SCHEMA}{end}{cascade}", rows=False)


def publish(generation: int, *statements: str) -> None:
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts")
        for statement in statements or (
            f"create or replace table marts.orders as"
            f" select range as order_id, {generation}::decimal(38, 2) as amount from range(200)",
            f"create or replace table marts.customers as select range as customer_id, {generation} as g from range(50)",
        ):
            connection.execute(statement)
    target().publish(f"run-{generation}", unchecked)


def test_types_keys_comments_and_values_arrive_unchanged(server: Server) -> None:
    publish(
        1,
        """create table marts.orders as select 1::bigint as order_id, 90071992547409.93::decimal(38, 2) as amount,
            date '2024-02-29' as order_date, 'it''s "a" \\ line' || chr(10) || '𝄞 ü €' as status union all by name
            select 2::bigint as order_id, null as amount""",
        """create table marts."odd name" as select 1::hugeint as "a b", true as "select",
            '2024-01-01 01:02:03.123456'::timestamp as at, '2024-01-01 01:02:03.123456+02'::timestamptz as tz,
            {'x': [1, 2]} as nested, 1.5::double as f,
            '\\x00\\xFF'::blob as bytes, 12::utinyint as small, time '10:11:12' as clock""",
    )
    assert serve() == {"odd name": 1, "orders": 2}
    quote = '"' if server.kind == "postgres" else "`"
    rows = server.query(f"select order_id, amount, order_date, status from {SCHEMA}.orders order by 1")
    assert rows == [
        (1, Decimal("90071992547409.93"), date(2024, 2, 29), 'it\'s "a" \\ line\n𝄞 ü €'),
        (2, None, None, None),
    ]
    ((number, yes, at, tz, nested, f, data, small, _),) = server.query(f"select * from {SCHEMA}.{quote}odd name{quote}")
    assert (int(number), bool(yes), f, bytes(data), small) == (1, True, 1.5, b"\x00\xff", 12)
    assert at == datetime(2024, 1, 1, 1, 2, 3, 123456)
    assert tz.replace(tzinfo=UTC) == datetime(2023, 12, 31, 23, 2, 3, 123456, UTC) and nested == '{"x":[1,2]}'
    columns = f"from information_schema.columns where table_schema = '{SCHEMA}' and table_name = 'orders'"
    assert server.query(f"select column_name {columns} and is_nullable = 'NO'") == [("order_id",)]
    precision = f"select numeric_precision, numeric_scale {columns} and column_name = 'amount'"
    assert [tuple(map(int, row)) for row in server.query(precision)] == [(38, 2)]
    comment = (
        f"select col_description('{SCHEMA}.orders'::regclass, 1)"
        if server.kind == "postgres"
        else f"select column_comment {columns} and column_name = 'order_id'"
    )
    assert server.query(comment) == [("Key of the order.",)]
    assert server.query(f"select release_id from {SCHEMA}.{RELEASE}") == [("run-1",)]


def test_a_reader_in_a_loop_never_sees_half_a_release(server: Server) -> None:
    publish(1)
    serve()
    stop, seen, wrong = threading.Event(), set[int](), list[object]()
    query = f"""
        select (select min(amount) from {SCHEMA}.orders) as low, (select max(amount) from {SCHEMA}.orders) as high,
            (select min(g) from {SCHEMA}.customers) as g, (select max(run_id) from {SCHEMA}.{RELEASE}) as run_id,
            (select count(*) from {SCHEMA}.orders) as n
    """

    def read() -> None:
        try:
            with server.session() as run:
                while not stop.is_set():
                    ((low, high, g, run_id, rows),) = run(query)
                    seen.add(int(g))
                    if not (low == high == g and run_id == f"run-{g}" and rows == 200):
                        wrong.append((low, high, g, run_id, rows))
                    time.sleep(0.01)
        except duckdb.Error as error:
            wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for generation in range(2, PUBLISHES + 2):
            publish(generation)
            serve()
    finally:
        stop.set()
        reader.join()
    assert not wrong and len(seen) > 1


def test_grants_stay_and_removed_tables_go(server: Server) -> None:
    reader = "reader" if server.kind == "postgres" else "reader@'127.0.0.1'"
    publish(1)
    serve()
    with server.session() as run:
        if server.kind == "postgres":
            run(f"grant usage on schema {SCHEMA} to {reader}", rows=False)
        run(f"grant select on {SCHEMA}.orders to {reader}", rows=False)
    publish(2, "drop table marts.customers", "create or replace table marts.orders as select 7::bigint as order_id")
    serve()
    with server.session("reader") as run:
        assert run(f"select * from {SCHEMA}.orders") == [(7,)]
        with pytest.raises(duckdb.Error, match="denied"):
            run(f"select * from {SCHEMA}.{RELEASE}")
    tables = f"select table_name from information_schema.tables where table_schema like '{SCHEMA}%'"
    assert sorted(server.query(tables)) == [(RELEASE,), ("orders",)]


def test_a_kill_at_any_moment_leaves_a_whole_release_and_the_next_copy_works(server: Server) -> None:
    publish(1)
    started = time.monotonic()
    serve()
    seconds = time.monotonic() - started
    publish(2)
    command = [sys.executable, "-c", "from include.serving import serve; print(flush=True); serve()"]
    for part in (0.2, 0.5, 0.8):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline()
        time.sleep(part * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        query = f"select (select max(amount) from {SCHEMA}.orders) as a, (select max(g) from {SCHEMA}.customers) as g"
        ((amount, g),) = server.query(query)
        assert amount == g in (1, 2)
    serve()
    assert server.query(f"select max(g) from {SCHEMA}.customers") == [(2,)]


def test_two_at_the_same_time_take_turns(server: Server) -> None:
    publish(1)
    command = [sys.executable, "-c", "from include.serving import serve; serve()"]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    assert server.query(f"select count(*) from {SCHEMA}.orders") == [(200,)]


def test_what_cannot_work_says_so_without_the_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServeError, match="Nothing is published"):
        serve()
    publish(1)
    monkeypatch.setenv("SERVE_PASSWORD", "not the password")
    with pytest.raises(ServeError, match=r"authentication failed|Access denied") as refused:
        serve()
    assert not refused.value.retryable and "not the password" not in str(refused.value)
    monkeypatch.setenv("SERVE_URL", server.url.replace(str(server.port), "1"))
    with pytest.raises(ServeError, match=r"127\.0\.0\.1") as away:
        serve()
    assert away.value.retryable
    for url, message in (
        (f"{server.url.replace('loader@', 'loader:s3cret@')}", "must not contain a password"),
        ("oracle://host", "must be like postgresql://"),
    ):
        monkeypatch.setenv("SERVE_URL", url)
        with pytest.raises(ServeError, match=message) as error:
            serve()
        assert "s3cret" not in str(error.value)


def test_somebodys_view_follows_and_is_not_dropped(server: Server) -> None:
    if server.kind == "mysql":
        return  # a view there is by name
    publish(1)
    serve()
    with server.session() as run:
        run("drop schema if exists mine cascade", rows=False)
        run(f"create schema mine; create view mine.report as select * from {SCHEMA}.orders", rows=False)
    publish(2)
    serve()
    assert server.query("select min(amount), max(amount), count(*) from mine.report") == [(2, 2, 200)]
    publish(3, "alter table marts.orders add column extra integer")
    serve()  # readers have the new release, the view the old table
    assert server.query(f"select run_id, (select count(extra) from {SCHEMA}.orders) from {SCHEMA}._release") == [
        ("run-3", 0)
    ]
    with pytest.raises(ServeError, match=r"other objects depend on it") as error:
        serve()
    assert "mine.report" in str(error.value)
    with server.session() as run:
        run("drop view mine.report", rows=False)
    serve()


def orders(amount: str = "1.5::decimal(38, 2)", extra: str = "", rows: int = 2) -> str:
    columns = f"range::bigint as order_id, {amount} as amount{extra}"
    return f"create or replace table marts.orders as select {columns} from range({rows})"


def manifest_of(generation: int, column: str = "order_id", **config: object) -> None:
    """Give a run a manifest in which the table's key is tested as `config` says."""
    manifest = json.loads(MANIFEST.read_text())
    for node in manifest["nodes"].values():
        if node["resource_type"] == "test" and node.get("attached_node", "").endswith(".orders"):
            if node["test_metadata"]["name"] == "unique":
                node["config"] |= config
            node["column_name"] = column if node["column_name"] == "order_id" else node["column_name"]
    kept = paths.run_artifacts_dir(f"run-{generation}") / artifacts.MANIFEST
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(gzip.compress(json.dumps(manifest).encode()))


def keys(server: Server) -> list[str]:
    query = f"""select column_name from information_schema.key_column_usage
        where table_schema = '{SCHEMA}' and table_name = 'orders'"""
    return [name for (name,) in server.query(query)]


@pytest.mark.parametrize(
    "config", [{"severity": "warn"}, {"where": "amount > 0"}, {"error_if": ">10"}, {"limit": 1}], ids=str
)
def test_a_test_that_rows_may_fail_makes_no_primary_key(server: Server, config: dict[str, object]) -> None:
    publish(1, orders(), "insert into marts.orders from marts.orders")
    manifest_of(1, **config)
    assert serve() == {"orders": 4}
    assert keys(server) == []
    publish(2, orders())
    manifest_of(2, severity="error", error_if="!= 0")
    serve()
    assert keys(server) == ["order_id"]


@pytest.mark.parametrize("key", ["now", "was", "one", "Key", "new", 'a `b` "c"'])
def test_a_column_of_any_name_may_be_the_key(server: Server, key: str) -> None:
    quoted, others = identifier(key), '"now", "was", "key", "live", "record"'
    for generation, changed in ((1, "null"), (2, "'two'"), (3, "'three'")):
        columns = f"'a' as now, {changed} as was, 'c' as key, 'd' as live, 'e' as record"
        columns = f"from (select range::bigint as {quoted}, * from range(3), (select {columns}))"
        columns = f"select * exclude (range) replace (coalesce(range, 0)::bigint as {quoted}) {columns}"
        publish(generation, f"create or replace table marts.orders as {columns}")
        manifest_of(generation, column=key)
        serve()
        name = quoted if server.kind == "postgres" else f"`{key.replace('`', '``')}`"
        assert len(server.query(f"select {name} from {SCHEMA}.orders")) == 3, others
        assert keys(server) == [key]


REFUSED = {
    "postgres": {
        "a system column": (orders(extra=", 1 as ctid"), "cannot have the name ctid: it is a system column"),
        "a NUL byte": (orders(extra=", 'top' || chr(0) || 'secret' as note"), "column note has a NUL byte in 2 rows"),
        "a NUL byte in a list": (orders(extra=", ['top', 'x' || chr(0)] as note"), "column note has a NUL byte in 2"),
        "names that are cut": (
            orders(extra=f", 1 as {'x' * 63}_one, 2 as {'x' * 63}_two"),
            f"cannot tell the columns {'x' * 63}_one and {'x' * 63}_two apart",
        ),
    },
    "mysql": {
        "a long name": (orders(extra=f", 1 as {'x' * 65}"), "longer than 64 characters"),
        "an infinite number": (orders("'inf'::double"), "column amount has an infinite number or NaN in 2 rows"),
        "a date of no calendar": (orders("'infinity'::date"), "column amount has a date outside the years 1 to 9999"),
        "a late time": (orders("'12024-01-01'::timestamptz"), "column amount has a date outside the years 1 to 9999"),
    },
    "all": {
        "an integer of 39 digits": (
            orders("170141183460469231731687303715884105727::hugeint"),
            "an integer of 39 digits",
        ),
        "the name of ours": ("create table marts._release as select 'secret' as i", "cannot tell the tables"),
    },
}


def test_what_the_server_cannot_hold_is_refused_without_a_value_and_readers_keep_what_they_have(server: Server) -> None:
    publish(1, orders())
    serve()
    for generation, (what, (statement, message)) in enumerate({**REFUSED[server.kind], **REFUSED["all"]}.items(), 2):
        publish(generation, "drop table if exists marts._release", orders(), statement)
        with pytest.raises(ServeError, match=re.escape(message)) as refused:
            serve()
        text = str(refused.value)
        assert "secret" not in text and "1701411" not in text and "\0" not in text, (what, text)
        assert server.query(f"select release_id from {SCHEMA}.{RELEASE}") == [("run-1",)], what


def test_a_schema_name_that_the_server_would_cut_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, the names of the new, the old and the live schema would be one."""
    monkeypatch.setenv("WAREHOUSE_NAME", "w" * 60)
    with duckdb.connect() as connection, pytest.raises(ServeError, match="choose a shorter WAREHOUSE_NAME"):
        kind = Postgres if server.kind == "postgres" else MySQL
        kind("here", {}).check(connection, [])


def test_long_names_nul_bytes_and_long_keys_work_where_they_can(server: Server) -> None:
    if server.kind == "postgres":
        name = "é" * 40
        publish(1, orders(extra=f", 1 as {name}"), f'create table marts."{name}" as select 1 as i')
        assert serve() == {"orders": 2, name: 1}
        assert serve() == {"orders": 2, name: 1}
        assert server.query(f"select {name[:31]} from {SCHEMA}.orders") == [(1,), (1,)]
    else:
        publish(1, orders(extra=", 'a' || chr(0) || 'b' as note"))
        serve()
        assert server.query(f"select distinct hex(note) from {SCHEMA}.orders") == [("610062",)]
    publish(2, "create or replace table marts.orders as select repeat('k', 5000) || range as order_id from range(2)")
    serve()
    assert keys(server) == [] and len(server.query(f"select * from {SCHEMA}.orders")) == 2


def test_an_error_of_the_server_has_no_value(server: Server) -> None:
    if server.kind == "mysql":
        return  # its tables are new ones each time
    publish(1, orders("range::varchar || 'secret'"))
    serve()
    with server.session() as run:
        run(f"create unique index on {SCHEMA}.orders (amount)", rows=False)
    publish(2, orders("'secret'"))
    with pytest.raises(ServeError, match="duplicate key value violates unique constraint") as refused:
        serve()
    assert "secret" not in str(refused.value)
    assert server.query(f"select count(distinct amount) from {SCHEMA}.orders") == [(2,)]
