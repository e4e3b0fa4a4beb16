"""Secrets from AWS Secrets Manager, here a real server with its API: of a target, a source and alerts; rotated."""

import importlib.util
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from testing.airflow_processes import RUN_SECONDS, Deployment
from testing.project import LOAD, NAME, PROJECT
from testing.targets import InPostgres, Service, free_port, postgres
from tests.e2e.conftest import Receiver

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]

MOTO = PROJECT / ".venv-moto" / "bin" / "moto_server"
if not MOTO.exists() or importlib.util.find_spec("airflow.providers.amazon") is None:
    pytest.skip("needs make setup-aws .venv-moto/.installed", allow_module_level=True)

BACKEND = "airflow.providers.amazon.aws.secrets.secrets_manager.SecretsManagerBackend"
PREFIXES = {"connections_prefix": "airflow/connections", "variables_prefix": "airflow/variables"}


class SecretsManager:
    """A server with the API of AWS Secrets Manager."""

    def __init__(self, port: int) -> None:
        import boto3

        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client = boto3.client(
            "secretsmanager",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )

    def put(self, name: str, value: Any) -> None:
        text = json.dumps(value)
        try:
            self._client.put_secret_value(SecretId=name, SecretString=text)
        except self._client.exceptions.ResourceNotFoundException:
            self._client.create_secret(Name=name, SecretString=text)


@pytest.fixture(scope="module")
def manager() -> Iterator[SecretsManager]:
    port = free_port()

    def is_up() -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()

    service = Service([MOTO, "-H", "127.0.0.1", "-p", str(port)], is_up, stderr=subprocess.DEVNULL)
    try:
        yield SecretsManager(port)
    finally:
        service.stop()


def alerts_to(receiver: Receiver) -> dict[str, Any]:
    target = f"json://127.0.0.1:{receiver.server_port}"
    return {"conn_type": "apprise", "extra": json.dumps({"config": [{"path": target}]})}


@pytest.fixture
def elsewhere() -> Iterator[Receiver]:
    receiver = Receiver()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    yield receiver
    receiver.shutdown()


def test_secrets_of_target_source_and_alerts_come_from_secrets_manager_and_rotate_without_a_restart(
    manager: SecretsManager, receiver: Receiver, elsewhere: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> None:
    deployment = Deployment(tmp_path_factory.mktemp("secrets"))
    with postgres() as server:
        first = server.password
        target = InPostgres(server).new(deployment.root)
        del target["WAREHOUSE_DIR"], target["PGPASSFILE"]
        folder = {"SOURCES__JAFFLE_SHOP__DATA_DIR": deployment.env.pop("SOURCES__JAFFLE_SHOP__DATA_DIR")}
        backend = {"AIRFLOW__SECRETS__BACKEND": BACKEND, "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps(PREFIXES)}
        deployment.env |= {**target, **manager.env, **backend, "PGPASSFILE": "/dev/null"}
        assert first not in json.dumps(deployment.env)
        manager.put("airflow/variables/warehouse_secrets", {"PGPASSWORD": first, **folder})
        manager.put("airflow/connections/apprise_default", alerts_to(receiver))
        deployment.initialise()
        with deployment.running() as airflow:
            run = airflow.trigger(NAME)
            assert run.state == "success", (run.tasks(), run.log(LOAD))
            second = "rotated-passw0rd"
            with server.connect() as connection:
                connection.execute(f"alter user postgres password '{second}'")
            run = airflow.start(NAME)
            deadline = time.monotonic() + RUN_SECONDS
            while run.tasks().get(LOAD) not in ("up_for_retry", "failed"):
                assert time.monotonic() < deadline, run.tasks()
                time.sleep(0.3)
            assert "password authentication failed" in run.log(LOAD)
            manager.put("airflow/variables/warehouse_secrets", {"PGPASSWORD": second, **folder})
            if run.wait().state == "failed":
                run.clear(LOAD)
            assert run.state == "success", run.tasks()

            manager.put("airflow/connections/apprise_default", alerts_to(elsewhere))
            before = len(receiver.alerts)
            deployment.append("raw_customers", "x,Ann,Lee")
            assert airflow.trigger(NAME).state == "failed"
            elsewhere.wait_for(lambda one: one["title"] == f"{NAME} failed: {LOAD}")
            assert len(receiver.alerts) == before
        logs = "".join(path.read_text(errors="replace") for path in (deployment.root / "airflow").rglob("*.log"))
        assert "password authentication failed" in logs and first not in logs and second not in logs
