"""The targets that the conformance tests run on, with real servers: `pytest --target ducklake`."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

NAMES = ("duckdb", "ducklake", "ducklake-s3")
_SECONDS = 60


class Target:
    """The DuckDB file. A warehouse is described by the environment variables that select it."""

    name = "duckdb"

    def new(self, folder: Path) -> dict[str, str]:
        """Return an empty warehouse in a folder."""
        return {"WAREHOUSE_DIR": str(folder / "data")}

    def copy(self, warehouse: dict[str, str], folder: Path) -> dict[str, str]:
        """Return a copy of a warehouse, in another folder."""
        old, new = Path(warehouse["WAREHOUSE_DIR"]), folder / "data"
        shutil.copytree(old, new, dirs_exist_ok=True)
        for published in (new / "published").glob("*.duckdb"):  # a link to its snapshot, as publish makes it
            kept = next(
                one for one in (old / "snapshots").iterdir() if one.samefile(old / "published" / published.name)
            )
            published.unlink()
            published.hardlink_to(new / "snapshots" / kept.name)
        return {"WAREHOUSE_DIR": str(new)}


@dataclass
class DuckLake(Target):
    """A database of its own for each warehouse; the data in a folder, or all of it in one bucket."""

    postgres: "Postgres"
    s3: dict[str, str] = field(default_factory=dict)
    name = "ducklake"

    def new(self, folder: Path) -> dict[str, str]:
        return self._env(folder, "template1", "s3://lake" if self.s3 else str(folder / "lake"))

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
            "DUCKLAKE_DATA": f"{data}/{folder.name}" if template == "template1" and self.s3 else data,
            "PGPASSFILE": str(self.postgres.passfile),
            **self.s3,
        }


@dataclass
class Postgres:
    """A PostgreSQL server on loopback, with a password."""

    folder: Path
    port: int
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
        with self.connect() as con:
            con.execute(f"create database {name} template {template}")
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
        options = {"user": _user(), "cwd": "/", "stdout": subprocess.DEVNULL}
        subprocess.run(
            [binaries / "initdb", "-D", server.folder, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={word}"],
            check=True,
            **options,
        )
        settings = {"listen_addresses": "127.0.0.1", "port": server.port, "unix_socket_directories": "", "fsync": "off"}
        command = [binaries / "postgres", "-D", server.folder]
        command += [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log, **options)
        try:
            deadline = time.monotonic() + _SECONDS
            while True:
                try:
                    server.connect().close()
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None and time.monotonic() < deadline, (root / "log").read_text()
                    time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """Run an S3-compatible object store with a bucket `lake`; yield the variables that reach it."""
    rclone = shutil.which("rclone")
    if not rclone:
        pytest.skip("needs rclone: make test-targets installs it")
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "lake").mkdir()
        key, secret, port = secrets.token_hex(10), secrets.token_hex(20), free_port()
        command = [rclone, "serve", "s3", root, "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + _SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            yield {
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            }
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def started(name: str) -> Iterator[Target]:
    """Start what a target needs."""
    with contextlib.ExitStack() as stack:
        if name == "duckdb":
            yield Target()
        else:
            store = stack.enter_context(object_store()) if name == "ducklake-s3" else {}
            yield DuckLake(stack.enter_context(postgres()), store)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
