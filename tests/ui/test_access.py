"""Access: nothing without a login, viewers only what they may see, and nothing for other sites."""

import asyncio
import contextlib
import html
import json
import re
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

import duckdb
import duckdb_extensions
import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from testing.airflow_processes import Run
from testing.project import LOAD, NAME, PROJECT
from tests.ui.conftest import ODD_NAME, PASSWORDS, REJECTED, SCRIPT, Warehouse, with_plugins
from tests.ui.test_browser import FAILING

pytestmark = [pytest.mark.ui, pytest.mark.timeout(1800)]

QUERY_PAGES = ("/query", "/query.csv", "/query.parquet")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, names, method=method)
    try:
        with _opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace"), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


@pytest.fixture(scope="module")
def routes(warehouse: Warehouse) -> list[tuple[str, str]]:
    """Return every path and method of the app, with parameters that name existing objects."""
    program = (
        "import json, warehouse_ui.app; app = warehouse_ui.app.create_app('/warehouse', '');"
        "print(json.dumps([[r.path, m] for r in app.routes for m in r.methods if m != 'HEAD']))"
    )
    made = subprocess.run(
        [sys.executable, "-c", program],
        env=with_plugins(warehouse.deployment),
        cwd=PROJECT,
        capture_output=True,
        check=True,
    )
    known = {
        "schema": "marts",
        "table": "customers",
        "unique_id": "test.analytics.unique_customers_customer_id.c5af1ff4b1",
        "release_id": warehouse.release,
        "task_id": "transform.customers.run",
        "name": "app.js",
        "file": "marts.customers.csv",
        "token_id": "1",
    }
    found = [(path, method) for path, method in json.loads(made.stdout.decode().splitlines()[-1])]
    assert len(found) > 25
    return [(re.sub(r"\{(\w+)\}", lambda match: known[match[1]], path), method) for path, method in found]


def token(warehouse: Warehouse, user: str) -> str:
    login = {"username": user, "password": PASSWORDS[user]}
    return str(warehouse.airflow.call("POST", "/auth/token", login)["access_token"])


@pytest.fixture(scope="module")
def viewer(warehouse: Warehouse) -> str:
    return f"Bearer {token(warehouse, 'viewer')}"


@pytest.fixture(scope="module")
def admin(warehouse: Warehouse) -> str:
    return f"Bearer {token(warehouse, 'admin')}"


