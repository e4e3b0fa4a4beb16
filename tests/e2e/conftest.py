"""A real Airflow, and a webhook that receives its alerts."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from testing.airflow_processes import Airflow, Deployment

SECRET = "s3cr3t-of-the-webhook"


class Receiver(ThreadingHTTPServer):
    """A webhook that records the alerts it receives."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, str]] = []
        received = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                received.append({"title": self.path, "message": ""})
                self.send_response(200)
                self.end_headers()

            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def wait_for(self, wanted: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        deadline = time.monotonic() + 60
        while not (found := [alert for alert in self.alerts if wanted(alert)]):
            assert time.monotonic() < deadline, f"no such alert; received: {self.alerts}"
            time.sleep(0.2)
        return found[0]


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    yield receiver
    receiver.shutdown()


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Deployment:
    """An initialised Airflow with the project's data, not running."""
    deployment = Deployment(tmp_path_factory.mktemp("e2e"))
    targets = [{"path": f"json://user:{SECRET}@127.0.0.1:{receiver.server_port}"}, {"path": "json://127.0.0.1:9"}]
    connection = {"conn_type": "apprise", "password": SECRET, "extra": {"config": targets}}
    deployment.env["AIRFLOW_CONN_APPRISE_DEFAULT"] = json.dumps(connection)
    deployment.env["HEARTBEAT_URL"] = f"http://127.0.0.1:{receiver.server_port}/alive"
    deployment.initialise()
    return deployment


@pytest.fixture(scope="package")
def airflow(deployment: Deployment) -> Iterator[Airflow]:
    """A running Airflow, which the last test that uses it stops: an idle one takes part of a core from later ones."""
    with deployment.running() as airflow:
        yield airflow


@pytest.fixture(autouse=True)
def _project_data(deployment: Deployment) -> None:
    deployment.restore_data()
