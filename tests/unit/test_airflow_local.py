"""What `make run` says of a task, from what the api-server answers."""

import importlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import pytest

from scripts.airflow_api import Api

pytestmark = pytest.mark.unit

TASK = {"task_id": "load", "try_number": 1}


@pytest.fixture
def airflow_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    return importlib.import_module("scripts.airflow_local")


@pytest.fixture
def answers() -> Iterator[tuple[Api, dict[str, Any]]]:
    """An api-server, and what it answers by path, else 404; before that, the statuses in `first`, where 0 is none.

    Of tasks it answers those of the states asked for, at most 100 at once, as Airflow does.
    """
    found: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            asked = parse_qs(query)
            body = found.get(path)
            if body and "task_instances" in body:
                tasks = [one for one in body["task_instances"] if one["state"] in asked.get("state", [one["state"]])]
                first = int(asked.get("offset", ["0"])[0])
                page = tasks[first : first + min(100, int(asked.get("limit", ["50"])[0]))]
                body = {"task_instances": page, "total_entries": len(tasks)}
            if not (status := found["first"].pop(0) if found.get("first") else 200 if body else 404):
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body or {"detail": "TaskInstance not found"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Api(f"http://127.0.0.1:{server.server_port}"), found
    server.shutdown()
    server.server_close()


def test_a_try_that_never_started_has_no_reason(airflow_local: ModuleType, answers: tuple[Api, dict[str, Any]]) -> None:
    assert airflow_local._errors(answers[0], "/run", TASK) == []


def test_headings_in_a_log_are_no_reason(airflow_local: ModuleType, answers: tuple[Api, dict[str, Any]]) -> None:
    api, found = answers
    headings = ["::group::Log message source details", "::endgroup::", "::group::Pre Execute"]
    lines = [{"event": text} for text in headings] + [{"event": "Killed", "level": "info"}]
    found["/run/taskInstances/load/logs/1"] = {"content": lines}
    assert airflow_local._errors(api, "/run", TASK) == ["Killed"]


def test_a_misspelt_param_is_refused_with_the_known_ones(
    airflow_local: ModuleType, answers: tuple[Api, dict[str, Any]]
) -> None:
    api, found = answers
    params = {"max_rejected_rows": {"value": None}, "full_refresh": {"value": False}}
    found[f"/api/v2/dags/{airflow_local.DAG_ID}/details"] = {"params": params}
    airflow_local._check_conf(api, {"full_refresh": True})
    with pytest.raises(
        airflow_local.LocalError, match=r"has no 'ful_refresh'\. It has full_refresh, max_rejected_rows."
    ):
        airflow_local._check_conf(api, {"ful_refresh": True})


@pytest.mark.parametrize("text", ["{full_refresh: true}", "[1]", "1"])
def test_params_that_are_no_json_object_are_refused(
    airflow_local: ModuleType, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["airflow_local.py", "run", "--conf", text])
    with pytest.raises(SystemExit):
        airflow_local.main()
    assert f"{text}" in capsys.readouterr().err


def test_a_run_goes_on_while_the_api_server_does_not_answer(
    airflow_local: ModuleType,
    answers: tuple[Api, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api, found = answers
    retried = {**TASK, "state": "up_for_retry", "duration": 31.0, "end_date": "2026-01-01"}
    found["/run/taskInstances"] = {"task_instances": [retried]}
    found["/run"] = {"state": "failed"}
    found["first"] = [0, 503, 0]
    assert airflow_local._follow(api, "/run", airflow_local._Console()) == ("failed", [retried])
    assert "up_for_retry" in capsys.readouterr().out
    monkeypatch.setattr(airflow_local, "PATIENCE_SECONDS", 0)
    found["first"] = [0, 0]
    with pytest.raises(airflow_local.LocalError, match="does not answer"):
        airflow_local._follow(api, "/run", airflow_local._Console())


def test_of_a_run_of_more_tasks_than_a_page_of_the_api_every_failed_one_is_told(
    airflow_local: ModuleType, answers: tuple[Api, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    api, found = answers
    ended = {"try_number": 1, "duration": 1.0, "end_date": "2026-01-01"}
    states = {f"model_{number}": "success" for number in range(250)} | {"model_7": "failed", "model_249": "failed"}
    tasks = [{"task_id": name, "state": state, **ended} for name, state in states.items()]
    found["/run/taskInstances"], found["/run"] = {"task_instances": tasks}, {"state": "failed"}
    assert airflow_local._follow(api, "/run", airflow_local._Console()) == ("failed", tasks)
    shown = capsys.readouterr().out
    assert shown.count("failed") == 2 and "model_249" in shown and shown.count("success") == 248
