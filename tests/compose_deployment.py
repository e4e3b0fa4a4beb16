"""Run the whole compose deployment for real, alongside any running one, and check that it works as documented.

python3 -m tests.compose_deployment [--engine] [WORDS]    needs Docker with compose, make and Python; no packages

It uses its own project name, port, image name, secrets and volumes, and removes them at the end. With WORDS, it runs
only the checks that have one of them in their names. With --engine, as
root, it also crashes and restarts this machine's Docker daemon; it refuses to while other containers are running.
"""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from deploy import backup
from include.settings import warehouse_name
from scripts.airflow_api import OPENER, Api

PROJECT_DIR = Path(__file__).resolve().parents[1]
PROJECT = "jaffle-shop-compose-test"
IMAGE = f"{PROJECT}:latest"
WORKERS_IMAGE = f"{PROJECT}-workers:latest"
SECRETS = ("ADMIN_PASSWORD", "POSTGRES_PASSWORD", "FERNET_KEY", "JWT_SECRET", "API_SECRET_KEY")
SERVICES = ("postgres", "api-server", "scheduler", "dag-processor", "triggerer")
NAME = warehouse_name()
DAG = f"/api/v2/dags/{NAME}"
MAINTENANCE = f"{DAG}_maintenance"
RUN_SECONDS = 900
# Paths that answer without a login: the login itself, health, and static content of this Airflow version.
OPEN = re.compile(
    r"/api/v2/(auth/(login|logout)|monitor/health|version)|/auth/(login/?|logout/?|token.*|static/.*|docs|openapi.json)"
)


# For cgroup v2 and v1.
MEMORY_LIMIT = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"


class CheckFailedError(Exception):
    """A check of the deployment failed."""


def check(holds: object, message: str) -> None:
    """Raise `CheckFailedError` with the message unless something holds."""
    if not holds:
        raise CheckFailedError(message)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Print a step's name and how long it took."""
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    yield
    print(f"    ok, {time.monotonic() - started:.1f} s", flush=True)


