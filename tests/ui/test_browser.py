"""User journeys, in Chromium against a real Airflow."""

import re
import time
from pathlib import Path

import duckdb
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from testing.airflow_processes import RUN_SECONDS
from testing.project import LOAD, NAME
from tests.ui.conftest import ODD_NAME, SCRIPT, Open, Warehouse

pytestmark = [pytest.mark.ui, pytest.mark.timeout(1800)]  # the first test waits for three runs

FAILING = "test.analytics.unique_stg_customers_customer_id.c7614daada"
PAGES = (
    "/",
    "/incident",
    "/lineage",
    "/tables",
    "/tables/marts/customers",
    "/tables/marts/customers/history",
    "/warehouses",
    "/quality",
    "/releases",
    "/query",
    "/metrics",
    "/metrics?metric=revenue&metric=orders&by=metric_time&grain=month&chart=line",
    "/connect",
    "/tokens",
)


def frame(page: Page, view: str = "Warehouse"):  # type: ignore[no-untyped-def]
    """Return the plugin's page inside Airflow's."""
    return page.frame_locator(f"iframe[title='{view}']")


def findings(page: Page) -> list[str]:
    """Return the accessibility violations."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]


def test_the_overview_is_in_airflows_navigation_and_follows_its_theme(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page(theme="dark").page
    page.goto(warehouse.airflow.url)
    page.get_by_role("link", name="Warehouse").click()
    expect(frame(page).get_by_role("heading", name="What readers see")).to_be_visible()
    expect(frame(page).locator("html")).to_have_attribute("data-theme", "dark")
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(frame(page).locator("html")).to_have_attribute("data-theme", "light")
    frame(page).get_by_role("link", name=warehouse.failed_load.id).first.click()
    page.wait_for_url(re.compile(rf"/dags/{NAME}/runs/"))


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (1280, "light"),
        (360, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.long),
        pytest.param(360, "light", marks=pytest.mark.long),
    ],
)
def test_every_page_is_accessible_and_fits_the_screen(
    open_page: Open, warehouse: Warehouse, theme: str, width: int
) -> None:
    page = open_page(theme=theme, width=width).page
    run = warehouse.failed_test.id.replace("+", "%2B")
    rollback, changes = (f"/releases/{warehouse.release}/{one}" for one in ("rollback", "changes"))
    task = f"/task/transform.stg_customers.test?run_id={run}"
    problems = {}
    for path in (*PAGES, f"/tests/{FAILING}?run_id={run}", rollback, changes, task):
        page.goto(warehouse.url + path)
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        expect(page.locator("h1")).to_be_visible()
        wider = page.evaluate("document.documentElement.scrollWidth") - width
        if found := findings(page) + [f"{wider} pixels wider than the screen"] * (wider > 0):
            problems[path] = found
    assert problems == {}


def test_metrics_are_chosen_and_shown_as_a_table_and_a_chart(open_page: Open, warehouse: Warehouse) -> None:
    visitor = open_page("viewer")
    page = visitor.page
    page.goto(warehouse.url + "/")
    page.get_by_role("link", name="Metrics", exact=True).click()
    page.get_by_role("checkbox", name="Revenue revenue").check()
    page.get_by_label("by", exact=True).select_option("order__status")
    page.get_by_role("button", name="Bar chart").click()
    with duckdb.connect(str(warehouse.deployment.published), read_only=True) as connection:
        expected = connection.execute("select status, sum(amount) from marts.orders group by 1 order by 1").fetchall()
    shown = page.get_by_role("group", name="Result").get_by_role("row").all_inner_texts()[1:]
    assert [one.split("\t") for one in shown] == [[status, str(amount)] for status, amount in expected]
    expect(page.get_by_role("img", name=f"revenue by order__status, {len(expected)} rows")).to_be_visible()
    expect(page.get_by_role("checkbox", name="Revenue revenue")).to_be_checked()
    page.get_by_label("and by").select_option("customer__initial")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("alert")).to_contain_text("This reads marts.customers.last_name: personal")
    visitor.problems[:] = [one for one in visitor.problems if "status of 403" not in one]


def test_the_first_tab_stop_skips_to_the_content(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    page.goto(warehouse.url + "/tables")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_a_failing_test_links_to_its_rows_its_sql_and_its_task(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    page.goto(warehouse.url + "/quality")
    row = page.get_by_role("row", name=re.compile(r"^stg_customers\.customer_id: unique"))
    row.get_by_role("link", name=f"fail in {warehouse.failed_test.id}").click()
    rows = page.locator("div[aria-label='Failing rows']")
    expect(rows.get_by_role("cell", name="7", exact=True)).to_be_visible()
    expect(page.get_by_role("region", name="SQL that finds failing rows")).to_contain_text("group by customer_id")
    page.get_by_role("link", name="transform.stg_customers.test").click()
    page.wait_for_url(re.compile(r"/tasks/transform\.stg_customers\.test"))
    # And back, through the link that the plugin adds to the task.
    links = f"{warehouse.failed_test.path}/taskInstances/transform.stg_customers.test/links"
    link = warehouse.airflow.call("GET", links)["extra_links"]["Warehouse"]
    page.goto(warehouse.airflow.url + link)
    expect(frame(page).get_by_role("heading", name="transform.stg_customers.test")).to_be_visible(timeout=20_000)
    expect(frame(page).get_by_role("link", name="This task failed: what to do")).to_be_visible()
    frame(page).get_by_role("link", name="staging.stg_customers").click()
    expect(frame(page).get_by_role("heading", name="stg_customers", exact=True)).to_be_visible()


def test_rejected_rows_show_file_line_and_reason(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    page.goto(warehouse.url + "/quality")
    rejected = page.get_by_role("row", name=re.compile(r"raw_payments\.csv:115"))
    expect(rejected).to_contain_text("amount")
    expect(rejected).to_contain_text(SCRIPT)
    assert page.title() == "Quality · Warehouse"


def test_names_are_shown_exactly_as_written(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    page.goto(warehouse.url + "/query")
    page.get_by_label("One SELECT").fill("select first_name from marts.customers where customer_id = 101")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("cell", name=ODD_NAME)).to_be_visible()
    assert page.title() == "Query · Warehouse"


def test_query_runs_downloads_csv_and_shows_duckdbs_error(open_page: Open, warehouse: Warehouse) -> None:
    visitor = open_page()
    page = visitor.page
    page.goto(warehouse.url + "/query")
    sql = page.get_by_label("One SELECT")
    sql.fill("select status, count(*) as orders from marts.orders group by all order by all")
    sql.press("Control+Enter")
    expect(page.get_by_role("columnheader", name="orders")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert Path(download.value.path()).read_bytes().startswith(b"status,orders\r\ncompleted,")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download Parquet").click()
    assert ("completed",) in duckdb.execute(f"select status from read_parquet('{download.value.path()}')").fetchall()
    sql.fill("select nope from marts.orders")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text('Referenced column "nope" not found')
    sql.fill("from read_text('/etc/passwd')")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("file system operations are disabled")
    visitor.problems[:] = [one for one in visitor.problems if "status of 400" not in one]  # Chromium logs these two


def test_a_saved_query_is_a_chart_in_two_clicks(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    for kind in ("Bar", "Line", "Scatter"):
        page.goto(warehouse.url + "/query")
        page.get_by_role("link", name="Revenue by month").click()
        page.get_by_role("button", name=f"{kind} chart").click()
        chart = page.get_by_role("img", name="orders, revenue by month, 12 rows")
        expect(chart).to_be_visible()
        assert chart.locator("rect, circle").count() >= 24
        assert findings(page) == []
    page.get_by_label("One SELECT").fill("select status from marts.orders")
    page.get_by_role("button", name="Bar chart").click()
    expect(page.get_by_role("status").filter(has_text="A chart needs a column of numbers")).to_be_visible()


def test_a_querys_address_can_be_shared(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    page.goto(warehouse.url + "/query")
    page.get_by_label("One SELECT").fill("select 'a+b & c' as shared")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("cell", name="a+b & c")).to_be_visible()
    expect(page).to_have_url(re.compile("sql="))  # the page's script sets it after the table is shown
    page.goto(page.url)
    expect(page.get_by_label("One SELECT")).to_have_value("select 'a+b & c' as shared")


def test_a_search_finds_tables_columns_and_tests(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page("viewer").page
    page.goto(warehouse.url + "/tables")
    page.get_by_role("searchbox").fill("coupon AMOUNT")
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_role("rowheader", name="marts.orders.coupon_amount")).to_be_visible()
    page.get_by_role("searchbox").fill("payments reconcile")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("rowheader", name="payments reconcile with marts")).to_be_visible()
    assert findings(page) == []
    page.get_by_role("searchbox").fill("<script>")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()


def test_a_viewer_sees_no_query_or_rollback_links(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page("viewer").page
    page.goto(warehouse.url + "/releases")
    expect(page.get_by_text("readers see this")).to_be_visible()
    expect(page.get_by_role("link", name="Roll back")).to_have_count(0)
    expect(page.get_by_role("link", name="Query")).to_have_count(0)


def test_dbts_docs_open_inside_airflow(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    page.goto(warehouse.airflow.url)
    page.get_by_role("link", name="dbt docs").click()
    docs = frame(page, "dbt docs")
    expect(docs.get_by_role("heading", name="Jaffle shop")).to_be_visible()
    page.goto(warehouse.url + "/dbt-docs/#!/model/model.analytics.customers")
    expect(page.get_by_text("Row Count").first).to_be_visible()
    expect(page.get_by_text("DECIMAL(38,2)").first).to_be_visible()


@pytest.mark.long
def test_airflows_own_pages_work_under_the_csp(open_page: Open, warehouse: Warehouse) -> None:
    """`open_page` fails on anything that the CSP blocked; FAB's pages are in test_login.py."""
    visitor = open_page()
    page = visitor.page
    run = f"/dags/{NAME}/runs/{warehouse.green.id.replace('+', '%2B')}"
    seen = {
        "/": "Stats",
        "/dags": f"{NAME}_rollback",
        f"/dags/{NAME}": "Last 3 Dag Runs",
        f"/dags/{NAME}/code": "SOURCES",  # in the editor
        f"{run}/tasks/{LOAD}": "rows, 0 rejected",  # in the log
        f"{run}/tasks/transform.customers.run/rendered_templates": "compiled_sql",
        "/assets": "Assets",
        "/connections": "Connection",
        "/plugins": "web_security",
    }
    for path, text in seen.items():
        page.goto(warehouse.airflow.url + path)
        expect(page.get_by_text(text).first).to_be_visible(timeout=20_000)
    page.goto(f"{warehouse.airflow.url}/dags/{NAME}")
    page.get_by_label("Show Graph").first.click()
    expect(page.locator(".react-flow__node").first).to_be_visible(timeout=20_000)  # laid out by a worker
    page.get_by_role("button", name="Docs", exact=True).click()
    expect(page.get_by_role("menuitem").first).to_be_visible()
    expect(page.get_by_role("menuitem", name="REST API Reference")).to_have_count(0)
    visitor.problems[:] = [
        one for one in visitor.problems if "status of 404" not in one
    ]  # Airflow 3.3.2 lacks one of its own scripts


