"""An alert never fails anything, whatever is wrong with it; its error names the remedy and has no secret.

Each test runs a program in a process of its own: what it prints is what the log of a task would have.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dags

PROJECT = Path(__file__).resolve().parents[2]
CONNECTION = "AIRFLOW_CONN_APPRISE_DEFAULT"
SECRET = "s3cr3t-of-the-webhook"
MALFORMED = {
    "no URI": SECRET,
    "no JSON": '{"conn_type": "apprise", "extra": {"config": [{"path": "json://' + SECRET,
    "no targets": json.dumps({"conn_type": "apprise", "password": SECRET}),
    "text for targets": json.dumps({"conn_type": "apprise", "extra": {"config": SECRET}}),
    "a number for targets": json.dumps({"conn_type": "apprise", "password": SECRET, "extra": {"config": 7}}),
    "no URL": json.dumps({"conn_type": "apprise", "extra": {"config": [{"url": SECRET}]}}),
    "an unknown kind": json.dumps({"conn_type": "apprise", "extra": {"config": {"path": f"no://{SECRET}@host"}}}),
    "not a URL": json.dumps({"conn_type": "apprise", "extra": {"config": [{"path": SECRET}]}}),
    "an URL without a kind": json.dumps({"conn_type": "apprise", "extra": f"json://{SECRET}@host"}),
}
BEGIN = """
import os, resource, sys
from types import SimpleNamespace
sys.path.insert(0, "plugins")
from alerts import AlertNotifier
from airflow.sdk import DAG
ti = SimpleNamespace(task_id="odd", try_number=1, max_tries=3, log_url="http://127.0.0.1/log")
dag = DAG("shop", schedule=None)
context = {"dag": dag, "run_id": "one", "ti": ti, "task_instance": ti}
warned = {**context, "test_names": ["odd"], "test_results": ["Got 1 result"]}
"""


def run(program: str, **env: str) -> str:
    """Run it after `BEGIN`, and return what it printed."""
    command = [sys.executable, "-c", BEGIN + program]
    done = subprocess.run(
        command, cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)} | env, capture_output=True, text=True
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0 and "plugins/alerts.py" not in printed, f"no traceback of ours: {printed}"
    return printed


@pytest.fixture(autouse=True)
def _warehouse(airflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))


def test_a_test_that_warns_passes_with_a_malformed_connection(tmp_path: Path) -> None:
    """Cosmos calls the notifier inside the task."""
    files = {
        "dbt_project.yml": "{name: warns, profile: warns, flags: {send_anonymous_usage_stats: false}}",
        "profiles.yml": "warns: {target: dev, outputs: {dev: {type: duckdb, path: ':memory:'}}}",
        "tests/odd.sql": "{{ config(severity='warn') }} select 1 as odd",
    }
    for name, text in files.items():
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    project = str(tmp_path / "project")
    program = f"""
from cosmos import ProfileConfig
from cosmos.constants import InvocationMode
from cosmos.operators.local import DbtTestLocalOperator
profile = ProfileConfig("warns", "dev", profiles_yml_filepath={project + "/profiles.yml"!r})
DbtTestLocalOperator(
    dag=dag, task_id="odd", project_dir={project!r}, profile_config=profile, install_deps=False,
    invocation_mode=InvocationMode.DBT_RUNNER, on_warning_callback=AlertNotifier("warned"),
).execute(context)
"""
    printed = run(program, **{CONNECTION: MALFORMED["no targets"]})
    assert "WARN=1" in printed and "'shop passed with warnings: odd' was not sent: the connection" in printed
    assert SECRET not in printed


def test_every_malformed_connection_is_named_with_its_remedy_and_without_its_secret() -> None:
    program = f"""
for name, value in {MALFORMED!r}.items():
    os.environ[{CONNECTION!r}] = value
    print(f"== {{name}} ==", flush=True)
    AlertNotifier("warned")(warned)
    sys.stderr.flush()
"""
    program += "print('== end ==')"
    printed = run("os.dup2(1, 2)\n" + program)
    assert SECRET not in printed, printed
    for name in MALFORMED:
        own = printed.split(f"== {name} ==")[1].split("==")[0]
        remedy = f"Set {CONNECTION} as docs/runbook.md shows"
        assert "'shop passed with warnings: odd' was not sent: the connection" in own and remedy in own, (name, own)


def test_no_connection_is_no_error() -> None:
    assert "No connection apprise_default, so no alert is sent" in run("AlertNotifier('warned')(warned)")


def test_without_apprise_every_kind_of_alert_says_so() -> None:
    program = """
sys.modules["apprise"] = None
late = {"dag_run": {"dag_id": "shop", "dag_run_id": "one"}, "deadline": {"deadline_time": "now"}}
AlertNotifier("warned")(warned)
AlertNotifier("failed")({**context, "exception": ValueError("broken")})
AlertNotifier("recovered")(context)
AlertNotifier(kind="late", context=late)(late)
"""
    printed = run(program, **{CONNECTION: json.dumps({"conn_type": "apprise", "extra": {"config": []}})})
    for kind in ("warned", "failed", "recovered", "late"):
        assert f"The alert that a run or task {kind} was not sent: ModuleNotFoundError" in printed
    assert 'see "Who gets alerts" in docs/runbook.md' in printed


def test_a_state_folder_that_cannot_be_used_and_a_full_disk_fail_nothing(tmp_path: Path) -> None:
    (tmp_path / "alerts").write_text("in the way")
    program = """
for name in ("in the way", "full"):
    AlertNotifier("failed")({**context, "exception": ValueError("broken")})
    AlertNotifier("recovered")(context)
    if name == "in the way":
        os.unlink(os.environ["WAREHOUSE_DIR"] + "/alerts")
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
"""
    printed = run(program)
    assert printed.count("so no alert is sent: shop failed: odd") == 2, "it is sent although it cannot be recorded"
    assert "The alert that a run or task recovered was not sent: FileExistsError" in printed
    assert printed.count("Cannot record that an alert was sent") == 2 and "File too large" in printed


def test_a_context_that_lacks_what_it_should_have_fails_nothing() -> None:
    assert "was not sent: KeyError: 'dag'" in run("AlertNotifier('failed')({})")


def test_a_time_limit_is_told_from_other_failures_of_dbt() -> None:
    program = """
from datetime import timedelta
import turns
from airflow.sdk.exceptions import AirflowTaskTimeout
from include.errors import TimeLimitError
turns.raise_at_time_limit()
turns._set_time_limit(timedelta(hours=1))
turns.raise_at_time_limit()
turns._set_time_limit(timedelta())
try:
    turns.raise_at_time_limit()
except TimeLimitError as error:
    for raised in (error, AirflowTaskTimeout()):
        alert, _ = AlertNotifier("failed")._alert({**context, "exception": raised})
        print(alert.runbook)
"""
    assert run(program).count("A task ran into its time limit") == 2