def make_token(warehouse: Warehouse, owner: str, name: str = "", scope: str = "", days: int = 7) -> str:
    """Make a token as its owner does on the page; it is named at random if not otherwise."""
    form = {"name": name or uuid.uuid4().hex, "scope": scope, "days": days}
    sent = {"Content_Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
    body = urllib.parse.urlencode(form).encode()
    status, page, _ = ask(f"{warehouse.url}/tokens", "POST", body, Authorization=owner, **sent)
    found = re.search(r"elt_[\w-]{43}", page)
    assert status == 200 and found, page
    return found[0]


def published(warehouse: Warehouse) -> str:
    return str(warehouse.airflow.call("GET", "/warehouse/api/overview")["release"]["id"])


def call_tools(
    warehouse: Warehouse, login: str, asked: dict[str, dict[str, Any]], path: str = "/mcp"
) -> dict[str, CallToolResult]:
    """Call tools of the MCP server, with the client of the official SDK."""

    async def call() -> dict[str, CallToolResult]:
        async with (
            httpx2.AsyncClient(headers={"Authorization": login}, timeout=60) as http,
            Client(streamable_http_client(f"{warehouse.url}{path}", http_client=http)) as client,
        ):
            assert {one.name for one in (await client.list_tools()).tools} >= asked.keys()
            return {name: await client.call_tool(name, arguments) for name, arguments in asked.items()}

    return asyncio.run(call())


def test_every_route_requires_a_login(warehouse: Warehouse, routes: list[tuple[str, str]]) -> None:
    answers = {(path, method): ask(warehouse.url + path, method)[0] for path, method in routes}
    answers |= {(f"/w/{NAME}{path}", "GET"): ask(f"{warehouse.url}/w/{NAME}{path}")[0] for path in ("/", "/tables")}
    assert {call: status for call, status in answers.items() if status != 401} == {}


def test_a_browser_without_a_login_is_redirected_to_the_login_page(
    warehouse: Warehouse, routes: list[tuple[str, str]]
) -> None:
    for path, method in routes:
        if method == "GET":
            status, body, headers = ask(warehouse.url + path, Accept="text/html")
            assert status in (302, 303) and body == "", path
            assert headers["location"].startswith("/api/v2/auth/login?next="), path


def test_a_viewer_sees_every_page_except_query_and_rollback(
    warehouse: Warehouse, routes: list[tuple[str, str]], viewer: str
) -> None:
    run = urllib.parse.quote(warehouse.green.id)
    refused = set()
    for path, method in routes:
        status, _, _ = ask(f"{warehouse.url}{path}?run_id={run}", method, b"", Authorization=viewer)
        if status == 403:
            refused.add((method, path))
        else:  # a viewer has tokens, too; these requests lack what they need
            assert status in (200, 307) or path.startswith(("/tokens", "/mcp", "/api/metrics/query")), (
                method,
                path,
                status,
            )
    expected = {
        (method, path)
        for path, method in routes
        if (method == "POST" and not path.startswith(("/tokens", "/mcp")))
        or path == "/query"
        or path.endswith("/rollback")
    }
    assert ("POST", "/incident/clear") in expected
    assert refused == expected


def test_a_viewer_sees_no_personal_data(
    warehouse: Warehouse, routes: list[tuple[str, str]], viewer: str, admin: str
) -> None:
    pages = [
        "/tables/marts/customers",
        "/api/tables/marts/customers",
        "/api/tables/marts/customers/profile",
        "/quality",
        "/api/quality",
    ]
    pages += [
        "/tables/jaffle_shop_raw/raw_customers",
        "/tables/staging/stg_customers",
        "/tables/jaffle_shop_raw/rejected_rows",
        "/files/marts.customers.csv",
        "/files/staging.stg_customers.csv",
        f"/incident?run_id={urllib.parse.quote(warehouse.failed_test.id)}",
        f"/tests/{FAILING}",
        f"/api/tests/{FAILING}",
        "/metrics?metric=revenue&by=customer__first_name",
        "/api/metrics/query?metric=revenue&by=customer__first_name",
    ]
    with duckdb.connect(str(warehouse.deployment.published), read_only=True) as connection:
        names = {
            name
            for row in connection.execute("select first_name, last_name from marts.customers").fetchall()
            for name in row
        }
    names = {name for name in names if len(name) > 4} | {"hacked"}
    program = f"Bearer {make_token(warehouse, viewer)}"
    seen_by_admin = False
    for page in pages:
        shown = ask(warehouse.url + page, Authorization=viewer, Accept="text/html")[1]
        assert len(shown) > 100
        if page.startswith(("/api", "/files")):
            shown += ask(warehouse.url + page, Authorization=program)[1]
        assert {name for name in names if re.search(rf"\b{re.escape(name)}\b", shown)} == set(), page
        allowed = ask(warehouse.url + page, Authorization=admin, Accept="text/html")[1]
        seen_by_admin |= any(name in allowed for name in names)
    assert seen_by_admin
    asked = {
        "list_tables": {},
        "describe_table": {"table": "marts.customers"},
        "search": {"words": "customer"},
        "query": {"sql": "from marts.customers"},
        "explain_failure": {"run_id": warehouse.failed_test.id},
        "list_releases": {},
        "compare_releases": {"older": warehouse.release, "newer": published(warehouse)},
        "list_metrics": {},
        "query_metrics": {"metric": ["revenue"], "by": ["customer__first_name"]},
    }
    for one in (viewer, program):
        told = call_tools(warehouse, one, asked)
        assert {name for name in names if re.search(rf"\b{re.escape(name)}\b", str(told))} == set()
        assert {name for name, answer in told.items() if answer.is_error} == {"query", "query_metrics"}
    told = call_tools(warehouse, admin, asked)
    assert any(name in str(told) for name in names) and not any(one.is_error for one in told.values())


def test_names_with_html_are_escaped_everywhere(warehouse: Warehouse, admin: str) -> None:
    written = urllib.parse.quote(SCRIPT)
    unknown = "/tables/a/%3Cscript%3Edocument.title"
    pages = ("/quality", "/tables/jaffle_shop_raw/rejected_rows", f"/query?sql={written}", unknown)
    shown = {page: ask(warehouse.url + page, Authorization=admin, Accept="text/html")[1] for page in pages}
    query = f'select first_name, 1 as "{SCRIPT}" from marts.customers where customer_id = 101'
    sql = urllib.parse.urlencode({"sql": query})
    form = {"Content_Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
    shown["query"] = ask(warehouse.url + "/query", "POST", sql.encode(), Authorization=admin, **form)[1]
    assert ODD_NAME in html.unescape(shown["query"])
    for page, text in shown.items():
        assert SCRIPT not in text and "&lt;script&gt;document.title" in text, page


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1", "Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
    ],
)
def test_another_site_cannot_post_with_a_users_cookie(warehouse: Warehouse, headers: dict[str, str]) -> None:
    cookie = f"_token={token(warehouse, 'admin')}"
    release = warehouse.release
    for path in (
        "/query",
        "/query.csv",
        f"/releases/{release}/rollback",
        f"/releases/{release}/decision",
        "/api/query",
        f"/api/releases/{release}/rollback",
        "/api/hold/release",
        "/release-hold",
        "/incident/clear",
        "/incident/start",
        "/incident/note",
        "/tokens",
        "/tokens/1/revoke",
        "/mcp",
    ):
        status, _, _ = ask(warehouse.url + path, "POST", b"sql=select+1", Cookie=cookie, **headers)
        assert status == 403, path
    origin = warehouse.airflow.url
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert ask(warehouse.url + "/query", "POST", b"sql=select+1", Cookie=cookie, Origin=origin, **form)[0] == 200


