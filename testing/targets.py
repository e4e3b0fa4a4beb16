"""The targets that the conformance tests run on, with real servers: `pytest --target ducklake`."""

import contextlib
import http.server
import importlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import psutil
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from include.warehouse.targets import target as engine

NAMES = ("duckdb", "encrypted", "ducklake", "ducklake-s3", "postgres", "bigquery", "snowflake")
_SECONDS = 120
PROJECT = Path(__file__).resolve().parents[1]
_BQEMULATOR = """
import duckdb, duckdb_extensions
for name in ("avro", "spatial"):  # it would download them
    duckdb_extensions.import_extension(name, con=duckdb.connect())
from bqemulator.cli import main
main()
"""


class Target:
    """The DuckDB file. A warehouse is described by the environment variables that select it."""

    name = "duckdb"
    env: Mapping[str, str] = {}

    def services(self) -> dict[str, "Service"]:
        """Return the servers that a warehouse needs, by name."""
        return {}

    def new(self, folder: Path) -> dict[str, str]:
        """Return an empty warehouse in a folder."""
        return {**self.env, "WAREHOUSE_DIR": str(folder / "data")}

    def copy(self, warehouse: dict[str, str], folder: Path) -> dict[str, str]:
        """Return a copy of a warehouse, in another folder."""
        old, new = Path(warehouse["WAREHOUSE_DIR"]), folder / "data"
        shutil.copytree(old, new, dirs_exist_ok=True)
        for published in (new / "published").glob("*.duckdb"):  # a link to its release, as publish makes it
            kept = next(one for one in (old / "releases").iterdir() if one.samefile(old / "published" / published.name))
            published.unlink()
            published.hardlink_to(new / "releases" / kept.name)
        return {**self.env, "WAREHOUSE_DIR": str(new)}


class Encrypted(Target):
    """The DuckDB file, encrypted."""

    name = "encrypted"

    def __init__(self) -> None:
        self.env = {"DBT_TARGET": "encrypted", "WAREHOUSE_ENCRYPTION_KEY": secrets.token_hex(16)}


