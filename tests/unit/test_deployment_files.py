"""Static checks of the compose deployment, without Docker; `make compose-test` runs it for real."""

import base64
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import env

pytestmark = pytest.mark.unit

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE_TEXT = (PROJECT / "docker-compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
RUNNING = sorted(set(SERVICES) - {"init", "pg-client"})
AIRFLOW = sorted(set(SERVICES) - {"postgres", "bi", "bi-postgres", "pg-client"})
SECRET_NAMES = re.compile("PASSWORD|SECRET|KEY")
NOT_SECRETS = {"AIRFLOW__SECRETS__BACKEND", "AWS_ACCESS_KEY_ID", "SECRETS_DIR", "WORKER_SECRETS"}


def make_env(path: Path) -> "subprocess.CompletedProcess[str]":
    command = ["make", "-s", "env", f"ENV_FILE={path}"]
    return subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=60)


def generated(path: Path) -> dict[str, str]:
    assert make_env(path).returncode == 0
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_minimal_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user", "") not in ("root", "0", 0)
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & service.keys()
    assert not [volume for volume in service["volumes"] if "docker.sock" in str(volume)]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_resource_limits(name: str) -> None:
    service = SERVICES[name]
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", RUNNING)
def test_every_long_running_service_has_a_health_check_and_restarts(name: str) -> None:
    service = SERVICES[name]
    check = service["healthcheck"]["test"]
    assert check[0] == "CMD" and service["restart"] == "always" and "stop_grace_period" in service
    if check[1:3] == ["python", "-c"]:
        compile(check[3], name, "exec")


def test_only_the_pages_are_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "api-server": ["127.0.0.1:${AIRFLOW_PORT:-8080}:8080"],
        "bi": ["127.0.0.1:${BI_PORT:-8088}:8088"],
    }


def test_the_dashboards_see_the_published_file_and_their_own_metadata_only() -> None:
    (mount,) = SERVICES["bi"]["volumes"]
    assert mount["read_only"] and mount["volume"] == {"subpath": "published"}
    assert "metadata" not in SERVICES["bi"]["networks"] + SERVICES["bi-postgres"]["networks"]
    assert {SERVICES[name]["profiles"][0] for name in ("bi", "bi-postgres")} == {"bi"}


def settings_of(name: str) -> dict[str, str]:
    lines = (PROJECT / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line[:1].isalpha())


WORKERS = yaml.safe_load((PROJECT / "docker-compose.workers.yaml").read_text())["services"]
WORKER = yaml.safe_load((PROJECT / "docker-compose.worker.yaml").read_text())["services"]["worker"]


def test_workers_have_all_they_share_and_redis_a_password_on_loopback() -> None:
    redis = WORKERS["redis"]
    assert redis["ports"] == ["${REDIS_ADDRESS:-127.0.0.1}:6379:6379"]
    assert "--requirepass" in redis["command"][2] and redis["read_only"] and redis["cap_drop"] == ["ALL"]
    assert set(WORKERS) == {"init", "api-server", "scheduler", "dag-processor", "worker", "redis"}
    for name in ("api-server", "scheduler", "dag-processor"):
        assert WORKERS[name]["env_file"][0] == "deploy/workers.env", name
        assert WORKERS[name]["environment"].items() <= WORKER["environment"].items(), name
    assert WORKER["env_file"][:2] == ["airflow.env", "deploy/workers.env"]


def test_a_worker_has_the_limits_of_the_scheduler_and_no_way_to_the_metadata() -> None:
    scheduler = SERVICES["scheduler"]
    for key in (
        "read_only",
        "cap_drop",
        "security_opt",
        "restart",
        "logging",
        "mem_limit",
        "cpus",
        "pids_limit",
        "init",
    ):
        assert WORKER[key] == scheduler[key], key
    assert WORKER["build"] == SERVICES["init"]["build"]  # they make the same image
    same = "PUBLISH_DIRTY_TREE", "AIRFLOW__API__BASE_URL"
    assert all(WORKER["environment"][name] == scheduler["environment"][name] for name in same)
    assert "networks" not in WORKER and "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in WORKER["environment"]


def test_services_get_what_is_in_env_but_no_secret_of_another() -> None:
    generated_names = set(env.GENERATED)
    for name in AIRFLOW:
        service = SERVICES[name]
        assert service["env_file"] == ["airflow.env", {"path": "${ENV_FILE:-.env}", "required": False}]
        emptied = {key for key, value in service["environment"].items() if value == ""}
        assert emptied == generated_names - ({"ADMIN_PASSWORD"} if name == "init" else set()), name
    emptied = {key for key, value in WORKER["environment"].items() if value == ""}
    assert emptied == generated_names | set(env.NOT_FOR_WORKERS)


