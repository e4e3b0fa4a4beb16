"""What an alert says, and that each failure is told once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include import alerts, warehouse
from include.alerts import Alert
from include.dlt_pipelines.jaffle_shop_pipeline import RejectedRowsError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
LINK = "http://127.0.0.1:8080/dags/shop/runs/one"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    return tmp_path


def failed(task: str, run: str = "one") -> Alert:
    return Alert("failed", "shop", run, "because", LINK, task)


def test_an_alert_says_what_failed_what_readers_see_and_where_to_look() -> None:
    alert = Alert("failed", "shop", "one", "orders: no such column", LINK, "orders.run", "2 of 4", "A model failed")
    assert alert.title() == "shop failed: orders.run"
    assert alert.body().splitlines() == [
        "orders: no such column",
        "",
        "DAG shop · task orders.run · run one · try 2 of 4",
        "Readers see: nothing yet: no run has published",
        f"Log: {LINK}",
        'Runbook: "A model failed" in docs/runbook.md, also on the DAG\'s page under Dag Docs',
    ]


def test_an_alert_names_the_snapshot_that_readers_see_or_why_it_cannot(folder: Path) -> None:
    with warehouse.open_working() as con:
        con.execute("create schema marts; create table marts.t as select 1 as i")
    warehouse.publish("green")
    assert "Readers see: snapshot green, made 2" in failed("load").body() and "0.0 hours ago" in failed("load").body()
    warehouse.published_path().unlink()
    warehouse.published_path().write_text("not a database")
    assert "Readers see: cannot tell: " in failed("load").body()


def test_a_failed_task_is_told_once_and_its_run_not_again() -> None:
    started = datetime.now(UTC)
    assert alerts.tell_once(failed("load"), started)
    assert not alerts.tell_once(failed("load"), started)
    assert not alerts.tell_once(failed(""), started), "the run failed with its task"
    assert alerts.tell_once(failed("publish"), started)
    assert alerts.tell_once(failed("load", run="two"), started)


def test_a_failed_run_is_told_where_no_task_could_tell_and_the_task_not_again() -> None:
    started = datetime.now(UTC)
    assert alerts.tell_once(failed(""), started)
    assert not alerts.tell_once(failed("load"), started)


def test_a_cleared_run_that_fails_again_is_told_again() -> None:
    assert alerts.tell_once(failed("load"), datetime.now(UTC) - timedelta(hours=1))
    assert alerts.tell_once(failed("load"), datetime.now(UTC))


def test_recovery_is_told_once_with_what_was_red() -> None:
    assert alerts.recovered("shop", None) is None
    alerts.tell_once(failed("load"), None)
    assert alerts.recovered("shop", None) == "Run one was red at load; this run is green."
    assert alerts.recovered("shop", None) is None


def test_a_green_run_told_of_late_does_not_end_the_failure_of_the_next_one() -> None:
    green = datetime.now(UTC)
    alerts.tell_once(failed("load", run="two"), None)
    assert alerts.recovered("shop", green) is None
    assert not alerts.tell_once(failed("", run="two"), green), "the run failed with its task"
    assert alerts.recovered("shop", datetime.now(UTC)) == "Run two was red at load; this run is green."


def test_a_disk_that_takes_no_note_does_not_silence_an_alert(folder: Path) -> None:
    (folder / "alerts").write_text("in the way")
    assert alerts.tell_once(failed("load"), None)


def test_rejected_rows_are_told_without_their_text() -> None:
    row = {
        "file": "/data/raw_customers.csv",
        "line": 7,
        "column_name": "id",
        "reason": "id: not a valid BIGINT",
        "text": "x,Ann,Lee",
    }
    told, section = alerts.reason(RejectedRowsError("1 row(s) rejected.\n...: 'x,Ann,Lee'", [row]))
    assert told == "1 row(s) rejected.\n/data/raw_customers.csv:7: column id: id: not a valid BIGINT"
    assert section == "The load rejected rows"


def test_every_section_that_an_error_names_stands_in_the_runbook() -> None:
    titles = {line[3:] for line in (ROOT / "docs" / "runbook.md").read_text().splitlines() if line.startswith("## ")}

    def below(error: type[BaseException]) -> set[type[BaseException]]:
        return {error}.union(*(below(one) for one in error.__subclasses__()))

    from include.errors import PipelineError

    named = {error.runbook for error in below(PipelineError)}  # type: ignore[attr-defined]
    named |= {alerts.reason(None)[1], alerts.reason(TimeoutError())[1], alerts.reason(ValueError())[1]}
    assert len(named) > 8 and named <= titles


@pytest.mark.parametrize(
    "exception", [TimeoutError(), RuntimeError("dbt invocation did not complete with unhandled error: Timeout, PID: 7")]
)
def test_a_time_limit_is_told_as_one_also_where_dbt_met_it(exception: Exception) -> None:
    assert alerts.reason(exception)[1] == "A task ran into its time limit"