def test_every_response_has_a_csp_that_forbids_other_hosts(
    warehouse: Warehouse, routes: list[tuple[str, str]], admin: str
) -> None:
    for path, method in routes:
        if method == "GET":
            policy = ask(warehouse.url + path, Authorization=admin)[2]["content-security-policy"]
            assert policy.startswith("default-src 'none'") and "http" not in policy and "*" not in policy
            assert ("unsafe" in policy) == path.rstrip("/").endswith("/dbt-docs"), path


def test_cosmos_serves_no_docs_without_a_login(warehouse: Warehouse) -> None:
    for path in (
        "/cosmos/dbt_docs_index.html",
        "/cosmos/core/dbt_docs_index.html",
        f"/cosmos/{NAME}/manifest.json",
        "/cosmos/openapi.json",
    ):
        status, body, _ = ask(warehouse.airflow.url + path)
        assert status in (401, 403, 404) or "jaffle" not in body, path


def test_the_api_returns_what_the_pages_show(warehouse: Warehouse, admin: str) -> None:
    def get(path: str) -> Any:
        return json.loads(ask(warehouse.url + path, Authorization=admin)[1])

    overview = get("/api/overview?runs=90")
    assert overview["release"]["run_id"] == warehouse.by_hand
    assert overview["freshness"]["status"] == "fresh"
    stages = {run["run_id"]: (run["state"], run["stage"]) for run in overview["runs"]}
    assert stages[warehouse.green.id] == ("success", "")
    assert stages[warehouse.failed_test.id] == ("failed", "test")
    assert stages[warehouse.failed_load.id] == ("failed", "load")
    green = next(run for run in overview["runs"] if run["run_id"] == warehouse.green.id)
    assert green["rejected"]["raw_payments"] == REJECTED
    assert {table["name"] for table in get("/api/tables")} >= {"customers", "orders", "stg_orders", "raw_orders"}
    changes = [(one["run_id"], one["published"], one["changes"]) for one in get("/api/releases")]
    assert get("/api/snapshots") == get("/api/releases")
    assert changes == [(warehouse.by_hand, True, {"marts.orders": -1}), (warehouse.green.id, False, None)]
    body = json.dumps({"sql": "select count(*) as n from marts.customers"}).encode()
    answer = ask(warehouse.url + "/api/query", "POST", body, Authorization=admin, Content_Type="application/json")
    assert json.loads(answer[1])["rows"] == [["101"]]