class Compose(Api):
    """The deployment under test."""

    def __init__(self, scratch: Path) -> None:
        """Generate the deployment's secrets into an existing folder."""
        self.scratch = scratch
        self.env_file = scratch / "env"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        super().__init__(f"http://127.0.0.1:{self.port}")
        # Exported shell variables would override the file.
        outside = re.compile(f"COMPOSE_|ENV_FILE|AIRFLOW|LANDING_DIR|JAFFLE_SHOP|MAKE|{'|'.join(SECRETS)}")
        self.environ = {name: value for name, value in os.environ.items() if not outside.match(name)}
        self.make("env")
        self.secrets = dict(
            line.split("=", 1) for line in self.env_file.read_text().splitlines() if not line.startswith("#")
        )
        with self.env_file.open("a") as out:
            out.write(f"COMPOSE_PROJECT_NAME={PROJECT}\nJAFFLE_SHOP_IMAGE={IMAGE}\n")
            out.write(f"AIRFLOW_PORT={self.port}\nAIRFLOW_URL={self.url}\n")

    def command(self, *words: str, env_file: Path | None = None, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `docker compose WORDS` and return its exit code and output."""
        env_file = env_file or self.env_file
        command = ["docker", "compose", "--env-file", str(env_file), *words]
        environ = self.environ | {"ENV_FILE": str(env_file)}
        return subprocess.run(
            command, cwd=PROJECT_DIR, env=environ, text=True, capture_output=True, timeout=1800, **options
        )

    def __call__(self, *words: str) -> str:
        """Run `docker compose WORDS`, which must succeed, and return its output."""
        ended = self.command(*words)
        check(ended.returncode == 0, f"docker compose {' '.join(words)}:\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def make(self, *words: str, fails: bool = False) -> str:
        """Run `make WORDS` on this deployment, which must succeed (or fail, if `fails`), and return its output."""
        command = ["make", "-s", f"ENV_FILE={self.env_file}", *words]
        ended = subprocess.run(command, cwd=PROJECT_DIR, env=self.environ, text=True, capture_output=True, timeout=1800)
        check(bool(ended.returncode) == fails, f"make {' '.join(words)}:\n{ended.stdout}{ended.stderr}")
        return ended.stdout + ended.stderr

    def sql(self, statement: str) -> str:
        """Run SQL on the metadata and return what it prints."""
        psql = ("psql", "--username=airflow", "--dbname=airflow", "--tuples-only", "--no-align", "--command", statement)
        return self("exec", "-T", "postgres", *psql).strip()

    def set(self, **settings: str) -> None:
        """Change settings in `.env`."""
        kept = [line for line in self.env_file.read_text().splitlines() if line.split("=")[0] not in settings]
        self.env_file.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in settings.items())]) + "\n")

    def init(self, **settings: str) -> list[str]:
        """Return the lines printed by `init` with some settings changed."""
        env_file = self.scratch / "changed-env"
        env_file.write_text(
            self.env_file.read_text() + "".join(f"{name}={value}\n" for name, value in settings.items())
        )
        ended = self.command("--progress=quiet", "run", "--rm", "--no-deps", "-T", "init", env_file=env_file)
        return ended.stdout.splitlines() + ended.stderr.splitlines()

    def up(self) -> None:
        """Start what is not running, and wait until everything is healthy and the DAG is found."""
        self("up", "--detach", "--wait", "--wait-timeout", "900")
        deadline = time.monotonic() + RUN_SECONDS
        while NAME not in [dag["dag_id"] for dag in self.call("GET", "/api/v2/dags")["dags"]]:
            errors = self.call("GET", "/api/v2/importErrors")["import_errors"]
            check(not errors, f"{errors}")
            check(time.monotonic() < deadline, "the dag-processor finds no DAG")
            time.sleep(1)

    def wait_until_healthy(self) -> None:
        """Wait, without touching them, until all services are healthy."""
        deadline = time.monotonic() + RUN_SECONDS
        while {self.inspect(service)["State"].get("Health", {}).get("Status") for service in SERVICES} != {"healthy"}:
            check(time.monotonic() < deadline, "the services do not recover")
            time.sleep(1)

    def started(self) -> dict[str, str]:
        """Return when each service's container was started."""
        return {service: str(self.inspect(service)["State"]["StartedAt"]) for service in SERVICES}

    def inspect(self, service: str) -> Any:
        """Return `docker inspect` of a service's container."""
        container = self("ps", "--all", "--quiet", service).strip()
        return json.loads(docker("inspect", container))[0]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Return the API's response to the admin, retrying while a service is down."""
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            try:
                if not self.token:
                    self.log_in("admin", self.secrets["ADMIN_PASSWORD"])
                status, content = self.request(method, path, body, self.token)
            except OSError as error:
                status, content = 503, str(error).encode()
            if status < 400:
                return json.loads(content)
            check(status >= 500 and time.monotonic() < deadline, f"{method} {path}: {status} {content.decode()}")
            time.sleep(1)

    def trigger(self, dag: str = DAG) -> str:
        """Start a run and return its API path."""
        run = self.call("POST", f"{dag}/dagRuns", {"logical_date": None, "conf": {}})["dag_run_id"]
        return f"{dag}/dagRuns/{urllib.parse.quote(run)}"

    def wait_until_in_the_middle(self, run: str) -> None:
        """Wait until some tasks of a run are done and one is running."""
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            states = [task["state"] for task in self.task_instances(run)]
            if states.count("success") >= 3 and "running" in states:
                return
            check(time.monotonic() < deadline and "failed" not in states, f"{run} does not start: {states}")
            time.sleep(0.2)

    def wait_for_end(self, run: str) -> str:
        """Wait until a run has ended, and return its state."""
        deadline = time.monotonic() + RUN_SECONDS
        while (state := self.call("GET", run)["state"]) not in ("success", "failed") and time.monotonic() < deadline:
            time.sleep(1)
        return str(state)

    def wait_for_success(self, run: str) -> None:
        """Wait until a run has succeeded."""
        state = self.wait_for_end(run)
        if state == "success":
            return
        output = []
        for task in self.task_instances(run):
            output.append(f"{task['task_id']}: {task['state']}, try {task['try_number']}")
            if task["state"] == "failed":
                path = f"{run}/taskInstances/{task['task_id']}/logs/{task['try_number']}?full_content=true"
                output += [json.dumps(line) for line in self.call("GET", path)["content"]]
        raise CheckFailedError("\n".join([f"{run} is {state}:", *output]))

    def published(self) -> dict[str, Any]:
        """Read the published database in a separate container, with a read-only volume and no network."""
        program = (
            f"import duckdb, json; db = duckdb.connect('/warehouse/published/{NAME}.duckdb', read_only=True);"
            "print(json.dumps([db.sql('select release_id from warehouse.release').fetchone()[0],"
            " *[db.sql(f'select count(*) from marts.{m}').fetchone()[0] for m in ('customers', 'orders')]]))"
        )
        volume = f"{PROJECT}_warehouse:/warehouse:ro"
        answer = docker("run", "--rm", "--network=none", "--volume", volume, IMAGE, "python", "-c", program)
        return dict(zip(("release", "customers", "orders"), json.loads(answer), strict=True))


def docker(*words: str) -> str:
    """Run `docker WORDS`, which must succeed, and return its output."""
    ended = subprocess.run(["docker", *words], text=True, capture_output=True, timeout=1800)
    check(ended.returncode == 0, f"docker {' '.join(words)}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def refuses_to_start_without_its_secrets(compose: Compose) -> None:
    """Compose names a missing secret and the remedy in one line; `make env` overwrites nothing."""
    check(compose.env_file.stat().st_mode & 0o777 == 0o600, ".env can be read by others")
    before = compose.env_file.read_text()
    with contextlib.suppress(CheckFailedError):
        compose.make("env")
    check(compose.env_file.read_text() == before, "make env has overwritten .env")
    for name in SECRETS:
        for value in ("", f"{name}=\n"):
            without = compose.scratch / "incomplete"
            without.write_text(re.sub(f"^{name}=.*\n", value, before, flags=re.MULTILINE))
            refused = compose.command("up", "--detach", env_file=without)
            check(refused.returncode, f"starts without {name}")
            output = refused.stderr.strip()
            check(name in output and "make env" in output and "\n" not in output, f"without {name} it says: {output}")


def no_more_rights_than_needed(compose: Compose) -> None:
    """No process is or can become root; root file systems are read-only; limits are set."""
    for service in SERVICES:
        processes = compose("exec", "-T", service, "sh", "-c", "cat /proc/[0-9]*/status 2>/dev/null")
        for field, bad in (("Uid", r"\t0\b"), ("CapEff", "[1-9a-f]"), ("NoNewPrivs", "0")):
            values = re.findall(rf"^{field}:(.*)", processes, re.MULTILINE)
            check(values and not any(re.search(bad, value) for value in values), f"{service}: {field} {values}")
        written = compose.command("exec", "-T", service, "touch", "/here")
        check("Read-only file system" in written.stderr, f"{service}: root file system: {written.stderr}")
        host = compose.inspect(service)["HostConfig"]
        for limit in ("Memory", "NanoCpus", "PidsLimit"):
            check((host[limit] or 0) > 0, f"{service}: no limit {limit}")
        seen = compose("exec", "-T", service, "sh", "-c", f"cat {MEMORY_LIMIT} 2>/dev/null; true").split()
        check(seen == [str(host["Memory"])], f"{service}: sees a memory limit of {seen}")
    written = compose.command("exec", "-T", "api-server", "touch", "data/here")
    check("Read-only file system" in written.stderr, f"the api-server can write to the warehouse: {written.stderr}")


def nothing_listens_beyond_loopback(compose: Compose) -> None:
    """One port is published, on 127.0.0.1."""
    published = {}
    for service in SERVICES:
        for bindings in compose.inspect(service)["NetworkSettings"]["Ports"].values():
            for binding in bindings or []:
                published[service] = (binding["HostIp"], binding["HostPort"])
    check(published == {"api-server": ("127.0.0.1", str(compose.port))}, f"published: {published}")
    for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} | {outward_address()}:
        if not str(address).startswith(("127.", "::1")):
            with socket.socket(socket.AF_INET6 if ":" in str(address) else socket.AF_INET) as probe:
                check(probe.connect_ex((address, compose.port)), f"{address}:{compose.port} answers")


def outward_address() -> str:
    """Return this machine's external address, or loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def nobody_gets_in_without_a_login(compose: Compose) -> None:
    """Without a login, every API path returns 401 or 403 and every page redirects to the login."""
    paths = {"/openapi.json": "", "/auth/openapi.json": "/auth"}
    tried = 0
    for document, prefix in paths.items():
        status, content = compose.request("GET", document, token=compose.token)
        check(status == 200, f"{document}: {status}")
        for path, methods in json.loads(content)["paths"].items():
            for method in {"get", "post", "patch", "put", "delete"} & methods.keys():
                url = prefix + re.sub(r"\{[^}]*\}", NAME, path)
                if not OPEN.fullmatch(url):
                    status, _ = compose.request(method.upper(), url)
                    check(status in (401, 403), f"anonymous {method} {url}: {status}")
                    tried += 1
    check(tried > 100, f"only {tried} paths found")
    for page in ("/", "/dags", "/warehouse/", "/docs", "/cosmos/docs", "/auth/users/list/", "/auth/roles/list/"):
        status, content = compose.request("GET", page)
        check(status in (302, 303, 307, 401, 403), f"anonymous {page}: {status}")
    status, _ = compose.request("POST", "/auth/token", {"username": "admin", "password": "admin"})
    check(status == 401, f"login with a wrong password: {status}")


def roles_may_do_what_they_should(compose: Compose) -> None:
    """A viewer can see DAGs and plugin pages, and cannot start anything."""
    password = "viewer-of-the-test"
    person = ("--firstname", "V", "--lastname", "V", "--email", "viewer@localhost")
    create = ("airflow", "users", "create", "--username", "viewer", "--role", "Viewer", "--password", password)
    compose("exec", "-T", "api-server", *create, *person)
    viewer = Api(compose.url)
    viewer.log_in("viewer", password)
    for path, method, body, expected in (
        (DAG, "GET", None, 200),
        ("/api/v2/plugins", "GET", None, 200),
        ("/warehouse/", "GET", None, 200),
        ("/api/v2/connections", "GET", None, 403),
        (f"{DAG}/dagRuns", "POST", {"logical_date": None}, 403),
    ):
        status, content = viewer.request(method, path, body, viewer.token)
        check(status == expected, f"viewer: {method} {path}: {status} {content.decode()[:300]}")


def a_run_publishes_what_another_container_reads(compose: Compose) -> None:
    """A run started through the API succeeds; its logs are readable there and contain no secrets."""
    run = compose.trigger()
    compose.wait_for_success(run)
    published = compose.published()
    for mart in ("customers", "orders"):
        with (PROJECT_DIR / "include" / "data" / f"raw_{mart}.csv").open(newline="", encoding="utf-8") as lines:
            rows = sum(1 for _ in csv.reader(lines)) - 1
        check(published[mart] == rows, f"{mart}: {published[mart]} rows published of {rows}")
    logs = json.dumps(compose.call("GET", f"{run}/taskInstances/load.jaffle_shop/logs/1?full_content=true"))
    check("raw_orders" in logs, f"no log of the task load: {logs[:500]}")
    everything = logs + compose("logs", "--no-color")
    check(not [name for name, value in compose.secrets.items() if value in everything], "a log contains a secret")


def maintenance_cleans_the_metadata(compose: Compose) -> None:
    """A run of a year ago goes with its tasks, one that never started included; what is younger stays."""
    old, young = compose.trigger(), compose.trigger()
    for run in (old, young):
        compose.wait_for_success(run)
    run_id = urllib.parse.unquote(old.rsplit("/", 1)[-1])
    where, ago = f"where run_id = '{run_id}'", "now() - interval '400 days'"
    compose.sql(
        f"update dag_run set start_date = {ago}, end_date = {ago}, queued_at = {ago}, run_after = {ago} {where}"
    )
    compose.sql(f"update task_instance set start_date = {ago}, end_date = {ago} {where}")
    compose.sql(f"update task_instance set start_date = null, end_date = null {where} and task_id = 'publish'")
    compose.wait_for_success(compose.trigger(MAINTENANCE))
    for table in ("dag_run", "task_instance"):
        left = compose.sql(f"select count(*) from {table} {where}")
        check(left == "0", f"{table} has {left} rows of a run that maintenance should have removed")
    check(compose.call("GET", young)["state"] == "success", "a younger run is gone")


def comes_back(compose: Compose, *services: str) -> None:
    """If all processes of some services die during a run, Docker restarts them and the run succeeds."""
    run = compose.trigger()
    compose.wait_until_in_the_middle(run)
    before = compose.started()
    for service in services:
        compose.command("exec", "-T", service, "sh", "-c", "kill -9 -1")
    compose.wait_for_success(run)
    compose.wait_until_healthy()
    after = compose.started()
    check(all(after[service] > before[service] for service in services), f"not restarted: {before}, {after}")


def killed_by_command(compose: Compose) -> None:
    """Services stopped by a Docker command stay down until `up`, which resumes them and the run."""
    run = compose.trigger()
    compose.wait_until_in_the_middle(run)
    compose("kill")
    check(not compose("ps", "--quiet"), "docker compose kill left something running")
    compose.up()
    compose.wait_for_success(run)


def engine_ends(compose: Compose, sent: signal.Signals, power_cut: bool = False) -> None:
    """If the Docker daemon stops during a run and is restarted, so are all services."""
    others = set(docker("ps", "--quiet", "--no-trunc").split()) - set(compose("ps", "--quiet").split())
    check(not others, f"other containers are running: {others}")
    run = compose.trigger()
    compose.wait_until_in_the_middle(run)
    before = compose.started()
    [daemon] = [path.parent for path in Path("/proc").glob("[0-9]*/comm") if path.read_text() == "dockerd\n"]
    command, environ = ((daemon / name).read_bytes().rstrip(b"\0").split(b"\0") for name in ("cmdline", "environ"))
    processes = [int(compose.inspect(service)["State"]["Pid"]) for service in SERVICES]
    os.kill(int(daemon.name), sent)
    for pid in processes if power_cut else []:
        os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    while (daemon / "exe").exists() or subprocess.run(["docker", "info"], capture_output=True).returncode:
        # systemd, if in use, has restarted it by now.
        if not (daemon / "exe").exists() and time.monotonic() - started > 20:
            again = dict(setting.split(b"=", 1) for setting in environ)
            subprocess.Popen(command, env=again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
            started = float("inf")
        time.sleep(1)
    compose.wait_until_healthy()
    compose.wait_for_success(run)
    after = compose.started()
    check(all(after[service] > before[service] for service in SERVICES), f"not restarted: {before}, {after}")


def two_schedulers_but_one_api_server(compose: Compose) -> None:
    """A second scheduler takes over when one is killed; a second api-server is refused without harm."""
    compose("up", "--detach", "--wait", "--scale", "scheduler=2")
    run = compose.trigger()
    compose.wait_until_in_the_middle(run)
    docker("kill", compose("ps", "--quiet", "scheduler").split()[0])
    compose.wait_for_success(run)
    refused = compose.command("up", "--detach", "--no-recreate", "--scale", "api-server=2")
    check(refused.returncode and "port is already allocated" in refused.stderr, f"two api-servers: {refused.stderr}")
    check(compose.request("GET", "/api/v2/monitor/health")[0] == 200, "the first api-server does not answer")
    compose.up()
    check(
        len(compose("ps", "--all", "--quiet", "scheduler", "api-server").split()) == 2, "more than one of each is left"
    )


def an_upgrade_costs_no_run(compose: Compose) -> None:
    """A new image with a changed model during a run (`build`, `up`): the run goes on, and publishes no older model."""
    changed = compose.scratch / "changed"
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=PROJECT_DIR, text=True).split("\0")
    for name in filter(None, files):
        if (PROJECT_DIR / name).exists():
            (changed / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT_DIR / name, changed / name)
    with (changed / "include/dbt_project/models/staging/stg_orders.sql").open("a") as model:
        model.write("\n-- changed\n")
    run = compose.trigger()
    compose.wait_until_in_the_middle(run)
    old = compose.inspect("scheduler")["Image"]
    started = time.monotonic()
    docker("build", "--quiet", "--tag", IMAGE, str(changed))
    print(f"    image rebuilt after a change of a model in {time.monotonic() - started:.1f} s")
    compose.make("stop")
    compose.up()
    check(compose.inspect("scheduler")["Image"] != old, "the scheduler is still on the old image")
    if compose.wait_for_end(run) == "failed":  # the model had run before the upgrade
        failed = [task["task_id"] for task in compose.task_instances(run) if task["state"] != "success"]
        check(failed == ["publish"], f"{failed} failed")
        log = compose.call("GET", f"{run}/taskInstances/publish/logs/1?full_content=true")
        check("stg_orders: was changed since it last ran" in json.dumps(log), f"publish does not name the model: {log}")
        cleared = {"task_ids": ["transform.stg_orders.run"], "include_downstream": True, "only_failed": False}
        run_id = urllib.parse.unquote(run.rsplit("/", 1)[-1])
        compose.call("POST", f"{DAG}/clearTaskInstances", cleared | {"dag_run_id": run_id, "dry_run": False})
        print("    publish refused the model that had run before; cleared")
    compose.wait_for_success(run)


def secrets_can_be_replaced(compose: Compose) -> None:
    """All secrets are rotated as documented; login, runs, warehouse and connections survive that and `down`."""
    airflow = ("exec", "-T", "scheduler", "airflow")
    compose(*airflow, "connections", "add", "kept", "--conn-type=http", "--conn-password=kept-password")
    before, old = state(compose), dict(compose.secrets)
    compose.make("env", f"ENV_FILE={compose.scratch / 'new'}")
    new = dict(line.split("=", 1) for line in (compose.scratch / "new").read_text().splitlines()[1:])
    password = new["POSTGRES_PASSWORD"]
    compose("exec", "-T", "postgres", "psql", "-U", "airflow", "-c", f"alter user airflow password '{password}'")
    del new["ADMIN_PASSWORD"]
    compose.set(**new | {"FERNET_KEY": f"{new['FERNET_KEY']},{old['FERNET_KEY']}"})
    compose.secrets |= new
    compose.token = ""  # signed with the old JWT_SECRET
    compose.up()
    compose(*airflow, "rotate-fernet-key")
    compose.set(FERNET_KEY=new["FERNET_KEY"])
    compose("down")
    compose.up()
    check(state(compose) == before, f"before: {before}; after: {state(compose)}")
    check("kept-password" in compose(*airflow, "connections", "get", "kept"), "the connection's password is lost")
    for name in ("POSTGRES_PASSWORD", "FERNET_KEY"):
        output = compose.init(**{name: old[name]})
        check(
            len(output) == 1 and "this .env does not match the volumes: " in output[0] and name in output[0],
            f"{output}",
        )


def init_says_what_is_wrong(compose: Compose) -> None:
    """`init` reports a wrong admin password and an unreadable landing folder."""
    output = compose.init(**{"ADMIN_PASSWORD": "another"})
    check(output[-1].startswith("warning: ADMIN_PASSWORD differs from the password of the login admin"), f"{output}")
    landing = compose.scratch / "landing"
    landing.mkdir(mode=0o700)
    output = compose.init(LANDING_DIR=str(landing))
    check(len(output) == 1 and "user 50000 cannot read" in output[0] and "LANDING_DIR" in output[0], f"{output}")


def a_backup_can_be_restored(compose: Compose) -> None:
    """A bad backup leaves the deployment running; a good one restores onto empty volumes and the pipeline continues."""
    good, bad = compose.scratch / "good", compose.scratch / "bad"
    before = state(compose)
    compose.make("backup", f"DIR={good}")
    started = compose.started()

    shutil.copytree(good, bad)
    os.truncate(bad / backup.TAR, 100_000)
    output = compose.make("restore-backup", f"DIR={bad}", fails=True)
    check("warehouse.tar is damaged" in output and "Nothing was changed" in output, output)
    sums = "".join(f"{backup.sha256(bad / name)}  {name}\n" for name in (backup.DUMP, backup.TAR))
    (bad / backup.SUMS).write_text(sums)
    output = compose.make("restore-backup", f"DIR={bad}", fails=True)
    check("Nothing was changed" in output, output)
    check(compose.started() == started, "an unreadable backup stopped something")
    check(state(compose) == before, f"before: {before}; after: {state(compose)}")

    # Readable, but does not start: its metadata is from a later Airflow version.
    version = compose.sql("select version_num from alembic_version")
    compose.sql("update alembic_version set version_num = 'later'")
    compose.make("backup", f"DIR={bad}")
    compose.sql(f"update alembic_version set version_num = '{version}'")
    output = compose.make("restore-backup", f"DIR={bad}", fails=True)
    check("the previous one is running again" in output, output)
    check(state(compose) == before, f"before: {before}; after: {state(compose)}")

    compose("down", "--volumes")
    compose.make("restore-backup", f"DIR={good}")
    check(state(compose) == before, f"before: {before}; after: {state(compose)}")
    compose.wait_for_success(compose.trigger())


def nothing_secret_can_be_inspected(compose: Compose) -> None:
    """With secrets in files, encryption, alerts and a proxy as documented, a run succeeds."""
    key, alerts = "key-of-the-test", "token-of-the-alerts"
    compose("down", "--volumes")
    override = compose.scratch / "override.yaml"
    docs = (PROJECT_DIR / "docs" / "deployment.md").read_text()
    override.write_text(re.findall("^```yaml\n(.*?)^```", docs, re.MULTILINE | re.DOTALL)[0])
    alert_url = json.dumps({"conn_type": "apprise", "extra": {"config": [{"path": f"json://127.0.0.1:9/{alerts}"}]}})
    compose.set(
        COMPOSE_FILE=f"docker-compose.yaml:{override}",
        SECRETS_DIR=str(compose.scratch / "secrets"),
        DBT_TARGET="encrypted",
        WAREHOUSE_ENCRYPTION_KEY=key,
        AIRFLOW_CONN_APPRISE_DEFAULT=f"'{alert_url}'",
    )
    compose.make("secret-files")
    compose.up()
    compose.wait_for_success(compose.trigger())
    compose.wait_for_success(compose.trigger(MAINTENANCE))
    hidden = {*compose.secrets.values(), key, alerts}
    seen = docker("inspect", *compose("ps", "--all", "--quiet").split()) + compose.env_file.read_text()
    check(not [value for value in hidden if value in seen], "docker inspect or .env shows a secret")
    show = ("exec", "-T", "scheduler", "with-secrets", "python", "-m", "include.warehouse", "show")
    check("marts.customers" in compose(*show), "the warehouse cannot be read with its key")
    plain = compose.command("exec", "-T", "scheduler", *show[4:])
    check(plain.returncode, "the warehouse can be read without its key")
    check(alerts in compose("exec", "-T", "scheduler", "with-secrets", "env"), "the alert connection is missing")

    request = urllib.request.Request(f"{compose.url}/auth/login/", headers={"X-Forwarded-Proto": "https"})
    with OPENER.open(request, timeout=30) as answer:
        cookies = answer.headers.get_all("Set-Cookie")
    check(cookies and all("Secure" in cookie for cookie in cookies), f"behind a TLS proxy: {cookies}")


def workers_run_without_airflows_secrets(compose: Compose) -> None:
    """On a lake, a worker runs tasks with the secrets in `.env` and in files, and sees none of Airflow's own."""
    compose("down", "--volumes", "--timeout", "30")
    store = compose.scratch / "store"
    store.mkdir()
    shutil.copy(PROJECT_DIR / "requirements" / "targets.txt", store)
    (store / "Dockerfile").write_text(
        "FROM python:3.11-slim-bookworm\nCOPY targets.txt .\nRUN pip install -q --require-hashes -r targets.txt\n"
    )
    lake, key, secret = "password-of-the-lake", "key-of-the-store", "secret-of-the-store"
    landing = "/data/lake/shop/landing"
    serve = f"exec rclone serve s3 /data --addr :9000 --auth-key {key},{secret}"
    override = compose.scratch / "lake.yaml"
    override.write_text(
        json.dumps(
            {
                "services": {
                    "store": {
                        "build": str(store),
                        "command": ["sh", "-c", f"mkdir -p {landing} && cp /csv/* {landing}; {serve}"],
                        "volumes": [f"{PROJECT_DIR}/include/data:/csv:ro"],
                    },
                    "lake": {"image": "postgres:17", "environment": {"POSTGRES_PASSWORD": lake}},
                }
            }
        )
    )
    compose.set(
        **compose.secrets,
        COMPOSE_FILE=f"docker-compose.yaml:docker-compose.workers.yaml:{override}",
        JAFFLE_SHOP_IMAGE=WORKERS_IMAGE,
        IMAGE_EXTRA='"ducklake workers"',
        SECRETS_DIR=str(compose.scratch / "secrets-of-workers"),
        WORKER_SECRETS="",  # of the check before
        REDIS_SECRETS="",
        SHARED_URL="s3://lake/shop",
        DBT_TARGET="ducklake",
        DUCKLAKE_CATALOG='"host=lake user=postgres dbname=postgres"',
        DUCKLAKE_DATA="s3://lake/shop/data",
        PGPASSWORD=lake,
        AWS_ACCESS_KEY_ID=key,
        AWS_SECRET_ACCESS_KEY=secret,
        AWS_REGION="us-east-1",
        AWS_ENDPOINT_URL="http://store:9000",
        WAREHOUSE_ENCRYPTION_KEY="",
        AIRFLOW_CONN_APPRISE_DEFAULT="",
        TOKEN_OF_A_SOURCE="token-of-a-source",
    )
    compose("build")
    for in_files in (False, True):
        if in_files:
            compose.make("secret-files")
        compose.up()
        compose.wait_for_success(compose.trigger())
        seen = compose("exec", "-T", "worker", "with-secrets", "env")
        for name in set(compose.secrets) - {"REDIS_PASSWORD"}:
            check(compose.secrets[name] not in seen, f"the worker has {name}")
        check("TOKEN_OF_A_SOURCE=token-of-a-source" in seen, "what is set in .env does not reach the worker")
        connect = "import socket; socket.create_connection(('postgres', 5432), 5)"
        reached = compose.command("exec", "-T", "worker", "python", "-c", connect)
        check(reached.returncode, "the worker reaches the metadata")
        show = compose("exec", "-T", "scheduler", "with-secrets", "python", "-m", "include.warehouse", "show")
        check("marts.customers" in show, f"nothing is published: {show}")
        saved, shown = compose.scratch / "of-a-lake", show.splitlines()[:3]
        output = compose.make("backup", f"DIR={saved}")
        check("stay in s3://lake/shop/data" in output, f"the backup does not say where the files are: {output}")
        compose(
            "exec", "-T", "lake", "dropdb", "--username=postgres", "--force", "postgres", "--maintenance-db=template1"
        )
        compose("exec", "-T", "lake", "createdb", "--username=postgres", "--maintenance-db=template1", "postgres")
        compose.make("restore-backup", f"DIR={saved}")
        show = compose("exec", "-T", "scheduler", "with-secrets", "python", "-m", "include.warehouse", "show")
        check(show.splitlines()[:3] == shown, f"restored: {show}; before: {shown}")
    ours = [compose("ps", "--all", "--quiet", name).strip() for name in (*SERVICES, "init", "worker", "redis")]
    seen = docker("inspect", *ours) + compose.env_file.read_text()
    hidden = {*compose.secrets.values(), lake, secret}
    check(not [value for value in hidden if value in seen], "docker inspect or .env shows a secret")
    compose("down", "--volumes", "--timeout", "30")


def the_dev_container_works(compose: Compose) -> None:
    """The dev container builds, and sets up and runs the pipeline in a copy of the repository."""
    settings = json.loads((PROJECT_DIR / ".devcontainer" / "devcontainer.json").read_text())
    image = f"{PROJECT}-dev"
    try:
        docker("build", "--quiet", "--tag", image, str(PROJECT_DIR / ".devcontainer"))
        program = f"mkdir ~/project && cd ~/project && tar -x && {settings['postCreateCommand']} && make run"
        with subprocess.Popen(["git", "ls-files", "-z"], cwd=PROJECT_DIR, stdout=subprocess.PIPE) as names:
            packed = subprocess.run(
                ["tar", "--null", "--files-from=-", "--create"],
                cwd=PROJECT_DIR,
                stdin=names.stdout,
                capture_output=True,
            )
        ended = subprocess.run(
            ["docker", "run", "--rm", "--interactive", image, "bash", "-ec", program],
            input=packed.stdout,
            capture_output=True,
            timeout=1800,
        )
        check(ended.returncode == 0, f"{ended.stdout.decode()[-5000:]}{ended.stderr.decode()[-2000:]}")
    finally:
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True)