class Service:
    """A server process that can be killed and started again."""

    def __init__(self, command: Sequence[object], is_up: Callable[[], object], **options: Any) -> None:
        self._command, self._is_up = [str(word) for word in command], is_up
        self._options = {"stdout": subprocess.DEVNULL, **options}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, **self._options)
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                self._is_up()
                return
            except (OSError, psycopg.OperationalError, duckdb.Error):  # not yet
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self._command[0]} does not start")
            time.sleep(0.1)

    def children(self) -> list[psutil.Process]:
        """Return its child processes and theirs; none if it is dead."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill it and its children, as if its machine had died."""
        for process in (*self.children(), self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@dataclass
class DuckLake(Target):
    """A database of its own for each warehouse; the data in a folder, or all of it in one bucket."""

    postgres: "Postgres"
    store: "ObjectStore | None" = None
    name = "ducklake"

    def services(self) -> dict[str, Service]:
        found = {"postgres": self.postgres.service}
        return found | ({"object store": self.store.service} if self.store else {})

    def new(self, folder: Path) -> dict[str, str]:
        return self._env(folder, "template1", f"s3://lake/{folder.name}" if self.store else str(folder / "lake"))

    def copy(self, warehouse: dict[str, str], folder: Path) -> dict[str, str]:
        shutil.copytree(warehouse["WAREHOUSE_DIR"], folder / "data", dirs_exist_ok=True)
        template = psycopg.conninfo.conninfo_to_dict(warehouse["DUCKLAKE_CATALOG"])["dbname"]
        # Both refer to the same data files, of which none is deleted within a day.
        return self._env(folder, str(template), warehouse["DUCKLAKE_DATA"])

    def _env(self, folder: Path, template: str, data: str) -> dict[str, str]:
        return {
            "WAREHOUSE_DIR": str(folder / "data"),
            "DBT_TARGET": "ducklake",
            "DUCKLAKE_CATALOG": self.postgres.create_database(template),
            "DUCKLAKE_DATA": data,
            "PGPASSFILE": str(self.postgres.passfile),
            **(self.store.env if self.store else {}),
        }


@dataclass
class InPostgres(Target):
    """A database of its own for each warehouse, which names the others."""

    postgres: "Postgres"
    name = "postgres"

    def services(self) -> dict[str, Service]:
        return {"postgres": self.postgres.service}

    def new(self, folder: Path) -> dict[str, str]:
        return self._env(folder, self.postgres.create_database())

    def copy(self, warehouse: dict[str, str], folder: Path) -> dict[str, str]:
        shutil.copytree(warehouse["WAREHOUSE_DIR"], folder / "data", dirs_exist_ok=True)
        old = warehouse["PGDATABASE"]
        env = self._env(folder, self.postgres.create_database(old))
        with self.postgres.connect() as connection:
            names = connection.execute(
                "select datname from pg_database where starts_with(datname, %s)", [f"{old}_"]
            ).fetchall()
            for (name,) in names:
                new = f"{env['PGDATABASE']}{name.removeprefix(old)}"
                connection.execute(f'create database "{new}" template "{name}"')
        return env

    def _env(self, folder: Path, conninfo: str) -> dict[str, str]:
        database = str(psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"])
        return {
            "WAREHOUSE_DIR": str(folder / "data"),
            "DBT_TARGET": "postgres",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.postgres.port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
            "PGPASSFILE": str(self.postgres.passfile),
        }


@dataclass
class Postgres:
    """A PostgreSQL server on loopback, with a password."""

    folder: Path
    port: int
    service: Service = field(init=False)
    _made: int = 0

    @property
    def passfile(self) -> Path:
        return self.folder.with_suffix(".pgpass")

    @property
    def password(self) -> str:
        return self.passfile.read_text().strip().split(":")[-1]

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.conninfo(database), passfile=str(self.passfile), autocommit=True)

    def conninfo(self, database: str, user: str = "postgres") -> str:
        return f"host=127.0.0.1 port={self.port} user={user} dbname={database}"

    def create_database(self, template: str = "template1") -> str:
        """Create a database, as a copy of one that nobody is connected to; return how to connect to it."""
        self._made += 1
        name = f"test_{os.getpid()}_{self._made}"
        with self.connect() as connection:
            connection.execute(f"create database {name} template {template}")
        return self.conninfo(name)


def _user() -> str | None:
    return "postgres" if os.getuid() == 0 else None  # initdb and the server refuse to run as root


def binaries() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return folders[-1]


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server."""
    programs, password = binaries(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o711)
        server = Postgres(root / "postgres", free_port())
        server.folder.mkdir()
        word = root / "word"
        word.write_text(password)
        server.passfile.write_text(f"127.0.0.1:*:*:*:{password}\n")
        server.passfile.chmod(0o600)
        if _user():
            shutil.chown(server.folder, _user())
            shutil.chown(word, _user())
        options = {"user": _user(), "cwd": "/"}
        init = [programs / "initdb", "-D", server.folder, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={word}"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, **options)
        settings = {"listen_addresses": "127.0.0.1", "port": server.port, "unix_socket_directories": "", "fsync": "off"}
        command = [programs / "postgres", "-D", server.folder]
        command += [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        log = (root / "log").open("wb")
        server.service = Service(command, lambda: server.connect().close(), stderr=log, **options)
        try:
            yield server
        finally:
            server.service.stop()
            log.close()


@dataclass
class ObjectStore:
    """An S3-compatible server with a bucket `lake`; `env` has the variables that reach it."""

    env: dict[str, str]
    service: Service


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run an S3-compatible object store."""
    rclone = shutil.which("rclone")
    if not rclone:
        pytest.skip("needs rclone: make test-targets installs it")
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "lake").mkdir()
        key, secret, port = secrets.token_hex(10), secrets.token_hex(20), free_port()
        command = [rclone, "serve", "s3", root, "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
        env = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
        store = ObjectStore(env, Service(command, partial(_connect, port), stderr=subprocess.DEVNULL))
        try:
            yield store
        finally:
            store.service.stop()


# `create table (columns and types) as select`, which a contract needs, is a syntax error in the emulator. dbt still
# compares the contract with the query's columns.
BIGQUERY_SHIM = "{% macro bigquery__get_table_columns_and_constraints() %}{% endmacro %}\n"


@dataclass
class InBigQuery(Target):
    """A project of its own for each warehouse, on an emulator."""

    endpoint: str
    key_file: Path
    service: Service
    name = "bigquery"
    _made: int = 0

    def services(self) -> dict[str, Service]:
        return {"bigquery": self.service}

    def new(self, folder: Path) -> dict[str, str]:
        self._made += 1
        return {
            "WAREHOUSE_DIR": str(folder / "data"),
            "DBT_TARGET": "bigquery",
            "BIGQUERY_PROJECT": f"test{os.getpid()}n{self._made}",
            "BIGQUERY_EMULATOR_HOST": self.endpoint,  # Google's client reads it
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.key_file),
        }

    def copy(self, warehouse: dict[str, str], folder: Path) -> dict[str, str]:
        shutil.copytree(warehouse["WAREHOUSE_DIR"], folder / "data", dirs_exist_ok=True)
        env = self.new(folder)
        old, new = warehouse["BIGQUERY_PROJECT"], env["BIGQUERY_PROJECT"]
        source, copy = self.client(old), self.client(new)
        views = []
        for name in [one.dataset_id for one in source.list_datasets()]:
            copy.create_dataset(name)
            views += [
                f"create view `{new}`.`{name}`.`{view}` as {query.replace(f'`{old}`', f'`{new}`')}"
                for view, query in source.query(
                    f"select table_name, view_definition from `{name}`.INFORMATION_SCHEMA.VIEWS"
                ).result()
            ]
            for table in source.list_tables(name):
                if table.table_type != "VIEW":  # not a clone: the emulator lists those as something else
                    place = f"`{name}`.`{table.table_id}`"
                    copy.query(f"create table `{new}`.{place} as select * from `{old}`.{place}").result()
        for query in views:
            copy.query(query).result()
        return env

    def adapt(self, project: Path) -> None:
        """Take what the emulator cannot do out of a copy of a dbt project."""
        (project / "macros" / "emulator.sql").write_text(BIGQUERY_SHIM)
        # Its BIGNUMERIC has 38 digits of BigQuery's 76: too few for the ends of BIGINT, times 0.01.
        payments = project / "models" / "staging" / "stg_payments.yml"
        if payments.exists():
            payments.write_text(payments.read_text().split("\nunit_tests:")[0] + "\n")

    def read(self, sql: str) -> list[tuple[Any, ...]]:
        """Query the selected warehouse as a reader does: another client, which knows nothing of the project."""
        return [tuple(row) for row in self.client(os.environ["BIGQUERY_PROJECT"]).query(sql).result()]

    def client(self, project: str) -> Any:
        """Return a client of the emulator."""
        credentials = importlib.import_module("google.auth.credentials").AnonymousCredentials()
        bigquery: Any = importlib.import_module("google.cloud.bigquery")
        options = {"api_endpoint": self.endpoint}
        return bigquery.Client(project, credentials=credentials, client_options=options)