def test_kubernetes_has_the_settings_of_compose() -> None:
    values = yaml.safe_load((PROJECT / "docs" / "kubernetes-values.yaml").read_text())
    settings = {one["name"]: one["value"] for one in values["env"]}
    workers = settings_of("deploy/workers.env")
    assert {name: settings.get(name) for name in workers} == workers
    assert {"AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER", "WAREHOUSE_ARTIFACTS"} <= settings.keys()
    assert settings["AIRFLOW__API__HOST"] == SERVICES["api-server"]["environment"]["AIRFLOW__API__HOST"]
    locked = re.search(r"^apache-airflow==(\S+)", (PROJECT / "requirements.txt").read_text(), re.MULTILINE)
    assert locked and values["airflowVersion"] == locked[1]


def test_services_wait_for_the_migrations() -> None:
    for name in set(AIRFLOW) - {"init"}:
        assert SERVICES[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}, name


def test_settings_of_airflow_env_are_not_repeated() -> None:
    settings = settings_of("airflow.env").keys()
    for name in AIRFLOW:
        assert settings & SERVICES[name]["environment"].keys() == {"AIRFLOW__API__HOST"}


def test_every_secret_is_required_and_generated(tmp_path: Path) -> None:
    asked = re.findall(r"\$\{([A-Z_]+)([^}]*)\}", COMPOSE_TEXT)
    asked += re.findall(r"\$\{(REDIS_PASSWORD)(:[^}]*)\}", (PROJECT / "docker-compose.workers.yaml").read_text())
    secrets = {name for name, _ in asked if SECRET_NAMES.search(name)}
    for name, default in asked:
        if name in secrets:
            assert default.startswith(":?") and "make env" in default, name
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if SECRET_NAMES.search(name) and value:  # None: passed through; empty: emptied
                assert value.startswith("${") and value.endswith("}"), name
    assert generated(tmp_path / "env").keys() == secrets
    older = tmp_path / "older"
    older.write_text("# kept\nADMIN_PASSWORD=mine")  # of a version that needed fewer
    added = generated(older)
    assert added.keys() == secrets and added["ADMIN_PASSWORD"] == "mine"


def test_generated_secrets_are_strong_private_and_never_replaced(tmp_path: Path) -> None:
    one, other = generated(tmp_path / "one"), generated(tmp_path / "other")
    assert not set(one.values()) & set(other.values())
    assert len(base64.urlsafe_b64decode(one["FERNET_KEY"])) == 32
    assert len(one["JWT_SECRET"]) >= 64
    assert min(map(len, one.values())) >= 24
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    again = make_env(tmp_path / "one")
    assert again.returncode == 0 and "nothing was changed" in again.stdout
    assert (tmp_path / "one").read_text().splitlines()[1:] == [f"{name}={value}" for name, value in one.items()]


def test_the_image_matches_the_projects_versions_and_is_not_root() -> None:
    dockerfile, makefile = (PROJECT / "Dockerfile").read_text(), (PROJECT / "Makefile").read_text()
    python = re.search(r"^PYTHON \?= python(.+)$", makefile, re.MULTILINE)
    assert python and f"ARG PYTHON=python:{python[1]}-slim" in dockerfile
    assert re.findall("^USER (.+)$", dockerfile, re.MULTILINE)[-1] == "airflow"