def test_a_link_on_another_site_cannot_log_a_user_out(open_page: Open, warehouse: Warehouse) -> None:
    visitor = open_page()
    page = visitor.page
    other_site = f"<a href='{warehouse.airflow.url}/api/v2/auth/logout'>win</a>"
    page.route("http://elsewhere.invalid/", lambda route: route.fulfill(body=other_site, content_type="text/html"))
    page.goto("http://elsewhere.invalid/")
    page.get_by_role("link", name="win").click()
    expect(page.get_by_text("Another site requested this logout.")).to_be_visible()
    visitor.problems[:] = []  # the visit to that site and the 403
    page.goto(warehouse.url + "/")
    expect(page.get_by_role("heading", name="What readers see")).to_be_visible()


def test_rollback_asks_for_confirmation_and_runs_its_dag(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    older = warehouse.release
    page.goto(warehouse.airflow.url + "/plugin/warehouse/warehouse/releases")
    view = frame(page)
    view.get_by_role("link", name=f"Roll back to {older}").click()
    expect(view.get_by_role("heading", name="Roll back?")).to_be_visible()
    view.get_by_role("button", name="Roll back").click()
    expect(view.get_by_role("status")).to_contain_text("Started")
    deadline = time.monotonic() + 120
    while warehouse.airflow.call("GET", "/warehouse/api/overview")["release"]["id"] != older:
        assert time.monotonic() < deadline, "the rollback DAG has not run"
        time.sleep(0.5)
    page.reload()
    expect(view.get_by_role("row", name=re.compile(warehouse.green.id.replace("+", r"\+")))).to_contain_text(
        "readers see this"
    )
    log = warehouse.airflow.call("GET", "/api/v2/eventLogs?event=warehouse_rollback")["event_logs"]
    assert log[0]["owner"] == "admin"
    page.goto(warehouse.url + "/tables")
    expect(page.get_by_label("A rollback holds")).to_contain_text(f"admin rolled readers back to {older}, instead of")
    api = warehouse.airflow
    assert api.call("GET", "/warehouse/api/hold")["release"] == older
    page.get_by_role("button", name="Release the hold").click()
    while page.goto(warehouse.url + "/tables") and page.get_by_label("A rollback holds").count():
        assert time.monotonic() < deadline + 120, "the hold is still there"
        time.sleep(0.5)
    assert api.call("GET", "/warehouse/api/hold") is None
    assert api.request("POST", "/warehouse/api/hold/release", {}, api.token)[0] == 404


def test_a_run_triggered_in_the_ui_is_published(open_page: Open, warehouse: Warehouse) -> None:
    page = open_page().page
    page.goto(f"{warehouse.airflow.url}/dags/{NAME}")
    page.get_by_test_id("trigger-dag-button").click()
    expect(page.get_by_role("dialog").get_by_text("Rejected rows to tolerate")).to_be_visible()
    page.get_by_test_id("trigger-dag-submit").click()
    page.goto(f"{warehouse.airflow.url}/dags/{NAME}/runs")
    newest = page.get_by_role("row").nth(1)
    expect(newest).to_contain_text("Success", timeout=1000 * RUN_SECONDS)
    page.goto(warehouse.url + "/")
    expect(
        page.get_by_text("Loaded less than a minute ago").or_(page.get_by_text(re.compile("Loaded . minutes? ago")))
    ).to_be_visible()
    published = page.locator("dl").get_by_role("link", name=re.compile("manual__.*T.*:"))
    assert published.inner_text() != warehouse.green.id


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dbts_docs_follow_the_theme(open_page: Open, warehouse: Warehouse, theme: str) -> None:
    page = open_page("viewer", theme).page
    page.goto(warehouse.url + "/dbt-docs/")
    expect(page.get_by_text("Jaffle shop").first).to_be_visible()
    inverted = page.evaluate("getComputedStyle(document.documentElement).filter.includes('invert')")
    assert inverted is (theme == "dark")


@pytest.mark.long
def test_a_release_that_changes_too_much_waits_until_somebody_approves_it(
    open_page: Open, warehouse: Warehouse
) -> None:
    deployment = warehouse.deployment
    for number in range(200, 240):
        deployment.append("raw_customers", f"{number},Waiting,Person")
    run = warehouse.airflow.trigger(NAME)
    deployment.restore_data()
    assert (run.state, run.tasks()["publish"]) == ("success", "skipped")

    def customers() -> int:
        with duckdb.connect(str(deployment.published), read_only=True) as connection:
            row = connection.execute("select count(*) from marts.customers").fetchone()
            assert row is not None
            return int(row[0])

    assert customers() < 102
    viewer = open_page("viewer", width=360).page
    viewer.goto(warehouse.url + "/")
    expect(viewer.get_by_text("waits for approval")).to_be_visible()
    viewer.goto(warehouse.url + "/releases")
    expect(viewer.get_by_text("marts.customers: 40.59 % of its rows")).to_be_visible()
    expect(viewer.get_by_role("button", name="Approve")).to_have_count(0)
    for theme, width in (("light", 1280), ("dark", 360)):
        page = open_page(theme=theme, width=width).page
        for path in ("/releases", "/"):
            page.goto(warehouse.url + path)
            assert findings(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(warehouse.url + "/releases")
    page.get_by_role("link", name="What would change").click()
    expect(page.get_by_text("readers do not see it")).to_be_visible()
    expect(page.locator("main")).not_to_contain_text("Waiting")
    page.get_by_role("link", name="Decide").click()
    page.get_by_label("Why").fill("a <b>new</b> country")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("status")).to_contain_text("Decided")
    deadline = time.monotonic() + RUN_SECONDS
    while customers() < 140 and time.monotonic() < deadline:
        time.sleep(1)
    assert customers() == 140
    page.goto(warehouse.url + "/releases")
    expect(page.get_by_text("waits for approval")).to_have_count(0)
    expect(page.get_by_text("approved by admin")).to_be_visible()
    page.get_by_role("link", name="What changed").first.click()
    expect(page.get_by_text("Approved by admin: a <b>new</b> country")).to_be_visible()
