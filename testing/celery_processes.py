"""Celery workers that share nothing but network services: PostgreSQL, Redis, an object store and the api-server."""

import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import psycopg
import pytest

from testing import targets
from testing.airflow_processes import Airflow, Deployment, interrupt_with_parent
from testing.project import PROJECT, Copy


@dataclass
class Redis:
    """Redis on loopback, with a password."""

    url: str
    service: targets.Service


@contextlib.contextmanager
def redis() -> Iterator[Redis]:
    """Run Redis; like a deployment's, it keeps its queue over a restart."""
    server = shutil.which("redis-server")
    if not server:
        pytest.skip("needs Redis: apt-get install redis-server")
    port, password = targets.free_port(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        command = [server, "--port", port, "--bind", "127.0.0.1", "--requirepass", password]
        command += ["--dir", folder, "--appendonly", "yes"]
        service = targets.Service(command, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        try:
            yield Redis(f"redis://:{password}@127.0.0.1:{port}", service)
        finally:
            service.stop()


def machine(root: Path) -> Deployment:
    """A machine's own copy of the project, its Airflow and its folder for scratch files."""
    return Deployment(root, Copy(root / "project").root)


def connect(deployment: Deployment, target: targets.DuckLake, broker: Redis) -> None:
    """Have a deployment use the lake and hand its tasks to workers; deliver its CSV files to the object store."""
    metadata = psycopg.conninfo.conninfo_to_dict(target.postgres.create_database())["dbname"]
    server = f"postgres:{target.postgres.password}@127.0.0.1:{target.postgres.port}"
    lines = (PROJECT / "deploy" / "workers.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line[:1].isalpha())
    deployment.env |= target.new(deployment.root) | settings
    deployment.env |= {
        "WAREHOUSE_DIR": str(deployment.warehouse),
        "WAREHOUSE_ARTIFACTS": "s3://lake/artifacts",
        "SOURCES__JAFFLE_SHOP__DATA_DIR": "s3://lake/landing",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{server}/{metadata}",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
        "AIRFLOW__CELERY__BROKER_URL": f"{broker.url}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"{broker.url}/1",
        "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": "s3://lake/logs",
    }
    deliver(deployment)


def parse(deployment: Deployment) -> None:
    command = [sys.executable, "-m", "include.runs.manifest"]
    subprocess.run(command, cwd=deployment.project, env=deployment.env, check=True)


def store(deployment: Deployment) -> fsspec.AbstractFileSystem:
    keys = (deployment.env[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"))
    key, secret, endpoint = keys
    return fsspec.filesystem("s3", key=key, secret=secret, endpoint_url=endpoint, use_listings_cache=False)


def deliver(deployment: Deployment) -> None:
    for file in deployment.data_dir.iterdir():
        store(deployment).put_file(str(file), f"lake/landing/{file.name}")


class Worker:
    """A worker on a machine of its own, without access to Airflow's metadata database."""

    def __init__(self, name: str, root: Path, airflow: Airflow) -> None:
        self.deployment = machine(root)
        shared, theirs = airflow.deployment.env, (str(airflow.deployment.root), str(airflow.deployment.project))
        own = {key: self.deployment.env[key] for key in shared if any(folder in shared[key] for folder in theirs)}
        self.deployment.env = shared | own | {"WAREHOUSE_DIR": str(self.deployment.warehouse)}
        del self.deployment.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
        self.deployment.env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"{airflow.url}/execution/"
        parse(self.deployment)
        self.log = root / "worker.log"
        command = ["airflow", "celery", "worker", "--concurrency", "1", "--celery-hostname", f"{name}@%h"]
        self.service = targets.Service(
            [*command, "--skip-serve-logs"],
            self._is_ready,
            env=self.deployment.env,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            cwd=root,
            preexec_fn=interrupt_with_parent,
        )

    def _is_ready(self) -> None:
        if " ready." not in self.log.read_text():
            raise OSError("not yet")

    @property
    def tasks(self) -> int:
        """How many tasks it has run."""
        return self.log.read_text().count("succeeded in")
