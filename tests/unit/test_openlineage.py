"""Lineage is sent for what there is, and a backend that refuses it fails nothing."""

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from include.runs import artifacts
from include.warehouse_catalog import openlineage

pytestmark = pytest.mark.unit

KEY = "s3cr3t-of-the-lineage-backend"


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A backend that knows no key; the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            self.send_response(401)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://user:{KEY}@127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", KEY)
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "True")
    yield asked
    server.shutdown()


def test_a_backend_that_refuses_is_asked_once_and_logged_without_secrets(
    refusing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    load = artifacts.Load("one", "jaffle_shop", "1", "2026-11-29T06:00:00+00:00", 2.5, {"t": artifacts.TableLoad(7)})
    artifacts.keep(artifacts.write_load(load))
    with caplog.at_level(logging.INFO):
        assert openlineage.send("one") == 0
    assert refusing == ["/api/v1/lineage"]
    warned = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert warned == ["OpenLineage: 0 events sent, then HTTPError 401. Nothing else depends on them."]
    assert KEY not in caplog.text


def test_a_run_that_left_nothing_has_only_its_own_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    found = list(openlineage.events("nothing", error="failed"))
    assert [(one.eventType.name if one.eventType else "", one.job.name) for one in found] == [
        ("START", "jaffle_shop"),
        ("FAIL", "jaffle_shop"),
    ]


def test_a_failed_load_shows_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    failed = artifacts.Load(
        "two", "jaffle_shop", ended_at="2026-11-29T06:00:00+00:00", error="t.csv:3: column id: 'x' is no number"
    )
    artifacts.keep(artifacts.write_load(failed))
    events = [one for one in openlineage.events("two", error="failed") if one.job.name.endswith("load.jaffle_shop")]
    assert [one.eventType.name for one in events if one.eventType] == ["START", "FAIL"]
    facets = events[-1].run.facets or {}
    assert "'x'" not in str(facets["errorMessage"]) and not events[-1].inputs and not events[-1].outputs