def test_a_table_is_read_over_http_with_a_token_and_ranges(warehouse: Warehouse, admin: str, viewer: str) -> None:
    url = f"{warehouse.url}/files/marts.orders.parquet"
    read = urllib.request.Request(url, headers={"Authorization": admin})
    with _opener.open(read, timeout=60) as answer:
        whole, headers = answer.read(), answer.headers
    assert (
        headers["Content-Type"] == "application/vnd.apache.parquet" and headers["Cache-Control"] == "private, no-cache"
    )
    assert int(headers["Content-Length"]) == len(whole)
    assert ask(url, "HEAD", Authorization=admin)[2]["content-length"] == str(len(whole))
    status, body, part = ask(url, Authorization=admin, Range="bytes=0-3")
    assert (status, body, part["content-range"]) == (206, "PAR1", f"bytes 0-3/{len(whole)}")
    assert ask(url, Authorization=admin, If_None_Match=headers["ETag"])[:2] == (304, "")
    other = {"Authorization": admin, "Range": "bytes=0-3", "If-Range": '"another release"'}
    with _opener.open(urllib.request.Request(url, headers=other), timeout=60) as answer:
        assert answer.status == 200

    with duckdb.connect() as connection:
        duckdb_extensions.import_extension("httpfs", con=connection)
        connection.execute("load httpfs")
        connection.execute(f"create secret (type http, bearer_token '{viewer.split()[1]}')")
        read_rows = connection.execute(f"select count(*), sum(amount) from '{url}'").fetchone()
        old = connection.execute(f"select count(*), max(order_id) from '{url}?release={warehouse.release}'").fetchone()
    with duckdb.connect(str(warehouse.deployment.published), read_only=True) as connection:
        assert read_rows == connection.execute("select count(*), sum(amount) from marts.orders").fetchone()
    assert old == (99, 99), "the kept release still has the order that the published one lacks"
    kept = ask(f"{url}?release={warehouse.release}", "HEAD", Authorization=admin)[2]
    assert kept["x-release"] == warehouse.release != headers["X-Release"]
    assert kept["etag"] != headers["ETag"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("marts.nothing.csv", "staging.stg_orders"),
        ("marts.orders.xlsx", ".parquet or .csv"),
        ("jaffle_shop_raw.raw_orders.csv", "marts.orders"),
        ("..%2F..%2Fairflow.cfg", "marts.orders"),
        ("marts.orders.csv?release=../../x", "Kept: "),
    ],
)
def test_an_unknown_file_or_release_is_refused_with_what_there_is(
    warehouse: Warehouse, admin: str, path: str, message: str
) -> None:
    status, body, _ = ask(f"{warehouse.url}/files/{path}", Authorization=admin)
    assert status == 404 and ("%2F" in path or message in body), body


@pytest.mark.long
def test_no_generated_request_makes_the_api_fail(warehouse: Warehouse, admin: str) -> None:
    headers = {"Authorization": admin}
    schema = schemathesis.openapi.from_url(warehouse.url + "/api/openapi.json", headers=headers)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 10
    statuses: dict[str, set[int]] = {}
    for operation in operations:

        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            answer = case.call(headers=headers)
            statuses.setdefault(case.operation.label, set()).add(answer.status_code)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)

        send()
    assert len(statuses) == len(operations)