def state(compose: Compose) -> dict[str, Any]:
    """Return the state that must outlive the containers."""
    runs = compose.call("GET", f"{DAG}/dagRuns?limit=100")["dag_runs"]
    return {"runs": sorted(run["dag_run_id"] for run in runs), **compose.published()}


def show_memory() -> None:
    """Print each container's memory, without the page cache."""
    names = docker("ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Names}}").split()
    print(docker("stats", "--no-stream", "--format", "    {{.Name}} {{.MemUsage}}", *names), end="")


def main() -> int:
    """Run every check; return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        compose = Compose(Path(scratch))
        engine = [
            ("the daemon crashes", partial(engine_ends, compose, signal.SIGKILL)),
            ("the daemon is restarted", partial(engine_ends, compose, signal.SIGTERM)),
            (
                "everything ends at once, as in a power cut",
                partial(engine_ends, compose, signal.SIGKILL, power_cut=True),
            ),
        ]
        checks: list[tuple[str, Callable[[], object]]] = [
            ("refuses to start without its secrets", partial(refuses_to_start_without_its_secrets, compose)),
            ("docker compose build", partial(compose, "build", "--quiet")),
            ("docker compose up --wait, on empty volumes", compose.up),
            ("no more rights than needed", partial(no_more_rights_than_needed, compose)),
            ("nothing listens beyond loopback", partial(nothing_listens_beyond_loopback, compose)),
            (
                "a run publishes, another container reads",
                partial(a_run_publishes_what_another_container_reads, compose),
            ),
            ("maintenance", partial(maintenance_cleans_the_metadata, compose)),
            ("memory", show_memory),
            ("nobody gets in without a login", partial(nobody_gets_in_without_a_login, compose)),
            ("roles may do what they should", partial(roles_may_do_what_they_should, compose)),
            (
                "api-server, dag-processor, triggerer die",
                partial(comes_back, compose, "api-server", "dag-processor", "triggerer"),
            ),
            ("the scheduler dies", partial(comes_back, compose, "scheduler")),
            ("postgres dies", partial(comes_back, compose, "postgres")),
            ("docker compose kill and up", partial(killed_by_command, compose)),
            ("two schedulers, not two api-servers", partial(two_schedulers_but_one_api_server, compose)),
            ("an upgrade in the middle of a run", partial(an_upgrade_costs_no_run, compose)),
            ("new secrets, down and up", partial(secrets_can_be_replaced, compose)),
            ("init says what is wrong", partial(init_says_what_is_wrong, compose)),
            ("bad and good backups", partial(a_backup_can_be_restored, compose)),
            *(engine if "--engine" in sys.argv else []),
            ("secrets in files, encryption, proxy", partial(nothing_secret_can_be_inspected, compose)),
            ("workers without Airflow's secrets", partial(workers_run_without_airflows_secrets, compose)),
            ("the dev container", partial(the_dev_container_works, compose)),
        ]
        wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
        checks = [one for one in checks if not wanted or any(word in one[0] for word in wanted)]
        try:
            for name, run in checks:
                with step(name):
                    run()
        except CheckFailedError as failure:
            print(f"FAILED: {failure}\n{compose.command('ps', '--all').stdout}", file=sys.stderr)
            return 1
        finally:
            compose.command("down", "--volumes", "--timeout", "5", "--rmi", "local")
            subprocess.run(["docker", "image", "rm", "--force", IMAGE, WORKERS_IMAGE], capture_output=True)
    print("All checks passed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
