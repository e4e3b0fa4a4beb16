"""What each page says in each state of the warehouse: true at the first glance.

The states are copies of what real runs have left; the section is served from them alone, without Airflow around it.
"""

import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from playwright.sync_api import Browser, Page, expect

from include.warehouse.targets import target
from testing.project import LOAD, NAME, PROJECT, unchecked
from testing.targets import free_port
from tests.ui.conftest import SCRIPT, Warehouse, copy_folder, copy_metadata, with_plugins
from tests.ui.test_browser import FAILING, findings

pytestmark = [pytest.mark.ui, pytest.mark.long, pytest.mark.timeout(1800)]

Show = Callable[..., Page]


@pytest.fixture(scope="module")
def site(warehouse: Warehouse) -> Iterator[tuple[str, Path]]:
    """The section's URL, and the folder that it reads."""
    folder = warehouse.deployment.root / "served"
    (folder / "airflow").mkdir(parents=True)
    copy_metadata(warehouse.states["green"] / "airflow.db", folder / "airflow" / "airflow.db")
    port = free_port()
    env = with_plugins(warehouse.deployment) | {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "WAREHOUSE_DIR": str(folder / "warehouse"),
    }
    script = str(Path(__file__).with_name("served.py"))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, script, str(port)], env=env, cwd=PROJECT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/warehouse", folder
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def show(browser: Browser, site: tuple[str, Path], warehouse: Warehouse) -> Iterator[Show]:
    """Show a page in one of `warehouse.states`, after a change to its folder; it must not be wider than the screen."""
    url, folder = site
    contexts = []

    def show_(
        state: str,
        path: str,
        user: str = "admin",
        width: int = 1280,
        theme: str = "light",
        change: Callable[[Path], None] | None = None,
    ) -> Page:
        kept = warehouse.states[state]
        copy = folder / f"{kept.name}-{len(list(folder.iterdir()))}"  # a new path: what is read is cached by path
        copy.mkdir()
        copy_folder(kept, copy)
        if change:
            change(copy)
        copy_metadata(copy / "airflow.db", folder / "airflow" / "airflow.db")
        (folder / "warehouse").unlink(missing_ok=True)
        (folder / "warehouse").symlink_to(copy / "warehouse")
        context = browser.new_context(viewport={"width": width, "height": 900}, extra_http_headers={"X-User": user})
        contexts.append(context)
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        page = context.new_page()
        page.goto(url + path)
        expect(page.locator("h1")).to_be_visible()
        wider = page.evaluate("document.documentElement.scrollWidth") - width
        assert wider <= 0 and findings(page) == [], f"{wider} pixels wider"
        return page

    yield show_
    for context in contexts:
        context.close()


def metadata(*statements: str) -> Callable[[Path], None]:
    """Return a change of Airflow's metadata."""

    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "airflow.db")) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return change


def mark_publish_as_success(run_id: str) -> Callable[[Path], None]:
    """Return what marking `publish` as success leaves behind."""
    return metadata(
        f"update task_instance set state = 'success' where run_id = '{run_id}' and task_id = 'publish'",
        f"update dag_run set state = 'success' where run_id = '{run_id}'",
    )


def test_a_load_whose_rows_are_mostly_rejected_says_so_first(show: Show, warehouse: Warehouse) -> None:
    page = show("green", "/")
    link = page.get_by_role("link", name="3,000 of 3,313 rows rejected (91 %)")
    link.click()
    tolerated = page.get_by_role("row", name=re.compile("^3,000 raw_payments amount amount: not a valid BIGINT"))
    expect(tolerated).to_contain_text("raw_payments.csv:115")
    expect(tolerated).to_contain_text(SCRIPT)
    assert page.get_by_role("heading", level=2).first.inner_text() == "Rejected rows"
    with page.expect_download() as download:
        page.get_by_role("link", name="jaffle_shop_raw.rejected_rows as CSV").click()
    rows = duckdb.execute(f"select count(*) from read_csv('{download.value.path()}')").fetchone()
    assert rows == (3000,)
    log = warehouse.green.log(LOAD)
    assert f"so no alert is sent: {NAME} passed with warnings: {LOAD}" in log and "/warehouse/quality#rejected" in log


