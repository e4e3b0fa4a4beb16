"""The dashboards: a real Superset on a real published file, in a real browser. `make test-bi` runs it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser

from testing.airflow_processes import interrupt_with_parent
from testing.project import NAME
from testing.targets import free_port

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "bi" / "assets"
DASHBOARDS = {path.stem: yaml.safe_load(path.read_text()) for path in (ASSETS / "dashboards").glob("*.yaml")}
PYTHON = ROOT / ".venv-bi" / "bin" / "python"
START_SECONDS = 300

pytestmark = [pytest.mark.bi, pytest.mark.timeout(900)]


@dataclass
class Pipeline:
    """The pipeline run by hand on CSV files of its own."""

    root: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "WAREHOUSE_DIR": str(self.root / "data"),
            "WAREHOUSE_NAME": NAME,
            "SOURCES__JAFFLE_SHOP__DATA_DIR": str(self.root / "csv"),
            "DLT_PROJECT_DIR": str(ROOT / "include" / "dlt_pipelines"),
            "DBT_TARGET_PATH": str(self.root / "target"),
            "PYTHONPATH": str(ROOT),
        }

    def publish(self, run_id: str) -> None:
        for command, folder in (
            (["-m", "include.dlt_pipelines", "jaffle_shop"], ROOT),
            (["-c", "from dbt.cli.main import cli; cli()", "--quiet", "build"], ROOT / "include" / "dbt_project"),
            (["-m", "include.runs", "publish", run_id], ROOT),
        ):
            subprocess.run([sys.executable, *command], cwd=folder, env=self.env, check=True, capture_output=True)


class Superset:
    """A client of Superset's API, logged in as admin."""

    def __init__(self, url: str, password: str) -> None:
        self.url, self.password = url, password
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        login = {"username": "admin", "password": password, "provider": "db"}
        self._headers = {"Authorization": f"Bearer {self.call('security/login', login)[1]['access_token']}"}
        self._headers["X-CSRFToken"] = self.call("security/csrf_token/")[1]["result"]
        self._headers["Referer"] = url

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **getattr(self, "_headers", {})}
        try:
            with self._opener.open(
                urllib.request.Request(f"{self.url}/api/v1/{path}", data, headers), timeout=120
            ) as one:
                return one.status, json.load(one)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def sql(self, query: str) -> tuple[int, Any]:
        """Run SQL as SQL Lab does; return the status, and the rows or the error."""
        (database,) = (one for one in self.call("database/")[1]["result"] if one["database_name"] == "warehouse")
        status, answer = self.call("sqllab/execute/", {"database_id": database["id"], "sql": query, "runAsync": False})
        return status, answer["data"] if status == 200 else json.dumps(answer)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = Pipeline(tmp_path_factory.mktemp("bi"))
    (pipeline.root / "csv").mkdir()
    for path in (ROOT / "include" / "data").glob("*.csv"):
        (pipeline.root / "csv" / path.name).write_bytes(path.read_bytes())
    pipeline.publish("first")
    return pipeline


