"""The targets that the conformance tests run on, with real servers: `pytest --target ducklake`."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
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

NAMES = ("duckdb", "encrypted", "ducklake", "ducklake-s3", "postgres")
_SECONDS = 60


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
            assert self.process.poll() is None and time.monotonic() < deadline, f"{self._command[0]} does not start"
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


def _binaries() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return folders[-1]


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server."""
    binaries, password = _binaries(), secrets.token_hex(16)
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
        init = [binaries / "initdb", "-D", server.folder, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={word}"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, **options)
        settings = {"listen_addresses": "127.0.0.1", "port": server.port, "unix_socket_directories": "", "fsync": "off"}
        command = [binaries / "postgres", "-D", server.folder]
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


@contextlib.contextmanager
def started(name: str) -> Iterator[Target]:
    """Start what a target needs."""
    with contextlib.ExitStack() as stack:
        if name in ("duckdb", "encrypted"):
            yield Encrypted() if name == "encrypted" else Target()
        else:
            server = stack.enter_context(postgres())
            store = stack.enter_context(object_store()) if name == "ducklake-s3" else None
            yield InPostgres(server) if name == "postgres" else DuckLake(server, store)


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 1).close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