# The emulator finds the columns of dbt's merges ambiguous. This is what dbt does where there is no merge. What it makes
# for itself is no temporary table here, so it does not go by itself.
SNOWFLAKE_SHIM = """
{% macro snowflake__get_merge_sql(target, source_sql, unique_key, dest_columns, incremental_predicates=none) %}
{% do return(get_delete_insert_merge_sql(target, source_sql, unique_key, dest_columns, incremental_predicates)) %}
{% endmacro %}
{% macro snowflake__snapshot_merge_sql(target, source, insert_cols) %}
{% set columns = insert_cols | join(', ') %}
{% set dml %}
update {{ target }} as history set dbt_valid_to = found.dbt_valid_to from {{ source }} as found
where found.dbt_scd_id = history.dbt_scd_id and history.dbt_valid_to is null
and found.dbt_change_type in ('update', 'delete');
insert into {{ target }} ({{ columns }}) select {{ columns }} from {{ source }} where dbt_change_type = 'insert'
{% endset %}
{% do return(snowflake_dml_explicit_transaction(dml)) %}
{% endmacro %}
{% macro snowflake__post_snapshot(staging_relation) %}
{% do adapter.drop_relation(staging_relation) %}
{% endmacro %}
"""


@dataclass
class InSnowflake(Target):
    """A database of its own for each warehouse, on an emulator."""

    port: int
    key_file: Path
    service: Service
    name = "snowflake"
    _made: int = 0

    def services(self) -> dict[str, Service]:
        return {"snowflake": self.service}

    def new(self, folder: Path) -> dict[str, str]:
        self._made += 1
        return {
            "WAREHOUSE_DIR": str(folder / "data"),
            "DBT_TARGET": "snowflake",
            "SNOWFLAKE_ACCOUNT": "emulator",
            "SNOWFLAKE_USER": "elt",
            "SNOWFLAKE_PRIVATE_KEY_PATH": str(self.key_file),
            "SNOWFLAKE_DATABASE": f"test{os.getpid()}n{self._made}",
            "SNOWFLAKE_HOST": "127.0.0.1",
            "SNOWFLAKE_PORT": str(self.port),
            "SNOWFLAKE_PROTOCOL": "http",
        }

    def copy(self, warehouse: dict[str, str], folder: Path) -> dict[str, str]:
        shutil.copytree(warehouse["WAREHOUSE_DIR"], folder / "data", dirs_exist_ok=True)
        env = self.new(folder)
        old, new = (one["SNOWFLAKE_DATABASE"].upper() for one in (warehouse, env))
        with self.connect(env["SNOWFLAKE_DATABASE"]) as connection, connection.cursor() as cursor:
            listed = "select table_schema, table_name from {}.information_schema.tables where table_type = 'BASE TABLE'"
            for schema, table in cursor.execute(listed.format(old)).fetchall():
                place = f'"{schema}"."{table}"'
                cursor.execute(f'create schema if not exists {new}."{schema}"')
                cursor.execute(f"create transient table {new}.{place} clone {old}.{place}")
            views = f"select table_schema, view_definition from {old}.information_schema.views"
            for schema, text in cursor.execute(views).fetchall():
                cursor.execute(f'create schema if not exists {new}."{schema}"')
                cursor.execute(text.replace(f"{old}.", f"{new}."))
        return env

    def adapt(self, project: Path) -> None:
        """Take what the emulator cannot do out of a copy of a dbt project."""
        (project / "macros" / "emulator.sql").write_text(SNOWFLAKE_SHIM)

    def read(self, sql: str) -> list[tuple[Any, ...]]:
        """Query the selected warehouse as a reader does: another client, which knows nothing of the project."""
        with self.connect(os.environ["SNOWFLAKE_DATABASE"]) as connection, connection.cursor() as cursor:
            return [tuple(row) for row in cursor.execute(sql).fetchall()]

    def connect(self, database: str) -> Any:
        connector: Any = importlib.import_module("snowflake.connector")
        place = {"account": "emulator", "host": "127.0.0.1", "port": self.port, "protocol": "http"}
        return connector.connect(**place, user="reader", password=secrets.token_hex(8), database=database)


