"""An Airflow with two users and a few typical runs, and a browser."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from testing.airflow_processes import Airflow, Deployment, Run
from testing.metrics_project import declare
from testing.project import LOAD, NAME

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PASSWORDS = {"admin": "only-for-this-test-1", "viewer": "only-for-this-test-2"}
SCRIPT = "<script>document.title = 'hacked'</script>"
ODD_NAME = f'Zoë "Bo" {SCRIPT}'


REJECTED = 3000


@dataclass
class Warehouse:
    """A running Airflow with three runs and, after the green one, a release published by hand.

    Attributes:
        states: the folders of Airflow's metadata and the warehouse as they were, by name.
    """

    airflow: Airflow
    failed_load: Run
    failed_test: Run
    green: Run
    states: dict[str, Path]
    by_hand: str = "by-hand"

    @property
    def deployment(self) -> Deployment:
        return self.airflow.deployment

    @property
    def url(self) -> str:
        return f"{self.airflow.url}/warehouse"

    @property
    def release(self) -> str:
        """The id of the green run's release."""
        return str(self.green.result("publish")["release"])


@pytest.fixture(scope="package")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """Airflow with two users, a failed load, a failed test, and a green run with odd names and a rejected row.

    It stops after the pages' tests: an idle Airflow takes part of a core from later ones.
    """
    deployment = Deployment(tmp_path_factory.mktemp("ui"))
    deployment.env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = "admin:admin,viewer:viewer"
    deployment.env["PUBLISH_GATE"] = "25"
    deployment.initialise()
    passwords = deployment.root / "airflow" / "simple_auth_manager_passwords.json.generated"
    passwords.write_text(json.dumps(PASSWORDS))
    with deployment.running() as airflow:
        yield prepare(airflow)


def prepare(airflow: Airflow) -> Warehouse:
    deployment = airflow.deployment
    states = {"nothing published": _copy(deployment, "nothing published")}
    quoted = ODD_NAME.replace('"', '""')
    deployment.append("raw_customers", f'101,"{quoted}",Lee')
    deployment.append("raw_payments", f"114,1,coupon,{SCRIPT}")
    deployment.append("raw_payments", "\n".join(f"{1000 + number},1,coupon,n/a" for number in range(REJECTED - 1)))
    green = airflow.trigger(NAME, max_rejected_rows=REJECTED)
    assert green.state == "success", green.tasks()
    deployment.restore_data()
    with duckdb.connect(str(deployment.warehouse / f"{NAME}.duckdb")) as connection:
        connection.execute("delete from marts.orders where order_id = 99")
    deployment.command("publish", Warehouse.by_hand)
    declare(deployment.warehouse / "artifacts" / Warehouse.by_hand, deployment.root / "with metrics")
    states["green"] = _copy(deployment, "green")
    deployment.append("raw_orders", f"100,1,{SCRIPT},placed")
    failed_load = airflow.trigger(NAME)
    assert failed_load.tasks()[LOAD] == "failed"
    states["failed load"] = _copy(deployment, "failed load")
    deployment.restore_data()
    deployment.append("raw_customers", "7,Ann,Lee")
    failed_test = airflow.trigger(NAME)
    assert failed_test.tasks()["transform.stg_customers.test"] == "failed"
    states["failed test"] = _copy(deployment, "failed test")
    deployment.restore_data()
    return Warehouse(airflow, failed_load, failed_test, green, states)


def _copy(deployment: Deployment, name: str) -> Path:
    """Copy Airflow's metadata and the warehouse, between runs."""
    folder = deployment.root / "states" / name.replace(" ", "-")
    (folder / "warehouse").mkdir(parents=True)
    if deployment.warehouse.exists():
        copy_folder(deployment.warehouse, folder / "warehouse")
    copy_metadata(deployment.root / "airflow" / "airflow.db", folder / "airflow.db")
    return folder


def copy_folder(source: Path, to: Path) -> None:
    """Copy what is in a folder, with its hard links: what is published is a link to its release."""
    subprocess.run(["cp", "-a", f"{source}/.", str(to)], check=True)


def copy_metadata(source: Path, to: Path) -> None:
    """Copy a SQLite database, also one that is in use, over another."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(to)) as new:
        old.backup(new)


def with_plugins(deployment: Deployment) -> dict[str, str]:
    """Return an environment in which the plugins' modules can be imported."""
    folders = [deployment.env["PYTHONPATH"], deployment.env["AIRFLOW__CORE__PLUGINS_FOLDER"]]
    return {**deployment.env, "PYTHONPATH": os.pathsep.join(folders)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: on Debian, apt-get install chromium")
    quiet = [
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, *root])
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A logged-in user's browser page, and the problems found in it."""

    page: Page
    problems: list[str] = field(default_factory=list)


Open = Callable[..., Visitor]


@pytest.fixture(scope="module")
def logins(browser: Browser, warehouse: Warehouse) -> dict[str, Any]:
    """Each user's browser storage after logging in through Airflow's form."""
    kept = {}
    for user, password in PASSWORDS.items():
        context = browser.new_context()
        page = context.new_page()
        page.goto(warehouse.url + "/")
        page.get_by_label("Username").fill(user)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{warehouse.url}/")
        kept[user] = context.storage_state()
        context.close()
    return kept


@pytest.fixture
def open_page(browser: Browser, warehouse: Warehouse, logins: dict[str, Any]) -> Iterator[Open]:
    """Open a page for a user; the test fails if the page reported any problem."""
    contexts: list[BrowserContext] = []
    visitors: list[Visitor] = []

    def open_(user: str = "admin", theme: str = "light", width: int = 1280) -> Visitor:
        context = browser.new_context(
            storage_state=logins[user], viewport={"width": width, "height": 900}, accept_downloads=True
        )
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        contexts.append(context)
        visitor = Visitor(context.new_page())
        visitors.append(visitor)

        def console(message: ConsoleMessage) -> None:
            if message.type == "error":
                visitor.problems.append(f"console: {message.text}")

        def request(request: Request) -> None:
            if not request.url.startswith((warehouse.airflow.url, "data:", "blob:")):
                visitor.problems.append(f"left the host: {request.url}")

        visitor.page.on("console", console)
        visitor.page.on("pageerror", lambda error: visitor.problems.append(f"error: {error}"))
        context.on("request", request)
        return visitor

    yield open_
    for context in contexts:
        context.close()
    assert [problem for visitor in visitors for problem in visitor.problems] == []
