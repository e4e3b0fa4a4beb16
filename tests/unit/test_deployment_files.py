"""What can be told of the compose deployment without an engine; `make compose-test` runs it for real."""

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.unit

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE_TEXT = (PROJECT / "docker-compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
RUNNING = sorted(set(SERVICES) - {"init"})
AIRFLOW = sorted(set(SERVICES) - {"postgres"})
SECRET_NAMES = re.compile("PASSWORD|SECRET|KEY")


def make_env(path: Path) -> "subprocess.CompletedProcess[str]":
    command = ["make", "-s", "env", f"ENV_FILE={path}"]
    return subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=60)


def generated(path: Path) -> dict[str, str]:
    assert make_env(path).returncode == 0
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user", "") not in ("root", "0", 0)
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & service.keys()
    assert not [volume for volume in service["volumes"] if "docker.sock" in str(volume)]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded(name: str) -> None:
    service = SERVICES[name]
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", RUNNING)
def test_every_running_service_has_a_health_check_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    check = service["healthcheck"]["test"]
    assert check[0] == "CMD" and service["restart"] == "unless-stopped" and "stop_grace_period" in service
    if check[1:3] == ["python", "-c"]:
        compile(check[3], name, "exec")


def test_only_the_ui_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api-server": ["127.0.0.1:${AIRFLOW_PORT:-8080}:8080"]}


def test_services_wait_for_the_migrations() -> None:
    for name in set(AIRFLOW) - {"init"}:
        assert SERVICES[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}, name


def test_what_airflow_env_says_is_not_said_again() -> None:
    settings = {line.split("=")[0] for line in (PROJECT / "airflow.env").read_text().splitlines() if line[:1].isalpha()}
    for name in AIRFLOW:
        assert SERVICES[name]["env_file"] == "airflow.env"
        assert settings & SERVICES[name]["environment"].keys() == {"AIRFLOW__API__HOST"}


def test_every_secret_is_asked_for_and_generated(tmp_path: Path) -> None:
    asked = re.findall(r"\$\{([A-Z_]+)([^}]*)\}", COMPOSE_TEXT)
    secrets = {name for name, _ in asked if SECRET_NAMES.search(name)}
    for name, default in asked:
        if name in secrets:
            assert default.startswith(":?") and "make env" in default, name
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if SECRET_NAMES.search(name) and value is not None:  # None: only where .env or the shell says so
                assert value.startswith("${") and value.endswith("}"), name
    assert generated(tmp_path / "env").keys() == secrets


def test_generated_secrets_are_strong_private_and_never_replaced(tmp_path: Path) -> None:
    one, other = generated(tmp_path / "one"), generated(tmp_path / "other")
    assert not set(one.values()) & set(other.values())
    assert len(base64.urlsafe_b64decode(one["FERNET_KEY"])) == 32
    assert len(one["JWT_SECRET"]) >= 64
    assert min(map(len, one.values())) >= 24
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    refused = make_env(tmp_path / "one")
    assert refused.returncode and "is there already" in refused.stderr
    assert (tmp_path / "one").read_text().splitlines()[1:] == [f"{name}={value}" for name, value in one.items()]


def test_the_image_has_the_versions_of_the_project_and_no_root() -> None:
    dockerfile, makefile = (PROJECT / "Dockerfile").read_text(), (PROJECT / "Makefile").read_text()
    uv = re.search(r"^UV_VERSION := (.+)$", makefile, re.MULTILINE)
    python = re.search(r"^PYTHON \?= python(.+)$", makefile, re.MULTILINE)
    assert uv and f"ARG UV_VERSION={uv[1]}\n" in dockerfile
    assert python and f"ARG PYTHON=python:{python[1]}-slim" in dockerfile
    assert re.findall("^USER (.+)$", dockerfile, re.MULTILINE)[-1] == "airflow"


def test_nothing_gets_into_the_image_unasked() -> None:
    rules = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    for secret in (".env", ".airflow", ".git", "data"):
        assert f"!{secret}" not in rules
