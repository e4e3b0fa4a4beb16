"""Password guessing, logout and security headers, with both auth managers.

The api-server runs with the embedded mode's simple logins, and with FAB behind a proxy as in the compose deployment.
"""

import contextlib
import html
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from testing.airflow_processes import START_SECONDS, Deployment, interrupt_with_parent
from testing.project import PROJECT
from testing.targets import free_port
from tests.ui.conftest import PASSWORDS, with_plugins

pytestmark = [pytest.mark.ui, pytest.mark.long, pytest.mark.timeout(900)]

FAB = {
    "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
    # The proxy settings of docs/deployment.md.
    "FORWARDED_ALLOW_IPS": "*",
    "AIRFLOW__FAB__ENABLE_PROXY_FIX": "True",
    "AIRFLOW__FAB__CACHE_TTL": "1",
}
GUESSES, GUESSES_OF_USER, SECONDS = 5, 20, 40


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Server:
    """An api-server; each call can come from a different address."""

    port: int
    is_fab: bool
    _addresses: Iterator[str] = field(default_factory=lambda: (f"127.9.{n // 250}.{n % 250 + 1}" for n in range(2000)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def new_address(self) -> str:
        return next(self._addresses)

    def ask(self, method: str, path: str, body: bytes | None = None, address: str = "", **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        source = None
        if address and self.is_fab:
            sent["X-Forwarded-For"] = address
        elif address:
            source = (address, 0)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120, source_address=source)
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            lines = {name.lower(): "\n".join(answer.headers.get_all(name, [])) for name in answer.headers}
            return Answer(answer.status, lines, answer.read().decode(errors="replace"))

    def log_in(self, user: str, password: str, address: str, path: str = "/auth/token", **headers: str) -> Answer:
        body = json.dumps({"username": user, "password": password}).encode()
        return self.ask("POST", path, body, address, Content_Type="application/json", **headers)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    deployment = Deployment(tmp_path_factory.mktemp("login"))
    deployment.env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = "admin:admin,viewer:viewer"
    home = Path(deployment.env["AIRFLOW_HOME"])
    home.mkdir()
    (home / "simple_auth_manager_passwords.json.generated").write_text(json.dumps(PASSWORDS))
    person = ("--firstname", "A", "--lastname", "B", "--email")
    commands = [["db", "migrate"]]
    for user, password in PASSWORDS.items():
        role = ("--role", user.capitalize(), "--password", password)
        commands.append(["users", "create", "--username", user, *role, *person, f"{user}@localhost"])
    for command in commands:
        env = deployment.env | FAB
        subprocess.run(["airflow", *command], env=env, cwd=PROJECT, check=True, capture_output=True)
    return deployment


@pytest.fixture(scope="module", params=["simple", "fab"])
def server(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[Server]:
    server = Server(free_port(), request.param == "fab")
    address = {"AIRFLOW__API__PORT": str(server.port), "AIRFLOW__API__BASE_URL": server.url}
    process = subprocess.Popen(
        ["airflow", "api-server", *(["--proxy-headers"] if server.is_fab else [])],
        env=deployment.env | (FAB if server.is_fab else {}) | address,
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=interrupt_with_parent,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if server.ask("GET", "/api/v2/monitor/health").status == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline, "the api-server did not start"
            time.sleep(0.3)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_an_address_gets_five_guesses(server: Server) -> None:
    address = server.new_address()
    paths = ("/auth/token", "/auth/token/cli") * 30
    answers = [server.log_in("admin", f"wrong-{at}", address, path) for at, path in enumerate(paths)]
    assert [one.status for one in answers] == [401] * GUESSES + [429] * (60 - GUESSES)
    assert 0 < int(answers[-1].headers["retry-after"]) <= SECONDS
    assert server.log_in("admin", PASSWORDS["admin"], address).status == 429
    assert server.log_in("admin", PASSWORDS["admin"], server.new_address()).status == 201
    if server.is_fab:
        return  # the same wait again
    # After Retry-After it can log in again: refused attempts have not extended the wait.
    time.sleep(int(server.log_in("admin", "wrong", address).headers["retry-after"]))
    assert server.log_in("admin", PASSWORDS["admin"], address).status == 201


def test_correct_passwords_do_not_count(server: Server) -> None:
    address = server.new_address()
    for path in ("/auth/token", "/auth/token/cli") * 6:
        assert server.log_in("admin", PASSWORDS["admin"], address, path).status == 201
    with ThreadPoolExecutor(20) as pool:
        together = pool.map(lambda _: server.log_in("admin", PASSWORDS["admin"], address).status, range(20))
        assert set(together) == {201}


def test_concurrent_guesses_are_counted(server: Server) -> None:
    address = server.new_address()
    with ThreadPoolExecutor(20) as pool:
        statuses = Counter(pool.map(lambda at: server.log_in("admin", f"wrong-{at}", address).status, range(40)))
    assert statuses == {401: GUESSES, 429: 40 - GUESSES}


def test_a_user_name_gets_twenty_guesses_across_addresses(server: Server) -> None:
    """Whatever the spelling, and even in a body that is both a form and JSON."""
    both = b'{"username": "nobody", "password": "wrong", "a": "&username=viewer&password=wrong&b="}'
    bodies = [
        (b'{"username": "viewer", "password": "wrong"}', "application/json"),
        (b'{"username": "VIEWER ", "password": "wrong"}', "application/json"),
        ('{"username": "viewer", "password": "wrong"}'.encode("utf-16"), "application/json"),
        (both, "application/x-www-form-urlencoded" if not server.is_fab else "application/json"),
    ]
    for _ in range(GUESSES_OF_USER // len(bodies)):
        address = server.new_address()
        for body, kind in bodies:
            assert server.ask("POST", "/auth/token", body, address, Content_Type=kind).status in (401, 422)
    assert server.log_in("viewer", PASSWORDS["viewer"], server.new_address()).status == 429
    assert server.log_in("admin", PASSWORDS["admin"], server.new_address()).status == 201


def test_an_ipv6_slash_64_counts_as_one_address(server: Server) -> None:
    if not server.is_fab:
        pytest.skip("needs IPv6 addresses, which only a proxy can report here")
    statuses = [server.log_in("nobody", "wrong", f"2001:db8:0:1::{at}").status for at in range(1, 8)]
    assert statuses == [401] * GUESSES + [429] * 2
    assert server.log_in("nobody", "wrong", "2001:db8:0:2::1").status == 401
    assert server.log_in("nobody", "wrong", "::ffff:192.0.2.1").status == 401


def test_without_a_proxy_x_forwarded_for_is_ignored(server: Server) -> None:
    if server.is_fab:
        pytest.skip("FAB runs behind a proxy here")
    address = server.new_address()
    statuses = [server.log_in("x", "wrong", address, X_Forwarded_For=f"192.0.2.{at}").status for at in range(7)]
    assert statuses == [401] * GUESSES + [429] * 2


def test_the_form_and_every_api_share_one_limit(server: Server) -> None:
    if not server.is_fab:
        pytest.skip("the simple login form uses the API")
    address = server.new_address()
    page = server.ask("GET", "/auth/login/", address=address)
    csrf = html.unescape(re.findall(r'csrf_token[^>]*value="([^"]*)"', page.text)[0])
    session = page.headers["set-cookie"].split(";")[0]

    def form(password: str, path: str = "/auth/login/") -> Answer:
        fields = {"csrf_token": csrf, "username": "admin", "password": password}
        body = urllib.parse.urlencode(fields).encode()
        kind = "application/x-www-form-urlencoded"
        return server.ask("POST", path, body, address, Content_Type=kind, Cookie=session)

    for path in ("/auth/login/", "/auth//login/"):
        assert form("wrong", path).headers["location"].partition("?")[0].endswith("/auth/login/")
    right = form(PASSWORDS["admin"])
    assert right.status == 302 and "_token=" in right.headers["set-cookie"]
    own_api = "/auth/api/v1/security/login"
    body = json.dumps({"username": "admin", "password": "wrong", "provider": "db"}).encode()
    assert server.ask("POST", own_api, body, address, Content_Type="application/json").status == 401
    assert server.log_in("admin", "wrong", address).status == 401
    assert server.log_in("admin", "wrong", address, "/auth/token/cli").status == 401
    for path in ("/auth/token", "/auth/token/cli", own_api, own_api.replace("/v1", "//v1"), "/auth/login/"):
        assert server.log_in("admin", PASSWORDS["admin"], address, path).status == 429, path


def test_the_caddy_example_stops_clients_from_spoofing_their_address(server: Server, tmp_path: Path) -> None:
    if not server.is_fab:
        pytest.skip("the simple login runs without a proxy here")
    if not (caddy := shutil.which("caddy")):
        pytest.skip("no Caddy: on Debian, apt-get install caddy")
    example = re.findall(r"^(airflow\.example\.com {.*?^})", (PROJECT / "docs/deployment.md").read_text(), re.M | re.S)[
        0
    ]
    port = free_port()
    example = example.replace("airflow.example.com", f"http://127.0.0.1:{port}").replace("8080", str(server.port))
    (tmp_path / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{example}\n")
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [caddy, "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, preexec_fn=interrupt_with_parent)
    try:
        proxy = Server(port, is_fab=True)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                if proxy.ask("GET", "/api/v2/version").status == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline, "Caddy did not start"
            time.sleep(0.1)
        statuses = [proxy.log_in("nobody", "wrong", f"192.0.2.{at}").status for at in range(7)]
        assert statuses == [401] * GUESSES + [429] * 2
        assert proxy.ask("GET", "/execution/health").status == 404
    finally:
        process.kill()
        process.wait()


def test_a_login_body_that_hides_the_user_name_is_refused(server: Server) -> None:
    boundary = "multipart/form-data; boundary=x"
    body = b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\nadmin\r\n--x--\r\n'
    for path in ("/auth/login/", "/auth/token"):
        assert server.ask("POST", path, body, server.new_address(), Content_Type=boundary).status == 400
    assert server.log_in("admin", "x" * 20_000, server.new_address()).status == 400
    assert server.log_in("admin", "x" * 200_000, server.new_address()).status == 400


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_cannot_log_a_user_out(server: Server, site: str) -> None:
    for path in ("/api/v2/auth/logout", "/auth/logout", "/auth/logout/", "/auth//logout/"):
        answer = server.ask("GET", path, Sec_Fetch_Site=site)
        assert answer.status == 403 and "set-cookie" not in answer.headers, path
    for headers in ({"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}, {}):
        assert server.ask("GET", "/api/v2/auth/logout", **headers).status == 307


def test_every_response_has_the_security_headers(server: Server) -> None:
    token = json.loads(server.log_in("admin", PASSWORDS["admin"], server.new_address()).text)["access_token"]
    paths = ("/", "/dags", "/auth/login", "/api/v2/version", "/api/v2/dags", "/execution/health", "/nothing", "/docs")
    for path in (*paths, "/static/pin_32.png", "/static/assets/none.js"):
        for headers in ({}, {"Authorization": f"Bearer {token}"}):
            answer = server.ask("GET", path, **headers).headers
            assert answer["x-content-type-options"] == "nosniff", path
            assert answer["x-frame-options"] == "SAMEORIGIN", path
            assert answer["referrer-policy"] == "same-origin", path
            policy = answer["content-security-policy"]
            assert "frame-ancestors 'self'" in policy and "http" not in policy and "*" not in policy, path
            assert ("script-src 'self' 'unsafe-inline'" in policy) == path.startswith("/auth/"), path


def test_a_token_can_what_its_owner_can_at_that_moment(server: Server, deployment: Deployment) -> None:
    if not server.is_fab:
        pytest.skip("the simple login's users are fixed while it runs")
    login = json.loads(server.log_in("admin", PASSWORDS["admin"], server.new_address()).text)["access_token"]
    form = {"Content_Type": "application/x-www-form-urlencoded", "Authorization": f"Bearer {login}"}
    page = server.ask("POST", "/warehouse/tokens", b"name=report&days=7", **form).text
    token = f"Bearer {re.findall(r'elt_[A-Za-z0-9_-]{43}', page)[0]}"
    role = "update ab_user_role set role_id = (select id from ab_role where name = '{}') where user_id = {}"
    with contextlib.closing(sqlite3.connect(Path(deployment.env["AIRFLOW_HOME"]) / "airflow.db", timeout=60)) as users:
        (admin,) = users.execute("select id from ab_user where username = 'admin'").fetchone()

        def after(*changes: str) -> tuple[int, int]:
            """Return the status of reading and of a query; 400: it may run, but nothing is published."""
            for change in changes:
                users.execute(change)
            users.commit()
            time.sleep(1.2)  # FAB's own cache of users
            reads = server.ask("GET", "/warehouse/api/runs", Authorization=token).status
            sql = {"Content_Type": "application/json", "Authorization": token}
            return reads, server.ask("POST", "/warehouse/api/query", b'{"sql": "select 1"}', **sql).status

        try:
            assert after() == (200, 400)
            assert after(role.format("Viewer", admin)) == (200, 403)
            assert after(role.format("Public", admin)) == (403, 403)
            assert after(role.format("Admin", admin), f"update ab_user set active = 0 where id = {admin}") == (401, 401)
            renamed = f"update ab_user set active = 1, username = 'other' where id = {admin}"
            assert after(renamed) == (401, 401), "an id can be another user's later"
            assert after(f"update ab_user set username = 'admin' where id = {admin}") == (200, 400)
        finally:
            after(role.format("Admin", admin), f"update ab_user set active = 1, username = 'admin' where id = {admin}")


_SIMPLE = """
import os
from airflow import settings
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.utils.session import create_session
from warehouse_ui import tokens

settings.initialize()
init_auth_manager()
with create_session() as session:
    admin = SimpleAuthManagerUser(username="admin", role="admin")
    text = tokens.make(session, admin, "jaffle_shop", "of the simple login", (), 7)
for users in ("admin:admin", "admin:viewer", "other:admin", "admin:admin"):
    os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = users
    login = tokens.log_in(text)
    print("role", login.user.role if login else None)
try:
    with create_session() as session:
        nobody = SimpleAuthManagerUser(username="nobody", role="admin")
        tokens.make(session, nobody, "jaffle_shop", "x", (), 7)
except tokens.TokenError as error:
    print(error)
"""


@pytest.mark.long
def test_a_token_of_the_simple_login_follows_its_configuration(deployment: Deployment) -> None:
    env = with_plugins(deployment)
    made = subprocess.run(
        [sys.executable, "-c", _SIMPLE], env=env, cwd=PROJECT, check=True, capture_output=True, text=True
    )
    lines = made.stdout.splitlines()
    assert [one for one in lines if one.startswith("role")] == ["role admin", "role viewer", "role None", "role admin"]
    assert lines[-1] == "Tokens are for users of Airflow's simple login or of FAB, not for this one."


def test_fabs_pages_work_under_the_csp(server: Server, browser: Browser) -> None:
    """Airflow's own pages are in test_browser.py."""
    if not server.is_fab:
        pytest.skip("only FAB has these pages")
    problems: list[str] = []
    context = browser.new_context(extra_http_headers={"X-Forwarded-For": server.new_address()})
    with contextlib.closing(context):
        page = context.new_page()
        page.on("console", lambda one: problems.append(one.text) if "Content Security Policy" in one.text else None)
        page.goto(server.url)
        page.locator("input[name=username]").fill("admin")
        page.locator("input[name=password]").fill(PASSWORDS["admin"])
        page.locator("input[type=submit]").click()
        page.wait_for_url(f"{server.url}/")
        for path, text in (
            ("/security/users", "List Users"),
            ("/security/roles", "List Roles"),
            ("/security/permissions", "Permission"),
        ):
            page.goto(server.url + path)
            page.frame_locator("iframe").get_by_text(text).first.wait_for()
        for path, text in (("/auth/users/add", "Add User"), ("/auth/users/userinfo/", "admin")):
            page.goto(server.url + path)
            page.get_by_text(text).first.wait_for()
    assert problems == []