def test_a_viewer_sees_groups_of_rejected_rows_without_their_values(show: Show) -> None:
    page = show("green", "/quality", "viewer", width=390, theme="dark")
    expect(page.get_by_text("Missing from what readers see: 3,000 of 3,313 rows (91 %)")).to_be_visible()
    assert "document.title" not in page.content() and "n/a" not in page.content()
    expect(page.get_by_role("link", name="as CSV")).to_have_count(0)
    assert page.request.get(page.url.replace("quality", "files/jaffle_shop_raw.rejected_rows.csv")).status == 404


def test_a_release_published_by_hand_has_its_runs_tests_loads_and_age(show: Show, warehouse: Warehouse) -> None:
    page = show("green", "/")
    facts = page.locator("dl.facts")
    expect(facts).to_contain_text("27 passed")
    expect(facts.get_by_role("link", name=warehouse.by_hand, exact=True).first).to_be_visible()
    for table in ("raw_customers", "raw_orders", "raw_payments"):
        expect(page.locator("figure").filter(has_text=table)).to_contain_text("readers see this load")
    expect(page.get_by_text("Schedule: At 00:00.")).to_be_visible()
    page.goto(page.url + "tables/marts/orders")
    expect(page.locator("dl.facts").first).to_contain_text("passed")


def test_a_failed_load_shows_no_results_from_before_as_its_own(show: Show, warehouse: Warehouse) -> None:
    page = show("failed load", "/quality", width=390, theme="dark")
    failed = page.get_by_role("region", name="Load of jaffle_shop failed")
    expect(failed.get_by_role("heading")).to_contain_text("rejected 1 of 313 rows")
    expect(page.get_by_text("27 of 27 tests were not reached by the last run")).to_be_visible()
    assert page.locator(".matrix .status.good").count() == 0
    expect(page.get_by_role("row", name=re.compile("not reached before: passed"))).to_have_count(27)


def test_a_load_failure_that_a_later_load_has_fixed_is_gone(show: Show, warehouse: Warehouse) -> None:
    page = show("failed test", "/quality")
    expect(page.get_by_role("region", name="Load of jaffle_shop failed")).to_have_count(0)
    first = page.locator(".matrix tbody tr").first
    expect(first).to_contain_text("stg_customers.customer_id: unique")
    expect(first).to_contain_text("failed")
    expect(page.get_by_text(re.compile("tests were not reached by the last run.*failed at test"))).to_be_visible()


def test_red_since_and_this_cause_since_are_two_times(show: Show, warehouse: Warehouse) -> None:
    earlier = metadata(
        f"update dag_run set start_date = datetime(start_date, '-3 hours') where run_id = '{warehouse.failed_load.id}'"
    )
    page = show("failed test", "/", change=earlier)
    problem = page.locator(".problem")
    expect(problem).to_contain_text("The last 2 runs failed")
    since, cause = problem.locator("time").nth(0), problem.locator("time").nth(1)
    expect(problem).to_contain_text(re.compile(r"Since .* UTC; for this reason since .* UTC\."))
    assert since.get_attribute("datetime") < cause.get_attribute("datetime")  # type: ignore[operator]


def test_a_run_whose_publish_was_marked_as_success_published_nothing(show: Show, warehouse: Warehouse) -> None:
    page = show("failed test", "/", change=mark_publish_as_success(warehouse.failed_test.id))
    expect(page.get_by_role("heading", name="The last run published nothing")).to_be_visible()
    row = page.get_by_role("row", name=re.compile(re.escape(warehouse.failed_test.id)))
    expect(row).to_contain_text("published nothing")
    expect(page.get_by_role("row", name=re.compile(re.escape(warehouse.green.id)))).not_to_contain_text("nothing")
    # The rows are as many as in the load that readers see, which is another one all the same.
    orders = page.locator("figure").filter(has_text="raw_orders")
    expect(orders).to_contain_text("readers see an older load, of 99 rows (±0)")