def statuses(warehouse: Warehouse, bearer: str, *calls: str) -> list[int]:
    """Return the status of `METHOD PATH` below the section, or of a URL."""
    found = []
    for call in calls:
        method, _, path = call.partition(" ")
        url = path if path.startswith("http") else warehouse.url + path
        body = b'{"sql": "select 1"}' if method == "POST" else None
        found.append(ask(url, method, body, Authorization=bearer, Content_Type="application/json")[0])
    return found


def test_a_token_reads_what_its_owner_may_and_changes_nothing(warehouse: Warehouse, admin: str, viewer: str) -> None:
    own = f"Bearer {make_token(warehouse, admin)}"
    reads = ("GET /files/marts.orders.parquet", "HEAD /files/marts.orders.csv", "GET /api/overview", "GET /api/quality")
    assert statuses(warehouse, own, *reads, "POST /api/query") == [200] * 5
    assert ask(f"{warehouse.url}/query.csv", "POST", b"sql=select+1+as+n", Authorization=own)[:2] == (200, "n\r\n1\r\n")
    viewers = f"Bearer {make_token(warehouse, viewer)}"
    assert statuses(warehouse, viewers, *reads, "POST /api/query") == [200] * 4 + [403]
    changes = (
        "GET /",
        "GET /tables",
        "GET /tokens",
        "POST /tokens",
        "POST /tokens/1/revoke",
        "POST /query",
        f"POST /releases/{warehouse.release}/rollback",
        f"POST /api/releases/{warehouse.release}/rollback",
        "POST /incident/start",
        "POST /incident/clear",
        "POST /release-hold",
        "POST /api/hold/release",
    )
    assert statuses(warehouse, own, *changes) == [403] * len(changes)
    elsewhere = ("/api/v2/dags", "/api/v2/connections", "/warehouse", "/dags", "//warehouse/api/overview")
    assert set(statuses(warehouse, own, *(f"GET {warehouse.airflow.url}{path}" for path in elsewhere))) <= {401, 403}
    assert statuses(warehouse, own, "GET /w/other/api/overview") == [403]


def test_a_token_for_some_tables_reads_no_others(warehouse: Warehouse, admin: str) -> None:
    own = f"Bearer {make_token(warehouse, admin, scope='marts.orders, staging')}"
    allowed = (
        "GET /files/marts.orders.csv",
        "GET /files/staging.stg_customers.csv",
        "GET /api/tables/marts/orders",
        "GET /api/tables/staging/stg_payments/profile",
    )
    assert statuses(warehouse, own, *allowed) == [200] * 4
    refused = (
        "GET /files/marts.customers.csv",
        "GET /files/MARTS.customers.csv",
        "GET /files/jaffle_shop_raw.rejected_rows.csv",
        f"GET /files/marts.customers.parquet?release={warehouse.release}",
        "GET /api/tables/marts/customers",
        "GET /api/tables/marts/customers/profile",
        "GET /api/tables/marts/orders%2F..%2Fcustomers",
    )
    assert statuses(warehouse, own, *refused) == [404] * 7
    broad = ("POST /api/query", "POST /query.csv", "GET /api/overview", "GET /api/quality", "GET /api/releases")
    broad += ("GET /api/metrics", "GET /api/metrics/query?metric=revenue")
    assert statuses(warehouse, own, *broad) == [403] * 7
    listed = json.loads(ask(f"{warehouse.url}/api/tables", Authorization=own)[1])
    found = json.loads(ask(f"{warehouse.url}/api/search?q=customer", Authorization=own)[1])
    for one in ({(one["schema"], one["name"]) for one in listed}, {(one["schema"], one["table"]) for one in found}):
        assert one and {(schema, name) for schema, name in one if schema != "staging"} <= {("marts", "orders")}
    told = call_tools(
        warehouse,
        own,
        {
            "list_tables": {},
            "describe_table": {"table": "marts.customers"},
            "query": {"sql": "select 1"},
            "explain_failure": {},
            "list_releases": {},
            "compare_releases": {"older": warehouse.release, "newer": warehouse.release},
            "list_metrics": {},
            "query_metrics": {"metric": ["revenue"]},
        },
    )
    assert "raw_customers" not in str(told["list_tables"])
    assert [name for name, one in told.items() if not one.is_error] == ["list_tables"]