def test_the_dev_container_has_the_images_base_and_is_not_root() -> None:
    dockerfile = (PROJECT / ".devcontainer/Dockerfile").read_text()
    base = re.search("^ARG PYTHON=(.+)$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    assert base and f"FROM {base[1]}\n" in dockerfile
    assert re.findall("^USER (.+)$", dockerfile, re.MULTILINE) == ["developer"]


def test_every_package_is_pinned_by_hash() -> None:
    for name in ("Dockerfile", "Makefile", ".devcontainer/Dockerfile"):
        for line in (PROJECT / name).read_text().splitlines():
            if "pip install" in line:
                assert "--require-hashes" in line, f"{name}: {line}"


def locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==(\S+)", path.read_text(), re.MULTILINE))


def test_each_lock_of_a_part_adds_to_the_projects_and_fits_every_other() -> None:
    ours = locked(PROJECT / "requirements.txt")
    together = dict(ours)
    for source in (PROJECT / "requirements").glob("*.in"):
        text, pins = source.read_text(), locked(source.with_suffix(".txt"))
        asked = {name.lower() for name in re.findall(r"^[A-Za-z][\w.-]*", text, re.MULTILINE)}
        if "-c ../requirements.txt" in text:
            assert asked <= pins.keys() | ours.keys() and not pins.keys() & ours.keys(), source.name
            assert {name: together.get(name, pin) for name, pin in pins.items()} == pins, source.name
            together |= pins
        else:
            assert asked <= pins.keys(), source.name


def test_updates_have_a_cooldown_after_release() -> None:
    for update in yaml.safe_load((PROJECT / ".github/dependabot.yml").read_text())["updates"]:
        assert update["cooldown"]["default-days"] >= 7, update["package-ecosystem"]


def test_moving_secrets_to_files_is_repeatable(tmp_path: Path) -> None:
    env_file, folder = tmp_path / "env", tmp_path / "secrets"
    secrets = generated(env_file)
    with env_file.open("a") as out:
        out.write(f'SECRETS_DIR={folder}\nAIRFLOW_PORT=8081\nAIRFLOW_CONN_APPRISE_DEFAULT=\'{{"a": "b=c&d"}}\'\n')
        out.write("OIDC_CLIENT_SECRET=of-the-login\nSOURCES__SHOP__API_KEY=of-a-source\nAWS_ACCESS_KEY_ID=a-name\n")
        out.write(
            "SOURCES__CRM__URL=postgresql://reader:of-a-database@db/crm\nHEARTBEAT_URL=https://ping.example/of-us\n"
        )
    folder.mkdir()
    (folder / "connections.json").write_text("{}")  # of a secrets backend
    for _ in range(2):
        subprocess.run(["make", "-s", "secret-files", f"ENV_FILE={env_file}"], cwd=PROJECT, check=True, timeout=60)
        files = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
        assert files == secrets | {
            "SQL_ALCHEMY_CONN": f"postgresql+psycopg2://airflow:{secrets['POSTGRES_PASSWORD']}@postgres/airflow",
            "AIRFLOW_CONN_APPRISE_DEFAULT": '{"a": "b=c&d"}',
            "OIDC_CLIENT_SECRET": "of-the-login",
            "SOURCES__SHOP__API_KEY": "of-a-source",
            "SOURCES__CRM__URL": "postgresql://reader:of-a-database@db/crm",
            "HEARTBEAT_URL": "https://ping.example/of-us",
            "AIRFLOW__CELERY__BROKER_URL": f"redis://:{secrets['REDIS_PASSWORD']}@redis:6379/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"redis://:{secrets['REDIS_PASSWORD']}@redis:6379/1",
            "connections.json": "{}",
            **dict.fromkeys(env.SINGLE, ""),
        }
        parts = {
            part.name: {one.name: one.read_text() for one in part.iterdir()}
            for part in folder.iterdir()
            if part.is_dir()
        }
        airflow = {name: value for name, value in files.items() if name not in secrets or name in env.OF_AIRFLOW}
        assert parts == {
            "airflow": airflow,
            "init": airflow | {"ADMIN_PASSWORD": secrets["ADMIN_PASSWORD"]},
            "worker": {name: airflow[name] for name in airflow.keys() - {*env.OF_AIRFLOW, "OIDC_CLIENT_SECRET"}},
            "redis": {"REDIS_PASSWORD": secrets["REDIS_PASSWORD"]},
        }
        text = env_file.read_text()
        assert not [value for value in secrets.values() if value in text] and "b=c&d" not in text
        assert "of-the-login" not in text and "of-a-" not in text and "of-us" not in text
        assert "AIRFLOW_PORT=8081" in text and "AWS_ACCESS_KEY_ID=a-name" in text
        assert text.count("COMPOSE_FILE=docker-compose.yaml:docker-compose.secrets.yaml\n") == 1
    assert folder.stat().st_mode & 0o777 == 0o700 and env_file.stat().st_mode & 0o777 == 0o600


def test_a_secret_that_is_in_no_file_is_named_before_anything_is_changed(tmp_path: Path) -> None:
    env_file, folder = tmp_path / "env", tmp_path / "secrets"
    generated(env_file)
    text = re.sub("^POSTGRES_PASSWORD=.*$", "POSTGRES_PASSWORD=in-a-file", env_file.read_text(), flags=re.MULTILINE)
    env_file.write_text(f"{text}SECRETS_DIR={folder}\n")
    command = ["make", "-s", "secret-files", f"ENV_FILE={env_file}"]
    refused = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=60)
    assert refused.returncode and "POSTGRES_PASSWORD: " in refused.stderr and "Nothing was changed" in refused.stderr
    assert env_file.read_text() == f"{text}SECRETS_DIR={folder}\n" and not folder.exists()


