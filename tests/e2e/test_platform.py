"""What a platform team connects: metrics and traces, lineage, logs, cleaning. One Airflow, one run, real receivers."""

import gzip
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from referencing import Registry, Resource

from include.runs import artifacts
from testing.airflow_processes import Airflow, Deployment, Run
from testing.project import LOAD, NAME, PROJECT

ENDED = ("success", "failed")
pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]

KEY = "s3cr3t-of-the-lineage-backend"
WAIT_SECONDS = 120


class Collector(ThreadingHTTPServer):
    """Receives OTLP over HTTP and OpenLineage, as a collector and a lineage backend do.

    Attributes:
        metrics: attributes and value of each point, by name, the newest last.
        spans: their names.
        events: OpenLineage's, in order.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        self.spans: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.receive(self.path, body, self.headers.get("Authorization"))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def receive(self, path: str, body: bytes, key: str | None) -> None:
        if path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in getattr(metric, metric.WhichOneof("data")).data_points:
                            found = {one.key: one.value.string_value for one in point.attributes}
                            value = getattr(point, "as_double", 0) or getattr(point, "as_int", 0)
                            self.metrics[metric.name].append((found | {"unit": metric.unit}, float(value)))
        elif path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.spans |= {span.name for scope in resource.scope_spans for span in scope.spans}
        elif path == "/api/v1/lineage":
            self.events.append(json.loads(body))
            self.keys.add(key)

    def figure(self, name: str, **labels: str) -> float | None:
        """Return the newest value of a figure, or None."""
        found = [value for known, value in self.metrics[name] if labels.items() <= known.items()]
        return found[-1] if found else None

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while self.figure(name, **labels) != value:
            assert time.monotonic() < deadline, (name, labels, self.metrics[name][-5:], sorted(self.metrics))
            time.sleep(0.5)

    def by_task(self, name: str, tasks: Collection[str]) -> dict[str, float]:
        """Return the newest value of each task, once there is one of each: those of a run come when it has ended."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := {labels["task"]: value for labels, value in self.metrics[name]}).keys() != set(tasks):
            assert time.monotonic() < deadline, (name, set(tasks) ^ found.keys())
            time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    yield collector
    collector.shutdown()


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Airflow]:
    deployment = Deployment(tmp_path_factory.mktemp("platform"))
    url = f"http://127.0.0.1:{collector.server_port}"
    deployment.env |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_METRIC_EXPORT_INTERVAL": "3000",
        "OPENLINEAGE_URL": url,
        "OPENLINEAGE_API_KEY": KEY,
        "AIRFLOW__LOGGING__JSON_LOGS": "True",
    }
    deployment.initialise()
    with deployment.running() as airflow:
        yield airflow


@pytest.fixture(scope="module")
def green(airflow: Airflow) -> Run:
    run = airflow.trigger(NAME)
    assert run.state == "success", run.tasks()
    return run


def outputs(events: list[dict[str, Any]], job: str) -> dict[str, dict[str, Any]]:
    found = [one for one in events if one["job"]["name"] == f"{NAME}.{job}" and one["eventType"] == "COMPLETE"]
    return {one["name"]: one for one in found[-1]["outputs"]}


def schemas() -> Draft202012Validator:
    """Return a validator of events with every facet's own schema, as the spec names them."""
    folder = PROJECT / "tests" / "data" / "openlineage"
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    registry = Registry().with_resources([(one["$id"], Resource.from_contents(one)) for one in found])
    event = next(one for one in found if one["$id"].endswith("/OpenLineage.json"))
    return Draft202012Validator(event, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER)


