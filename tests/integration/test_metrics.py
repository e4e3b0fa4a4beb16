"""Metrics: declared in dbt, compiled by MetricFlow, run on the published file; by personal data only for who may."""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from include.runs import artifacts, project
from include.warehouse.paths import run_artifacts_dir
from include.warehouse.targets import target
from include.warehouse_catalog import lineage, metrics, published, query
from testing.metrics_project import with_metrics
from testing.project import Copy, unchecked

pytestmark = [pytest.mark.integration, pytest.mark.files]

Ask = Callable[..., metrics.Result]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A project with metrics that has loaded, built and published."""
    copy = with_metrics(tmp_path_factory.mktemp("metrics") / "project")
    copy.run("python -m include.dlt_pipelines jaffle_shop")
    copy.run("dbt build", "include/dbt_project")
    copy.run("python -m include.runs publish metrics")
    return copy


@pytest.fixture
def ask(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    monkeypatch.setenv("WAREHOUSE_DIR", copy.env["WAREHOUSE_DIR"])
    monkeypatch.setattr(query, "_START_SECONDS", 300.0)

    def ask(names: Sequence[str], by: Sequence[str] = (), grain: str = "", *, all_: bool = True) -> metrics.Result:
        state = published.current()
        assert state
        return metrics.values(state, project.of_run(state.release.run_id), names, by, grain, 1000, all_)

    yield ask


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "by", "grain", "by_hand"),
    [
        (["revenue"], [], "", "select sum(amount) from marts.orders"),
        (
            ["revenue"],
            ["metric_time"],
            "month",
            "select date_trunc('month', order_date)::date, sum(amount) from marts.orders group by 1 order by 1",
        ),
        (
            ["average_order", "orders"],
            ["order__status", "order__order_date__quarter"],
            "",
            "select status, date_trunc('quarter', order_date)::date, sum(amount)::double / count(*), count(*)"
            " from marts.orders group by 1, 2 order by 1, 2",
        ),
        (
            ["paid"],
            ["metric_time", "payment__payment_method"],
            "year",
            "select date '2025-01-01', payment_method, sum(amount) from staging.stg_payments group by 2 order by 2",
        ),
        (
            ["paid"],
            ["order__status"],
            "",
            "select status, sum(p.amount) from staging.stg_payments p join marts.orders using (order_id) group by 1"
            " order by 1",
        ),
        (
            ["revenue"],
            ["customer__initial"],
            "",
            "select upper(last_name[1]), sum(amount) from marts.orders join marts.customers using (customer_id)"
            " group by 1 order by 1",
        ),
        (
            ["orders"],
            ["order__has_coupon", "metric_time", "metric_time__year"],  # one of them twice
            "year",
            "select coupon_amount > 0, date_trunc('year', order_date)::date, count(*) from marts.orders"
            " group by 1, 2 order by 1, 2",
        ),
        (["revenue"], ["order"], "", "select order_id, amount from marts.orders order by 1"),  # a word of SQL's
        (
            ["revenue_so_far"],
            ["metric_time"],
            "day",
            "select day, sum(amount) from marts.days join marts.orders on order_date <= day group by 1 order by 1",
        ),
    ],
)
def test_metrics_are_what_sql_by_hand_finds(
    ask: Ask, names: list[str], by: list[str], grain: str, by_hand: str
) -> None:
    found, expected = ask(names, by, grain).answer, query.run(by_hand).rows
    assert expected and found.columns[-len(names) :] == tuple(names)
    assert found.rows == expected


@pytest.mark.long
def test_a_metric_is_listed_with_what_it_can_be_grouped_by(ask: Ask) -> None:
    state = published.current()
    assert metrics.declared(state)
    found = {one.name: one for one in metrics.metrics(state)}
    assert (found["revenue"].label, found["revenue"].description) == ("Revenue", "What orders brought.")
    assert found["average_order"].kind == "ratio"
    by = {one.name: (one.kind, one.grain, one.description) for one in found["revenue"].by}
    assert by["order__status"] == ("dimension", "", "Where the order is <b>now</b>.")
    assert by["metric_time"] == ("time", "day", "") and by["customer"] == ("entity", "", "")
    assert "order__customer__first_name" in {one.name for one in found["paid"].by}


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "by", "grain", "message"),
    [
        ([], [], "", "Choose a metric"),
        (["nothing"], [], "", "There is no metric nothing. There are: average_order"),
        (["revenue; drop table x"], [], "", "There is no metric"),
        (["revenue"], ["{{ 1/0 }}"], "", "cannot be grouped by {{ 1/0 }}"),
        (["revenue"], ["TimeDimension('metric_time', 'day')"], "", "cannot be grouped by"),
        (["revenue"], ["payment__payment_method"], "", "cannot be grouped by payment__payment_method"),
        (["revenue", "paid"], ["order__has_coupon__day"], "", "cannot be grouped by order__has_coupon__day"),
        (["revenue"], ["metric_time__hour"], "", "its finest grain is day"),
        (["revenue"], ["metric_time"], "fortnight", "There is no grain fortnight"),
        (["revenue"] + [f"m{at}" for at in range(30)], [], "", "At most 20 metrics"),
    ],
)
def test_what_the_project_does_not_declare_is_refused(
    ask: Ask, names: list[str], by: list[str], grain: str, message: str
) -> None:
    with pytest.raises(query.QueryError) as refused:
        ask(names, by, grain)
    assert message in str(refused.value)


@pytest.mark.long
def test_personal_columns_are_read_only_for_who_may(ask: Ask) -> None:
    for names, by, column in (
        (["revenue"], ["customer__first_name"], "marts.customers.first_name"),
        (["revenue"], ["customer__initial"], "marts.customers.last_name"),  # in an expression
        (["paid"], ["order__customer__initial"], "marts.customers.last_name"),  # over two joins
        (["orders_of_a_name"], [], "marts.customers.first_name"),  # in a filter
    ):
        with pytest.raises(metrics.PersonalError, match=f"This reads {column}: personal"):
            ask(names, by, all_=False)
        assert ask(names, by).answer.rows
    for names, by in ((["average_order"], ["order__status"]), (["revenue_so_far"], ["metric_time"])):
        assert ask(names, by, all_=False).answer.rows == ask(names, by).answer.rows


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> published.State:
    """A release without a project: a table with two columns."""
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    with target().open_working() as connection:
        connection.execute("create schema marts; create table marts.t as select 1 as a, 2 as b")
    target().publish("run", unchecked)
    found = published.current()
    assert found
    return found


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("select count(*) from jaffle_shop.marts.t", ""),
        ("select a from jaffle_shop.marts.t where b > 1", "ab"),
        ("select sum(x) from (select a as x, b from jaffle_shop.marts.t) q", "ab"),
        ("with c as (select * from jaffle_shop.marts.t) select 1 from c", "ab"),
        ("select 1 from jaffle_shop.marts.t t1 join jaffle_shop.marts.t t2 on t1.a = t2.b", "ab"),
        ("select 1 from jaffle_shop.marts.t order by b", "b"),
        ("select (select max(b) from jaffle_shop.marts.t)", "b"),
        ("select c from jaffle_shop.marts.t", None),
        ("select a from jaffle_shop.marts.other", None),
        ("select a from elsewhere.marts.t", None),
        ("select * from read_csv('/etc/passwd')", None),
        ("select columns('.*') from jaffle_shop.marts.t", None),
        ("select t from jaffle_shop.marts.t", None),
        ("select to_json(t) from jaffle_shop.marts.t", None),
        ("select max(x) from jaffle_shop.marts.t as x", None),
        ("select 1 from jaffle_shop.marts.t t1 natural join jaffle_shop.marts.t t2", "ab"),
        ("select 1 from jaffle_shop.marts.t t1 join jaffle_shop.marts.t t2 using (b)", "b"),
        ("select t.* exclude (a) from jaffle_shop.marts.t", "b"),
        ("select 1 from jaffle_shop.marts.t group by all having max(b) > 1", "b"),
        ("select sum(a) over w from jaffle_shop.marts.t window w as (partition by b)", "ab"),
        ("select * from (pivot jaffle_shop.marts.t on b using sum(a))", None),
        ("select * from query('select b from jaffle_shop.marts.t')", None),
        ("select x from (select unnest([a, b]) as x from jaffle_shop.marts.t)", "ab"),
        ("select from from", None),
    ],
)
def test_columns_that_are_read_are_found_or_nothing_is_certain(
    state: published.State, sql: str, columns: str | None
) -> None:
    expected = None if columns is None else {("marts", "t", one) for one in columns}
    assert lineage.columns_read(sql, state) == expected


# The time in a gzip file would be in the test's name, which is another one in each of pytest's processes.
@pytest.mark.parametrize(
    "kept",
    [None, b"", b"no gzip", *(gzip.compress(text, mtime=0) for text in (b"no JSON", b"{}", b'{"metrics": []}'))],
)
def test_without_metrics_there_are_none(state: published.State, kept: bytes | None) -> None:
    if kept is not None:
        run_artifacts_dir("run").mkdir(parents=True, exist_ok=True)
        (run_artifacts_dir("run") / artifacts.SEMANTIC_MANIFEST).write_bytes(kept)
    assert not metrics.declared(state) and metrics.metrics(state) == ()
    with pytest.raises(query.QueryError, match="has no metrics"):
        metrics.values(state, project.Project(), ["revenue"], [], "", 1, True)


def test_a_semantic_manifest_that_metricflow_cannot_read_is_an_error(state: published.State) -> None:
    run_artifacts_dir("run").mkdir(parents=True, exist_ok=True)
    broken = gzip.compress(json.dumps({"metrics": [{"name": "a"}], "semantic_models": 1}).encode())
    (run_artifacts_dir("run") / artifacts.SEMANTIC_MANIFEST).write_bytes(broken)
    assert metrics.declared(state)
    with pytest.raises(query.QueryError, match=r"MetricFlow failed|validation error"):
        metrics.metrics(state)