def test_a_token_is_shown_once_kept_as_a_hash_and_in_no_log(warehouse: Warehouse, admin: str, viewer: str) -> None:
    text = make_token(warehouse, admin, "nightly <b>report</b>")
    own = f"Bearer {text}"
    page = ask(f"{warehouse.url}/tokens", Authorization=admin)[1]
    assert "nightly &lt;b&gt;report" in page and text not in page and "never" in page
    assert statuses(warehouse, own, "GET /api/overview", "GET /api/nothing", "GET /files/x", "POST /mcp") != []
    guesses = (text[:-1], text + "A", "elt_" + text[4:].swapcase(), f"elt_{'A' * 43}", "elt_", f"elt_{'x' * 9000}")
    answers = {ask(f"{warehouse.url}/api/overview", Authorization=f"Bearer {one}")[:2] for one in guesses}
    revoked_or_unknown = "This token is unknown, revoked or expired, or its owner may not log in."
    assert answers == {(401, json.dumps({"detail": revoked_or_unknown}, separators=(",", ":")))}
    page = ask(f"{warehouse.url}/tokens", Authorization=admin)[1]
    row = re.search(r"<tr>\s*<th scope=\"row\">nightly.*?</tr>", page, re.DOTALL)
    assert row and "never" not in row[0]
    number = re.search(r"/tokens/(\d+)/revoke", row[0])
    assert number
    assert statuses(warehouse, viewer, f"POST /tokens/{number[1]}/revoke") == [404]
    assert statuses(warehouse, own, "GET /api/overview") == [200]
    assert statuses(warehouse, admin, f"POST /tokens/{number[1]}/revoke") == [303]
    assert statuses(warehouse, own, "GET /api/overview", "GET /files/marts.orders.csv", "POST /mcp") == [401] * 3
    kept = (path for path in warehouse.deployment.root.rglob("*") if path.is_file())
    holding = [path for path in kept if text.encode() in path.read_bytes()]
    assert holding == []