def facets_of(event: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in (event["run"], event["job"], *event.get("inputs", ()), *event.get("outputs", ())):
        for kind in ("facets", "inputFacets", "outputFacets"):
            yield from (part.get(kind) or {}).items()


def test_the_pipelines_figures_reach_a_collector_beside_airflows_own(
    green: Run, airflow: Airflow, collector: Collector
) -> None:
    assert all(value > 0 for value in collector.by_task("warehouse.task.duration", green.tasks()).values())
    collector.wait_for("warehouse.rows.loaded", 312, warehouse=NAME, source=NAME)
    with airflow.deployment.selected():
        tests = artifacts.test_results_of(green.id)
    assert len(tests) > 20
    collector.wait_for("warehouse.tests", len(tests), warehouse=NAME, state="pass")
    assert collector.figure("warehouse.rows.rejected", source=NAME) == 0
    assert collector.figure("warehouse.tests", state="fail") == 0
    age = collector.figure("warehouse.release.age", warehouse=NAME, unit="s")
    published = datetime.now(UTC).timestamp() - airflow.deployment.published.stat().st_mtime
    assert age is not None and 0 < age < published + 60
    size = collector.figure("warehouse.release.size", unit="By")
    assert size == airflow.deployment.published.stat().st_size
    assert 0 < (collector.figure("warehouse.disk.free") or 0) < (collector.figure("warehouse.disk.size") or 0)
    cpu = collector.by_task("warehouse.task.cpu", green.tasks())
    assert all(0 < value < 60 for value in cpu.values()), cpu
    assert collector.figure("warehouse.run.failed", warehouse=NAME) == 0
    assert {"airflow.scheduler_heartbeat", "airflow.task.duration", "airflow.pool.open_slots"} <= set(collector.metrics)
    assert f"dag_run.{NAME}" in collector.spans and any(LOAD in name for name in collector.spans), collector.spans


def test_lineage_goes_from_the_files_to_what_readers_open_and_fits_the_specification(
    green: Run, airflow: Airflow, collector: Collector
) -> None:
    validator = schemas()
    for event in collector.events:
        validator.validate(event)
        for name, facet in facets_of(event):
            schema = facet["_schemaURL"]
            assert not list(validator.evolve(schema={"$ref": schema}).iter_errors(facet)), (name, facet)
    assert collector.keys == {f"Bearer {KEY}"} and KEY not in json.dumps(collector.events)
    begun = [one["run"]["runId"] for one in collector.events if one["eventType"] == "START"]
    ended = [one["run"]["runId"] for one in collector.events if one["eventType"] == "COMPLETE"]
    assert sorted(begun) == sorted(ended) and len(set(begun)) == len(begun)

    working, published = (
        f"duckdb://{airflow.deployment.warehouse / NAME}.duckdb",
        f"duckdb://{airflow.deployment.published}",
    )
    load = next(one for one in collector.events if one["job"]["name"] == f"{NAME}.{LOAD}" and one["inputs"])
    assert {(one["namespace"], one["name"]) for one in load["inputs"]} == {
        ("file", str(airflow.deployment.data_dir / f"raw_{name}.csv")) for name in ("customers", "orders", "payments")
    }
    raw = outputs(collector.events, LOAD)[f"{NAME}.{NAME}_raw.raw_payments"]
    assert raw["namespace"] == working and raw["outputFacets"]["outputStatistics"]["rowCount"] == 113

    # A column of a mart that readers open, back to the column of a file's table, by the datasets' own names.
    step = {"namespace": published, "name": f"{NAME}.marts.orders", "field": "amount"}
    path = []
    for job in ("publish", "transform.orders.run", "transform.stg_payments.run"):
        found = outputs(collector.events, job)[step["name"]]
        assert found["namespace"] == step["namespace"]
        fields = found["facets"]["columnLineage"]["fields"][step["field"]]["inputFields"]
        step = next(one for one in fields if "order_id" not in one["field"])
        path.append((step["namespace"], step["name"], step["field"]))
    assert path[-1] == (working, f"{NAME}.{NAME}_raw.raw_payments", "amount")

    tests = [one for one in collector.events if one["job"]["name"] == f"{NAME}.transform.stg_orders.test"]
    checks = tests[-1]["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert {(one["assertion"], one["column"], one["success"]) for one in checks} >= {("unique", "order_id", True)}


def test_a_failed_run_is_seen_in_figures_and_lineage_and_names_no_values(
    green: Run, airflow: Airflow, collector: Collector
) -> None:
    airflow.deployment.append("raw_orders", "7,1,2018-01-01,placed")
    before = len(collector.events)
    run = airflow.trigger(NAME)
    assert run.state == "failed"
    collector.wait_for("warehouse.run.failed", 1, warehouse=NAME)
    collector.wait_for("warehouse.tests", 1, warehouse=NAME, state="fail")
    with airflow.deployment.selected():
        assert artifacts.costs_of(run.id).keys() == {task for task, state in run.tasks().items() if state in ENDED}
    deadline = time.monotonic() + WAIT_SECONDS
    while not (ends := [one for one in collector.events[before:] if one["eventType"] == "FAIL"]) or len(ends) < 2:
        assert time.monotonic() < deadline, [one["job"]["name"] for one in collector.events[before:]]
        time.sleep(0.5)
    names = {one["job"]["name"] for one in collector.events[before:]}
    assert {one["job"]["name"] for one in ends} == {NAME, f"{NAME}.transform.stg_orders.test"}
    assert f"{NAME}.publish" not in names and "2018-01-01" not in json.dumps(collector.events[before:])
    airflow.deployment.restore_data()
    run.clear(LOAD)
    assert run.state == "success"


def test_the_maintenance_dag_cleans_logs_and_metadata_of_old_runs(green: Run, airflow: Airflow) -> None:
    logs = airflow.deployment.root / "airflow" / "logs"
    old = logs / "dag_id=gone" / "attempt=1.log"
    old.parent.mkdir(parents=True)
    old.write_text("old\n")
    os.utime(old, (0, 0))
    airflow.wait_for_dag(f"{NAME}_maintenance")
    run = airflow.trigger(f"{NAME}_maintenance")
    assert run.state == "success", run.tasks()
    assert run.tasks() == {"files": "success", "metadata": "success"}
    assert run.result("files")["logs"] >= 1 and not old.parent.exists()
    assert "runs are left" in run.result("metadata")
    assert green.state == "success", "what is younger stays"


@pytest.mark.parametrize("service", ["scheduler", "api-server", "dag-processor"])
def test_every_line_that_a_service_logs_is_json(green: Run, airflow: Airflow, service: str) -> None:
    lines = (airflow.deployment.root / "airflow" / "logs" / f"{service}.log").read_text().splitlines()
    odd = [line for line in lines if not line.startswith("{") or "event" not in json.loads(line)]
    assert len(lines) > 5 and not odd, odd[:10]
