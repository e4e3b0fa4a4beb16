"""Two Celery workers that share nothing but network services: PostgreSQL, Redis, an object store and the api-server."""

import contextlib
import importlib.util
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import psycopg
import pytest

from include.runs import artifacts
from tests import targets
from tests.conftest import LOAD, NAME
from tests.e2e.airflow_processes import Airflow, Deployment, interrupt_with_parent
from tests.integration.test_guide import Copy

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not importlib.util.find_spec("celery"), reason="needs make setup-workers"),
]


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Run Redis with a password; yield its URL."""
    server = shutil.which("redis-server")
    if not server:
        pytest.skip("needs Redis: apt-get install redis-server")
    port, password = targets.free_port(), secrets.token_hex(16)
    command = [server, "--port", port, "--bind", "127.0.0.1", "--requirepass", password, "--save", ""]
    service = targets.Service(command, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
    try:
        yield f"redis://:{password}@127.0.0.1:{port}"
    finally:
        service.stop()


def machine(root: Path) -> Deployment:
    """A machine's own copy of the project, its Airflow and its folder for scratch files."""
    return Deployment(root, Copy(root / "project").root)


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The machine of the api-server, the scheduler and the dag-processor."""
    root = tmp_path_factory.mktemp("central")
    with targets.started("ducklake-s3") as target, redis() as broker:
        assert isinstance(target, targets.DuckLake)
        postgres = target.postgres
        metadata = psycopg.conninfo.conninfo_to_dict(postgres.create_database())["dbname"]
        deployment = machine(root)
        deployment.env |= target.new(root) | {
            "WAREHOUSE_DIR": str(deployment.warehouse),
            "WAREHOUSE_ARTIFACTS": "s3://lake/artifacts",
            "SOURCES__JAFFLE_SHOP__DATA_DIR": "s3://lake/landing",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": (
                f"postgresql+psycopg2://postgres:{postgres.password}@127.0.0.1:{postgres.port}/{metadata}"
            ),
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": f"{broker}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"{broker}/1",
            "AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS": "celery_worker.CELERY_CONFIG",
            "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
            "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": "s3://lake/logs",
        }
        deliver(deployment)
        parse(deployment)
        deployment.initialise()
        yield deployment


def parse(deployment: Deployment) -> None:
    folder = deployment.project / "include" / "dbt_project"
    subprocess.run(["dbt", "--quiet", "parse"], cwd=folder, env=deployment.env, check=True)


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
        shared = airflow.deployment.env
        own = {key: self.deployment.env[key] for key in shared if str(airflow.deployment.root) in shared[key]}
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


@pytest.fixture(scope="module")
def airflow(central: Deployment) -> Iterator[Airflow]:
    with central.running() as airflow:
        yield airflow


@pytest.fixture(scope="module")
def workers(airflow: Airflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Worker]]:
    started = [Worker(name, tmp_path_factory.mktemp(name), airflow) for name in ("one", "two")]
    try:
        yield started
    finally:
        for worker in started:
            if worker.service.process.poll() is None:
                worker.service.kill()


def test_workers_share_a_run_and_its_files(airflow: Airflow, central: Deployment, workers: list[Worker]) -> None:
    run = airflow.trigger(NAME)
    assert set(run.tasks().values()) == {"success"}, run.tasks()
    assert all(worker.tasks for worker in workers)
    assert central.read("select count(*) from marts.orders") == [(99,)]
    assert "loaded 312 rows, 0 rejected" in run.log(LOAD)
    with central.selected():
        assert {one.rows_loaded for one in artifacts.loads_of(run.id)} == {312}
        assert all(one.status in ("pass", "success") for one in artifacts.results_of(run.id))
    for page, text in (("snapshots", run.id), ("quality", "unique_stg_orders_order_id")):
        status, content = airflow.request("GET", f"/warehouse/{page}", token=airflow.token)
        assert status == 200 and text in content.decode()


def test_a_delivery_a_bad_row_and_a_killed_worker(airflow: Airflow, central: Deployment, workers: list[Worker]) -> None:
    number = central.append("raw_orders", "x,1,2018-01-01,placed")
    deliver(central)
    bad = airflow.trigger(NAME)
    assert bad.tasks()[LOAD] == "failed"
    assert f"raw_orders.csv:{number}: column id: id: not a valid BIGINT" in bad.log(LOAD)
    central.restore_data()
    central.append("raw_orders", "100,1,2018-01-01,placed")
    deliver(central)
    bad.clear_tasks([LOAD])
    bad.wait_for_running("transform.")
    workers[0].service.kill()
    assert bad.wait().state == "success", bad.tasks()
    assert central.read("select count(*) from marts.orders") == [(100,)]