def roll_back(release: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WAREHOUSE_DIR", str(folder / "warehouse"))
            target().rollback(release)

    return change


def test_after_a_rollback_a_table_has_the_rows_that_readers_see(show: Show, warehouse: Warehouse) -> None:
    page = show("green", "/tables/marts/orders", change=roll_back(warehouse.release))
    history = page.locator("figure").filter(has_text="Rows in the kept releases")
    expect(history.locator(".big")).to_have_text("99")
    expect(history).to_contain_text("rolled back: 1 newer release is kept, the newest with 98")
    expect(page.locator("dl.facts").first).to_contain_text("99")


def test_the_address_of_a_result_runs_it_on_its_release_with_its_chart(show: Show, warehouse: Warehouse) -> None:
    page = show("green", "/query")
    page.get_by_label("One SELECT").fill("select 'orders' as what, count(*) as n from marts.orders")
    page.get_by_label("Release").select_option(warehouse.release)
    page.get_by_role("button", name="Bar chart").click()
    expect(page.get_by_role("cell", name="99", exact=True)).to_be_visible()
    # The page's script sets the address after the table is shown.
    expect(page).to_have_url(
        re.compile(f"release={warehouse.release}.*chart=bar|chart=bar.*release={warehouse.release}")
    )
    page.goto(page.url)
    expect(page.get_by_role("cell", name="99", exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="n by what, 1 rows")).to_be_visible()
    page.get_by_label("Release").select_option("")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("cell", name="98", exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile(f"release={warehouse.by_hand}"))
    gone = page.url.replace(f"release={warehouse.by_hand}", "release=gone")
    page.goto(gone)
    expect(page.get_by_role("alert")).to_contain_text("The release gone is no longer kept.")
    # A link elsewhere must not run a query with this user's login.
    page.route("http://elsewhere.invalid/", lambda route: route.fulfill(body=f"<a href='{gone}'>win</a>"))
    page.goto("http://elsewhere.invalid/")
    page.get_by_role("link", name="win").click()
    expect(page.get_by_text("so the query has not run")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_viewer_cannot_run_a_shared_query(show: Show) -> None:
    page = show("green", "/query?sql=select+1", "viewer")
    expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
    expect(page.get_by_text(f"the permission to start runs of the DAG {NAME}")).to_be_visible()


def test_before_the_first_publish_connect_shows_no_examples_that_fail(show: Show) -> None:
    page = show("nothing published", "/connect", "viewer", width=390)
    expect(page.get_by_role("heading", name="Nothing is published yet")).to_be_visible()
    assert page.locator("pre").count() == 0


def many_orders(folder: Path) -> None:
    """Make `orders`, which a dashboard reads, the largest mart; the first by name is `customers`."""
    with duckdb.connect(str(folder / "warehouse" / "published" / f"{NAME}.duckdb")) as connection:
        connection.execute("insert into marts.orders select * replace (order_id + 1000 as order_id) from marts.orders")


def test_examples_are_of_the_table_that_dashboards_use(show: Show, warehouse: Warehouse) -> None:
    page = show("green", "/connect", change=many_orders)
    expect(page.locator("pre").filter(has_text="curl -sSfO")).to_contain_text("marts.orders.parquet")
    page.goto(page.url.replace("connect", "releases"))
    for release in (warehouse.release, warehouse.by_hand):
        expect(page.get_by_role("rowheader", name=release, exact=True)).to_be_visible()


@pytest.mark.parametrize(("user", "width", "theme"), [("admin", 390, "light"), ("viewer", 1280, "dark")])
def test_the_incident_of_a_failed_test_has_all_that_on_call_needs(
    show: Show, warehouse: Warehouse, user: str, width: int, theme: str
) -> None:
    page = show("failed test", "/", user, width, theme)
    page.get_by_role("link", name="Rows, who is affected, what to do").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("transform.stg_customers.test failed")
    cause = page.get_by_role("region", name="transform.stg_customers.test")
    expect(cause).to_contain_text("1 failing row; none is allowed")
    rows = cause.get_by_role("group", name="Rows with these values")
    # The test gives the key only: here are the two rows that have it, masked for those who may not see names.
    expect(rows.get_by_role("row")).to_have_count(3)
    names = [cell.inner_text() for cell in rows.get_by_role("row").nth(1).get_by_role("cell").all()]
    assert names[0] == "7" and (names[1] == "•••") == (user == "viewer")
    expect(cause.locator("details pre")).to_contain_text("group by customer_id")
    expect(page.locator(".runbook")).to_contain_text("shows all failing rows")
    affected = page.get_by_role("group", name="Affected tables and exposures")
    expect(affected.get_by_role("link", name="Customer value")).to_have_attribute("href", re.compile("^http://"))
    expect(affected.get_by_role("link", name="sales-analytics@example.com").first).to_have_attribute(
        "href", re.compile("^mailto:")
    )
    expect(affected.get_by_role("link", name="marts.customers")).to_be_visible()
    expect(page.get_by_role("heading", name="Runs affected").locator("..").get_by_role("listitem")).to_have_count(2)
    if user == "viewer":
        expect(page.get_by_role("button")).to_have_count(0)
        expect(page.get_by_text(f"Your role may not clear tasks or start runs of {NAME}.")).to_be_visible()
    else:
        expect(page.get_by_role("link", name="Roll readers back …")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width and findings(page) == []


def test_on_call_clears_starts_and_acknowledges_from_the_incident(
    show: Show, site: tuple[str, Path], warehouse: Warehouse
) -> None:
    _, folder = site

    def ask(query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(folder / "airflow" / "airflow.db")) as connection:
            return connection.execute(query).fetchall()

    page = show("failed test", "/incident", width=390)
    page.get_by_label("Acknowledge with a note").fill(f"On it {SCRIPT}")
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.get_by_text(f"UTC: On it {SCRIPT}")).to_contain_text("Acknowledged by admin")
    assert page.title() == "Incident · Warehouse"
    page.get_by_role("button", name=f"Clear {LOAD} with downstream").click()
    expect(page.get_by_role("status")).to_contain_text(f"Cleared {LOAD} with downstream.")
    states = ask(f"select state, task_id from task_instance where run_id = '{warehouse.failed_test.id}'")
    assert {state for state, _ in states} == {None} and len(states) > 10
    page.get_by_role("button", name="Start a run").click()
    expect(page.get_by_role("status")).to_contain_text("Started manual__")
    assert ask("select count(*) from dag_run") == [(4,)]
    events = {event for (event,) in ask("select event from log where owner = 'admin'")}
    assert events >= {"warehouse_note", "warehouse_clear", "warehouse_start"}


def test_the_incident_of_a_failed_load_has_its_rows_and_starts_a_run_that_tolerates_them(
    show: Show, site: tuple[str, Path], warehouse: Warehouse
) -> None:
    page = show("failed load", "/incident", width=390, theme="dark")
    cause = page.get_by_role("region", name=LOAD)
    expect(cause).to_contain_text("1 row(s) rejected, at most 0 tolerated. Nothing was loaded.")
    expect(cause.get_by_role("row", name=re.compile("raw_orders.csv:101"))).to_contain_text("not a valid DATE")
    expect(page.get_by_text("9 tables, 27 tests, 1 exposure")).to_be_visible()
    page.get_by_role("spinbutton").fill("1")
    page.get_by_role("button", name="Start a run").click()
    expect(page.get_by_role("status")).to_contain_text("Started manual__")
    with closing(sqlite3.connect(site[1] / "airflow" / "airflow.db")) as connection:
        ((conf,),) = connection.execute("select conf from dag_run order by id desc limit 1").fetchall()
    assert "max_rejected_rows" in str(conf)
    task = warehouse.failed_load.id.replace("+", "%2B")
    page.goto(page.url.split("incident")[0] + f"task/{LOAD}?run_id={task}")
    expect(page.get_by_role("row", name=re.compile("^raw_orders 99 1 "))).to_be_visible()
    page.get_by_role("link", name="This task failed: what to do").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{LOAD} failed")


def test_an_incident_that_is_over_says_which_run_ended_it(show: Show, warehouse: Warehouse) -> None:
    green = metadata(f"update dag_run set id = 1000 where run_id = '{warehouse.green.id}'")
    run = warehouse.failed_test.id.replace("+", "%2B")
    page = show("failed test", f"/incident?run_id={run}", change=green)
    expect(page.get_by_role("status")).to_contain_text(f"Over: {warehouse.green.id} was green.")
    page.goto(page.url.split("?")[0])
    expect(page.get_by_role("heading", name="Nothing is failing")).to_be_visible()


def test_a_tests_page_has_its_table_owner_downstream_and_history_in_words(show: Show, warehouse: Warehouse) -> None:
    page = show("failed test", f"/tests/{FAILING}", width=390)
    expect(page.get_by_text("1 failing row; none is allowed")).to_be_visible()
    assert "configured to fail" not in page.content()
    facts = page.locator("dl.facts")
    expect(facts.get_by_role("link", name="staging.stg_customers")).to_be_visible()
    expect(facts.get_by_role("link", name="data-platform@example.com")).to_be_visible()
    expect(page.get_by_role("group", name="Rows with these values").get_by_role("row")).to_have_count(3)
    expect(page.get_by_role("link", name="customers", exact=True)).to_be_visible()
    history = page.get_by_role("group", name="Results in the last runs").get_by_role("row")
    expect(history.nth(1)).to_contain_text("failed")
    expect(history.nth(2)).to_contain_text("passed")
    page.get_by_role("link", name="Incident", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("transform.stg_customers.test failed")


def test_a_release_can_be_rolled_back_to_on_a_phone_and_its_changes_are_few(show: Show, warehouse: Warehouse) -> None:
    page = show("green", "/releases", width=390, theme="dark")
    box = page.get_by_role("link", name=f"Roll back to {warehouse.release}").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
    changes = page.locator(".changes").first
    expect(changes).to_contain_text("marts.orders \u22121")
    assert "_dlt_" not in page.content()


def test_charts_have_axes_and_do_not_stretch_their_marks(show: Show) -> None:
    for width in (1280, 390):
        page = show("failed test", "/", width=width)
        for kind in ("strip", "trend"):
            chart = page.locator(f"svg.{kind}").first
            box, drawn = chart.bounding_box(), chart.get_attribute("viewBox")
            assert box and drawn
            x, y = (box[side] / float(drawn.split()[at]) for side, at in (("width", 2), ("height", 3)))
            assert x == pytest.approx(y, rel=0.02), kind
            assert chart.locator("text").count() >= 2
            assert "0" in chart.locator("text").all_text_contents()


def test_frequent_values_are_labelled_and_long_names_are_whole_in_lineage(show: Show) -> None:
    page = show("green", "/tables/marts/orders")
    expect(page.locator("svg.histogram text", has_text="completed").first).to_be_visible(timeout=30_000)
    assert "Customer value" in page.locator("svg.lineage text").all_text_contents()


def test_the_query_page_lists_marts_first_with_types_and_inserts_names(show: Show) -> None:
    page = show("green", "/query")
    names = page.locator(".schema dt").all_inner_texts()
    assert names[0] == "marts.customers"
    assert all(name.startswith(("jaffle_shop_raw._dlt", "jaffle_shop_raw.rej", "warehouse")) for name in names[-5:])
    sql = page.get_by_label("One SELECT")
    sql.fill("select")
    page.get_by_role("button", name="status varchar").first.click()
    sql.press_sequentially(" from")
    page.get_by_role("button", name="marts.orders").click()
    expect(sql).to_have_value("select status from marts.orders")
    page.evaluate("addEventListener('submit', (event) => event.preventDefault())")  # it takes for ever
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("Running …")).to_be_visible()


def wide_table(folder: Path) -> None:
    columns = ", ".join(f"{number} as column_{number:03}" for number in range(200))
    with duckdb.connect(str(folder / "warehouse" / "published" / f"{NAME}.duckdb")) as connection:
        connection.execute(f"create table marts.wide as select {columns}")


def test_200_columns_have_a_filter_and_a_header_that_stays(show: Show) -> None:
    page = show("green", "/tables/marts/wide", change=wide_table)
    columns = page.get_by_role("group", name="Columns", exact=True)
    header = columns.get_by_role("columnheader", name="Description")
    before = header.bounding_box()
    columns.evaluate("region => { region.scrollTop = 2000 }")
    assert before and header.bounding_box() == before
    page.get_by_label("Filter columns").fill("column_199")
    expect(columns.get_by_role("rowheader")).to_have_text(["column_199"])


def test_tables_are_filtered_by_schema_owner_and_state(show: Show) -> None:
    page = show("green", "/tables", "viewer", width=390, theme="dark")
    filters = page.get_by_role("form", name="Filter")
    filters.get_by_label("Schema").select_option("marts")
    filters.get_by_label("Owner").select_option("Data Platform")
    filters.get_by_label("State").select_option("passed")
    filters.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("2 of 14 tables")).to_be_visible()
    assert page.locator("tbody th a").all_inner_texts() == ["customers", "orders"]
    filters.get_by_label("State").select_option("no tests")
    filters.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="No table is like that")).to_be_visible()


