"""Secrets from a secrets backend become a task's environment, and nothing else."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.dags


@pytest.fixture
def secrets(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import airflow.settings  # noqa: F401, which puts plugins/ on the path
    import task_secrets

    for name in ("PGPASSWORD", "SOURCES__SHOP__TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", "airflow.secrets.local_filesystem.LocalFilesystemBackend")
    yield task_secrets
    for name in task_secrets._set:
        os.environ.pop(name, None)
    task_secrets._set.clear()


def give(secrets: Any, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    monkeypatch.setattr(secrets, "_read", lambda: value if isinstance(value, str) else json.dumps(value))
    secrets.fetch()


def test_a_new_value_replaces_the_old_one_and_a_removed_one_goes(secrets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    give(secrets, monkeypatch, {"PGPASSWORD": "first", "SOURCES__SHOP__TOKEN": "t0ken"})
    assert (os.environ["PGPASSWORD"], os.environ["SOURCES__SHOP__TOKEN"]) == ("first", "t0ken")
    give(secrets, monkeypatch, {"PGPASSWORD": "second"})
    assert os.environ["PGPASSWORD"] == "second" and "SOURCES__SHOP__TOKEN" not in os.environ
    give(secrets, monkeypatch, "")
    assert "PGPASSWORD" not in os.environ


@pytest.mark.parametrize(
    "value",
    [
        "s3cr3t",
        ["s3cr3t"],
        {"lower": "s3cr3t"},
        {"LD_PRELOAD": "s3cr3t"},
        {"PATH": "s3cr3t"},
        {"PYTHONPATH": "s3cr3t"},
        {"AIRFLOW__CORE__FERNET_KEY": "s3cr3t"},
        {"PGPASSWORD": {"value": "s3cr3t"}},
        {"PGPASSWORD": "s3cr3t\0"},
        {"PGPASSWORD": ""},
        {"A=B": "s3cr3t"},
    ],
)
def test_what_is_malformed_is_refused_without_a_value(
    secrets: Any, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    before = dict(os.environ)
    with pytest.raises(secrets.SecretsError) as refused:
        give(secrets, monkeypatch, value)
    assert "warehouse_secrets" in str(refused.value) and "s3cr3t" not in str(refused.value)
    assert dict(os.environ) == before


def test_without_a_backend_nothing_is_read(secrets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__SECRETS__BACKEND")
    monkeypatch.setattr(secrets, "_read", lambda: pytest.fail("read"))
    secrets.fetch()