def test_an_expired_token_and_a_bad_order_for_one_are_refused(warehouse: Warehouse, admin: str) -> None:
    own = f"Bearer {make_token(warehouse, admin, 'short')}"
    metadata = warehouse.deployment.root / "airflow" / "airflow.db"
    with contextlib.closing(sqlite3.connect(metadata, timeout=60)) as connection:
        connection.execute("update warehouse_token set expires_at = datetime('now', '-1 day') where name = 'short'")
        connection.commit()
    assert statuses(warehouse, own, "GET /api/overview") == [401]
    for form, message in (
        ({"name": " ", "days": "7"}, "A token needs a name."),
        ({"name": "short", "days": "7"}, "There is a token named short already."),
        ({"name": "x", "days": "9999"}, "A token is valid for"),
        ({"name": "x", "days": "7", "scope": "marts.nothing"}, "There is no schema or table marts.nothing"),
        ({"name": "x\0", "days": "7"}, "Invalid parameter in this URL."),
        ({"name": "x" * 101, "days": "7"}, "Invalid parameter in this URL."),
    ):
        body = urllib.parse.urlencode(form).encode()
        sent = {"Content_Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
        status, page, _ = ask(f"{warehouse.url}/tokens", "POST", body, Authorization=admin, **sent)
        assert status == 422 and message in page, (form, page)


def test_no_token_has_a_number_that_a_database_cannot_hold(warehouse: Warehouse, admin: str) -> None:
    for number in (-1, 10**6, 2**31, 2**63, "x"):
        assert statuses(warehouse, admin, f"POST /tokens/{number}/revoke")[0] in (404, 422)


@pytest.mark.parametrize(("package", "path"), [("mcp", "/mcp"), ("metricflow", "metrics")])
def test_without_its_package_a_part_is_not_there(warehouse: Warehouse, package: str, path: str) -> None:
    program = (
        "import sys, importlib.util as util; find = util.find_spec;"
        f"util.find_spec = lambda name, *rest: None if name == '{package}' else find(name, *rest);"
        "import warehouse_ui.app; app = warehouse_ui.app.create_app('/warehouse', '');"
        f"print([route.path for route in app.routes if '{path}' in route.path],"
        f" [one for one in ('{package}', 'metricflow') if one in sys.modules])"
    )
    made = subprocess.run(
        [sys.executable, "-c", program],
        env=with_plugins(warehouse.deployment),
        cwd=PROJECT,
        capture_output=True,
        check=True,
    )
    assert made.stdout.decode().splitlines()[-1] == "[] []"


def test_metrics_are_read_by_the_api_and_by_an_assistant(warehouse: Warehouse, admin: str, viewer: str) -> None:
    def get(path: str, login: str = viewer) -> tuple[int, Any]:
        status, text, _ = ask(f"{warehouse.url}/api/metrics{path}", Authorization=login)
        return status, json.loads(text)

    with duckdb.connect(str(warehouse.deployment.published), read_only=True) as connection:
        by_hand = connection.execute(
            "select p.payment_method, date_trunc('year', o.order_date)::date::varchar, sum(p.amount)::varchar"
            " from staging.stg_payments p join marts.orders o using (order_id) group by all order by all"
        ).fetchall()
    expected = [list(row) for row in by_hand]
    status, listed = get("")
    revenue = next(one for one in listed if one["name"] == "revenue")
    assert status == 200 and "order__order_date" in [one["name"] for one in revenue["by"]]
    own = f"Bearer {make_token(warehouse, viewer)}"
    wanted = "/query?metric=paid&by=payment__payment_method&by=order__order_date&grain=year"
    for login in (viewer, own):
        status, found = get(wanted, login)
        assert (status, [row for row in found["answer"]["rows"] if None not in row]) == (200, expected)
    assert get(wanted + "&limit=1")[1]["answer"]["truncated"]
    assert get("/query?metric=revenue&by=customer__initial") == (
        403,
        {
            "detail": "This reads marts.customers.last_name: personal or undocumented, so it takes the permission to "
            "run queries."
        },
    )
    assert get("/query?metric=revenue&by=customer__initial", admin)[0] == 200
    odd = urllib.parse.quote(SCRIPT)
    assert [get(f"/query?metric={one}")[0] for one in ("nothing", odd, "%00", "%7B%7B7*7%7D%7D")] == [400] * 4
    assert [get(f"/query{one}")[0] for one in ("", "?metric=revenue&limit=0", "?" + "metric=a&" * 50)] == [422] * 3
    page = ask(f"{warehouse.url}/metrics?metric={odd}&by={odd}&grain={odd}", Authorization=viewer, Accept="text/html")
    assert page[0] == 422
    page = ask(f"{warehouse.url}/metrics?metric={odd}&by={odd}", Authorization=viewer, Accept="text/html")
    assert page[0] == 400 and SCRIPT not in page[1]
    told = call_tools(warehouse, own, {"query_metrics": {"metric": ["revenue"], "by": ["metric_time__year"]}})
    content = told["query_metrics"].structured_content
    assert content and content["answer"]["columns"] == ["metric_time__year", "revenue"] and content["answer"]["rows"]
    nothing = ask(f"{warehouse.url}/w/second/metrics", Authorization=admin, Accept="text/html")
    assert nothing[0] == 200 and "No metrics" in nothing[1] and ">Metrics</a>" not in nothing[1]


def test_an_assistant_reads_tables_failures_and_releases(warehouse: Warehouse, admin: str) -> None:
    told = call_tools(
        warehouse,
        f"Bearer {make_token(warehouse, admin)}",
        {
            "describe_table": {"table": "marts.orders"},
            "search": {"words": "payments reconcile"},
            "list_tables": {"schema": "marts"},
            "query": {"sql": "select count(*) as n from marts.customers"},
            "explain_failure": {"run_id": warehouse.failed_test.id},
            "compare_releases": {"older": warehouse.release, "newer": published(warehouse)},
        },
    )
    table = told["describe_table"].structured_content
    assert table and set(table["built_from"]) == {"staging.stg_orders", "staging.stg_payments"}
    assert {one["name"] for one in table["table"]["columns"]} >= {"order_id", "amount"} and table["used_by"]
    assert "payments reconcile with marts" in str(told["search"].structured_content)
    listed = told["list_tables"].structured_content
    assert listed and {one["name"] for one in listed["result"]} == {"customers", "orders"}
    assert told["query"].structured_content and told["query"].structured_content["rows"][0][0].isdigit()
    failure = told["explain_failure"].structured_content
    assert failure and failure["incident"]["causes"][0]["task_id"] == "transform.stg_customers.test"
    assert failure["incident"]["causes"][0]["tests"][0]["failing_rows"] == 1 and failure["runbook"]["A test failed"]
    changed = told["compare_releases"].structured_content
    assert changed and [one["table"] for one in changed["result"]]
    refused = {
        "describe_table": {"table": "marts.nothing"},
        "query": {"sql": "copy (select 1) to '/tmp/x'"},
        "explain_failure": {"run_id": "nothing"},
        "compare_releases": {"older": "/etc/passwd", "newer": str(warehouse.deployment.published)},
    }
    told = call_tools(warehouse, admin, refused)
    assert all(one.is_error for one in told.values())
    assert "There is no release /etc/passwd. Kept: " in str(told["compare_releases"])
    assert statuses(warehouse, admin, "GET /mcp", "DELETE /mcp") == [405, 405]
    told = call_tools(warehouse, admin, {"list_tables": {}}, "/w/second/mcp")  # which has published nothing
    assert told["list_tables"].structured_content == {"result": []}


def test_tasks_of_another_warehouses_dag_link_to_its_pages(warehouse: Warehouse, admin: str) -> None:
    airflow = warehouse.airflow
    airflow.call("PATCH", "/api/v2/dags/second", {"is_paused": True})
    run = Run(
        airflow, "second", airflow.call("POST", "/api/v2/dags/second/dagRuns", {"logical_date": None})["dag_run_id"]
    )
    try:
        link = airflow.call("GET", f"{run.path}/taskInstances/{LOAD}/links")["extra_links"]["Warehouse"]
        assert link.startswith(f"/plugin/warehouse/warehouse/w/second/task/{LOAD}?run_id=")
        status, page, _ = ask(airflow.url + link.removeprefix("/plugin/warehouse"), Authorization=admin)
        assert status == 200 and run.id in html.unescape(page)
    finally:
        assert ask(airflow.url + run.path, "DELETE", Authorization=admin)[0] == 204
        airflow.call("PATCH", "/api/v2/dags/second", {"is_paused": False})


@pytest.mark.parametrize("limit", ["abc", "-1", "1.5", "9" * 13])
def test_a_run_is_not_started_with_a_limit_that_is_no_number(warehouse: Warehouse, admin: str, limit: str) -> None:
    body = urllib.parse.urlencode({"run_id": warehouse.failed_load.id, "max_rejected_rows": limit}).encode()
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert ask(f"{warehouse.url}/incident/start", "POST", body, Authorization=admin, **form)[0] == 422