@contextlib.contextmanager
def snowflake() -> Iterator[InSnowflake]:
    """Run an emulator of Snowflake."""
    python = PROJECT / ".venv-emulator" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs make test-clouds")
    with tempfile.TemporaryDirectory() as name:
        key_file, port = Path(name) / "key.pem", free_port()
        key_file.write_bytes(_key())
        key_file.chmod(0o600)
        command = [python, PROJECT / "testing" / "snowflake_emulator.py", port]
        environment = os.environ | {"TMPDIR": name}
        service = Service(command, partial(_connect, port), stderr=subprocess.DEVNULL, env=environment)
        try:
            yield InSnowflake(port, key_file, service)
        finally:
            service.stop()


def _key() -> bytes:
    return rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class _Tokens(http.server.BaseHTTPRequestHandler):
    """Gives a service account an access token, as Google would."""

    def do_POST(self) -> None:
        body = json.dumps({"access_token": "of-the-emulator", "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def bigquery() -> Iterator[InBigQuery]:
    """Run an emulator of BigQuery, and what gives a service account its tokens."""
    python = PROJECT / ".venv-bqemulator" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs make test-clouds")
    tokens = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Tokens)
    threading.Thread(target=tokens.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        account = {"type": "service_account", "project_id": "test", "private_key": _key().decode()}
        account["private_key_id"] = "1"
        account |= {"client_email": "elt@test.invalid", "token_uri": f"http://127.0.0.1:{tokens.server_port}/token"}
        key_file = Path(name) / "key.json"
        key_file.write_text(json.dumps(account))
        port = free_port()
        command = [python, "-c", _BQEMULATOR, "start", "--rest-port", port, "--grpc-port", free_port()]
        environment = os.environ | {"TMPDIR": name}
        service = Service(command, partial(_connect, port), stderr=subprocess.DEVNULL, env=environment)
        try:
            yield InBigQuery(f"http://127.0.0.1:{port}", key_file, service)
        finally:
            service.stop()
            tokens.shutdown()


@contextlib.contextmanager
def started(name: str) -> Iterator[Target]:
    """Start what a target needs."""
    with contextlib.ExitStack() as stack:
        if name in ("duckdb", "encrypted"):
            yield Encrypted() if name == "encrypted" else Target()
        elif name in ("bigquery", "snowflake"):
            yield stack.enter_context(bigquery() if name == "bigquery" else snowflake())
        else:
            server = stack.enter_context(postgres())
            store = stack.enter_context(object_store()) if name == "ducklake-s3" else None
            yield InPostgres(server) if name == "postgres" else DuckLake(server, store)


def fetch_all(connection: duckdb.DuckDBPyConnection) -> None:
    """Let a test's SQL read and change every working table, also on a target that DuckDB does not reach."""
    tables = [one for one, kind in engine().relations(connection).items() if kind == "table"]
    for schema in {schema for schema, _ in tables}:
        engine().fetch(connection, schema, {name for of, name in tables if of == schema}.__contains__)


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 1).close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