def test_what_the_caller_exports_wins_over_airflow_env(tmp_path: Path) -> None:
    show = tmp_path / "show.mk"
    show.write_text('show-settings:\n\t@echo "$$AIRFLOW__CORE__EXECUTOR|$$WAREHOUSE_NAME|$$DO_NOT_TRACK"\n')
    command = ["make", "-s", "-f", "Makefile", "-f", str(show), "show-settings"]
    ours = settings_of("airflow.env")
    plain = {name: value for name, value in os.environ.items() if name not in ours and "MAKE" not in name}
    for given in ({}, {"AIRFLOW__CORE__EXECUTOR": "a $b #c"}, {"WAREHOUSE_NAME": "acme", "DO_NOT_TRACK": ""}):
        done = subprocess.run(command, cwd=PROJECT, env=plain | given, text=True, capture_output=True, timeout=60)
        expected = ours | given
        names = ("AIRFLOW__CORE__EXECUTOR", "WAREHOUSE_NAME", "DO_NOT_TRACK")
        assert done.stdout == "|".join(expected[name] for name in names) + "\n", done.stderr


def test_every_secret_is_a_file_in_the_secrets_variant() -> None:
    class Loader(yaml.SafeLoader):
        """Supports compose's `!reset`."""

    Loader.add_constructor("!reset", lambda *_: "reset")
    override = yaml.load((PROJECT / "docker-compose.secrets.yaml").read_text(), Loader)
    for name, service in SERVICES.items():
        changed = override["services"][name]
        secret = {
            variable for variable, value in service["environment"].items() if re.search(r"\$\{.*:\?", value or "")
        }
        assert secret == {variable for variable, value in changed.get("environment", {}).items() if value == "reset"}, (
            name
        )
        files = [one if isinstance(one, str) else one["source"] for one in changed.get("secrets", [])]
        assert set(files) <= override["secrets"].keys()
        if name in AIRFLOW:
            (mount,) = changed["volumes"]
            folder = "init" if name == "init" else "airflow"
            assert mount["source"].endswith(f"/{folder}") and mount["target"] == "/run/secrets" and mount["read_only"]


def test_every_setting_of_the_docs_that_is_a_secret_is_known_as_one() -> None:
    text = "".join(one.read_text() for one in PROJECT.glob("docs/*.md"))
    named = set(re.findall(r"(?:`|^)([A-Z][A-Z0-9_]{3,})[=`]", text, re.MULTILINE)) | set(
        SERVICES["scheduler"]["environment"]
    )
    secrets = {name for name in named if env.is_secret(name, "")}
    assert secrets >= {"OIDC_CLIENT_SECRET", "HEARTBEAT_URL", "PGPASSWORD", "SERVE_PASSWORD", "AWS_SESSION_TOKEN"}
    assert {name for name in named - secrets if SECRET_NAMES.search(name)} == NOT_SECRETS


def test_only_listed_files_get_into_the_image() -> None:
    rules = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    for secret in (".env", ".airflow", ".git", "data"):
        assert f"!{secret}" not in rules
    let_in = {rule[1:] for rule in rules if rule[0] == "!"}
    dockerfile = (PROJECT / "Dockerfile").read_text()
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE) for word in line.split()
    ]
    outside = [one for one in copied if one[0] != "-" and not any(Path(one).match(rule) for rule in let_in)]
    assert copied and not outside, f"the image is not built without {outside}"


def test_the_image_can_have_every_optional_part_that_the_docs_name() -> None:
    documented = set(
        re.findall(r'IMAGE_EXTRA="?([a-z ]+)', "".join(one.read_text() for one in PROJECT.glob("docs/*.md")))
    )
    words = {word for one in documented for word in one.split()}
    parts = {one for one in words if (PROJECT / "requirements" / f"{one}.in").exists()}  # not the prose after it
    assert {"mcp", "serve", "snowflake"} < parts
    assert "COPY requirements/*.txt" in (PROJECT / "Dockerfile").read_text()
    assert [part for part in sorted(parts) if not (PROJECT / "requirements" / f"{part}.txt").exists()] == []