def start(pipeline: Pipeline, port: int) -> subprocess.Popen[str]:
    """Start `make bi`'s command and wait until it is ready."""
    env = {**pipeline.env, "BI_HOME": str(pipeline.root / "home"), "BI_PORT": str(port)}
    del env["PYTHONPATH"]
    process = subprocess.Popen(
        [PYTHON, ROOT / "bi" / "serve.py"], env=env, stdout=subprocess.PIPE, text=True, preexec_fn=interrupt_with_parent
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C stops it" in line:
            return process
    raise AssertionError("".join(lines) + (pipeline.root / "home" / "superset.log").read_text()[-3000:])


@pytest.fixture(scope="module")
def superset(pipeline: Pipeline) -> Iterator[Superset]:
    port = free_port()
    first = start(pipeline, port)
    first.send_signal(signal.SIGINT)  # as Ctrl-C
    assert first.wait(60) == 0
    process = start(pipeline, port)  # imports everything a second time
    try:
        kept = pipeline.root / "home" / "secrets.json"
        assert kept.stat().st_mode & 0o777 == 0o600
        yield Superset(f"http://127.0.0.1:{port}", json.loads(kept.read_text())["ADMIN_PASSWORD"])
    finally:
        process.terminate()
        process.wait(60)


def test_a_second_import_adds_nothing(superset: Superset) -> None:
    for kind, folder in (("chart", "charts"), ("dashboard", "dashboards"), ("dataset", "datasets/warehouse")):
        assert superset.call(f"{kind}/")[1]["count"] == len(list((ASSETS / folder).glob("*.yaml")))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("slug", DASHBOARDS)
def test_every_chart_shows_its_data_in_a_browser(superset: Superset, browser: Browser, slug: str, scheme: Any) -> None:
    page = browser.new_context(viewport={"width": 1400, "height": 1500}, color_scheme=scheme).new_page()
    page.goto(f"{superset.url}/login/")
    page.fill("#username", "admin")
    page.fill("#password", superset.password)
    page.keyboard.press("Enter")
    page.wait_for_url("**/superset/welcome/")
    answers, elsewhere = [], []
    page.on("response", lambda answer: answers.append(answer) if "/api/v1/chart/data" in answer.url else None)
    page.on("requestfinished", lambda one: elsewhere.append(one.url) if superset.url not in one.url else None)
    page.goto(f"{superset.url}/superset/dashboard/{slug}/")
    charts = [one["meta"] for name, one in DASHBOARDS[slug]["position"].items() if name.startswith("CHART-")]
    deadline = time.monotonic() + 120
    while len(answers) < len(charts) and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    assert [answer.status for answer in answers] == [200] * len(charts)
    empty = [answer.json()["result"][0]["query"] for answer in answers if not answer.json()["result"][0]["data"]]
    assert empty == []
    page.wait_for_load_state("networkidle")
    for chart in charts:
        assert page.get_by_text(chart["sliceName"], exact=True).first.is_visible()
    assert page.get_by_text("Unexpected error").count() == 0
    assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_csv('/etc/passwd', columns = {'a': 'varchar'})",
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from glob('/*')",
        "copy marts.orders to '/tmp/out.csv'",
        "attach '/tmp/other.duckdb' as other",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set memory_limit = '10GB'",
        "create table marts.mine as select 1",
        "insert into marts.orders (order_id) values (0)",
        "drop table marts.orders",
        "export database '/tmp/out'",
    ],
)
def test_sql_lab_cannot_leave_the_published_file(superset: Superset, query: str) -> None:
    status, answer = superset.sql(query)
    assert status != 200, answer
    assert superset.sql("select count(*) as n from marts.orders") == (200, [{"n": 99}])


def test_what_is_published_shows_at_once_also_while_a_query_runs(superset: Superset, pipeline: Pipeline) -> None:
    slow = "select count(*) as n from marts.orders, range(1000000000) where hash(range) % 7 = order_id % 7"
    running = threading.Thread(target=superset.sql, args=(slow,))
    running.start()
    with (pipeline.root / "csv" / "raw_orders.csv").open("a") as out:
        out.write("100,1,2025-12-31,placed\n")
    pipeline.publish("second")
    assert superset.sql("select count(*) as n from marts.orders") == (200, [{"n": 100}])
    running.join()
    (pipeline.root / "data" / "published" / f"{NAME}.duckdb").rename(pipeline.root / "aside")
    try:
        status, answer = superset.sql("select 1")
        assert status != 200 and "Nothing is published yet: run the pipeline" in answer
    finally:
        (pipeline.root / "aside").rename(pipeline.root / "data" / "published" / f"{NAME}.duckdb")


def test_nothing_is_open_without_a_login(superset: Superset) -> None:
    for path in ("api/v1/dashboard/", "api/v1/dataset/", "superset/dashboard/customer-value/"):
        try:
            with urllib.request.urlopen(f"{superset.url}/{path}", timeout=30) as answer:
                assert "/login" in answer.url or '"count":0' in answer.read().decode().replace(" ", "")
        except urllib.error.HTTPError as error:
            assert error.code in (401, 403)