def test_the_whole_lineage_is_searched_with_what_is_above_and_below(show: Show) -> None:
    page = show("green", "/lineage", "viewer", width=390)
    graph = page.get_by_role("group", name="Lineage")
    expect(graph.locator(".node")).to_have_count(10)
    page.get_by_role("searchbox").fill("stg_payments")
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_text("1 found, with what is above and below: 5 of 10.")).to_be_visible()
    expect(graph.locator(".here text")).to_have_text(["stg_payments"])
    graph.get_by_role("link", name="model orders").click()
    expect(page.get_by_role("heading", name="orders", exact=True)).to_be_visible()


def second_warehouse(folder: Path) -> None:
    """Add what another DAG of `elt_dag` leaves behind: its row and tag, and a warehouse in a subfolder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAREHOUSE_DIR", str(folder / "warehouse" / "marketing"))
        patch.setenv("WAREHOUSE_NAME", "marketing")
        with target().open_working() as connection:
            connection.execute("create schema marts; create table marts.campaigns as from range(7) as t (id)")
        target().publish("first", unchecked)
    with closing(sqlite3.connect(folder / "airflow.db")) as connection:
        columns = [row[1] for row in connection.execute("pragma table_info(dag)")]
        copied = ", ".join("'marketing'" if one == "dag_id" else f'"{one}"' for one in columns)
        connection.execute(f"insert into dag select {copied} from dag where dag_id = '{NAME}'")
        connection.execute("insert into dag_tag (name, dag_id) values ('elt', 'marketing')")
        connection.execute(  # it starts when the other warehouse has published its orders
            "insert into dag_schedule_asset_reference select asset_id, 'marketing', allow_producer_teams,"
            " allow_global_producers, created_at, updated_at from dag_schedule_asset_reference"
            " where dag_id = 'on_orders'"
        )
        connection.commit()


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_every_warehouse_of_the_deployment_has_its_pages(
    show: Show, warehouse: Warehouse, width: int, theme: str
) -> None:
    page = show("failed test", "/", "viewer", width, theme, second_warehouse)
    start = page.url
    page.locator(".switch summary").click()
    assert findings(page) == []
    page.get_by_role("link", name="marketing").click()
    assert page.url == f"{start}w/marketing/"
    expect(page.locator("dl.facts").get_by_role("link", name="first", exact=True).first).to_be_visible()
    expect(page.get_by_text("No run yet.")).to_be_visible()
    page.get_by_role("navigation").get_by_role("link", name="Tables").click()
    page.get_by_role("link", name="campaigns").click()
    expect(page.get_by_role("heading", name="campaigns")).to_be_visible()
    assert page.url == f"{start}w/marketing/tables/marts/campaigns"
    page.goto(f"{start}w/marketing/tables/marts/orders")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    page.goto(f"{start}w/marketing/warehouses")
    expect(page.get_by_role("row", name=re.compile(f"{NAME}.*failed"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("marketing.*loaded"))).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width and findings(page) == []
    page.goto(f"{start}lineage?q=marketing.raw_orders")
    page.get_by_role("link", name="All warehouses").click()
    graph = page.get_by_role("group", name="Lineage")
    expect(graph.locator(".node.dag text")).to_have_text(["marketing", "on_orders"])
    page.get_by_role("searchbox").fill("marketing.raw_orders")
    page.get_by_role("searchbox").press("Enter")
    expect(graph.locator(".here text")).to_have_text(["marketing.raw_orders"])
    shown = graph.locator(".node text").all_text_contents()
    assert {f"{NAME}.raw_orders", f"{NAME}.orders", "marketing", "marketing.customers"} < set(shown)
    assert f"{NAME}.customers" not in shown and findings(page) == []
    graph.get_by_role("link", name=f"model {NAME}.orders").click()
    assert page.url == f"{start}tables/marts/orders"
    page.goto(f"{start}w/nothing/")
    expect(page.get_by_text("There is no warehouse nothing.")).to_be_visible()
    page.goto(start)
    expect(page.get_by_role("heading", name="The last 2 runs failed")).to_be_visible()


def test_a_page_follows_a_run_that_goes_on_without_a_reload(
    show: Show, warehouse: Warehouse, site: tuple[str, Path]
) -> None:
    run = warehouse.failed_test.id
    page = show(
        "failed test",
        "/",
        change=metadata(f"update dag_run set state = 'running', end_date = null where run_id = '{run}'"),
    )
    expect(page.get_by_role("heading", name="The last run failed")).to_be_visible()
    page.evaluate("window.opened = 'once'")
    with closing(sqlite3.connect(site[1] / "airflow" / "airflow.db")) as connection:
        connection.execute(f"update dag_run set state = 'failed' where run_id = '{run}'")
        connection.commit()
    expect(page.get_by_role("heading", name="The last 2 runs failed")).to_be_visible(timeout=20_000)
    assert page.evaluate("window.opened") == "once" and page.locator("[data-running]").count() == 0


def test_sizes_arrive_without_a_reload_and_keep_what_a_user_has_selected(show: Show) -> None:
    page = show("green", "/tables")
    size = page.get_by_role("row", name=re.compile("^orders ")).get_by_role("cell").last
    expect(size).to_have_text(re.compile(r"\d.* KiB"))
    # As it is for a moment after a publish.
    waiting = re.sub(r"[\d.]+ KiB", "?", page.content()).replace('id="list"', 'id="list" data-running="2"')
    page.route(page.url, lambda route: route.fulfill(body=waiting, content_type="text/html"), times=1)
    page.goto(page.url)
    expect(size).to_have_text("?")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
    page.wait_for_timeout(3000)
    expect(size).to_have_text("?")
    page.evaluate("getSelection().removeAllRanges()")
    expect(size).to_have_text(re.compile(r"\d.* KiB"), timeout=20_000)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_a_table_shows_what_its_releases_changed_and_its_past(
    show: Show, warehouse: Warehouse, width: int, theme: str
) -> None:
    page = show("green", "/tables/marts/orders", "viewer", width, theme)
    changes = page.get_by_role("group", name="Changes by release").get_by_role("row")
    expect(changes.filter(has_text="readers see this")).to_contain_text("99 → 98 rows: 0 added, 1 removed")
    page.get_by_role("link", name="Rows, tests and columns over the last runs").click()
    versions = page.get_by_role("group", name="By run").locator("tbody tr")
    expect(versions).to_have_count(2)
    expect(versions.first).to_contain_text("\u22121")
    expect(versions.last).to_contain_text("6 passed")
    expect(page.get_by_role("row", name=re.compile("^amount 2.04 %"))).to_be_visible()
    expect(page.get_by_text("each time: order_id, customer_id, order_date, status.")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width and findings(page) == []
    page.goto(page.url.replace("orders", "nothing"))
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
