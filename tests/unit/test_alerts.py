"""Alert texts, and one alert per failure."""

import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.dlt_pipelines.rejects import RejectedRowsError
from include.errors import describe_failure
from include.runs import alerts
from include.runs.alerts import Alert
from include.warehouse import paths
from include.warehouse.targets import target
from testing.project import unchecked

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
LINK = "http://127.0.0.1:8080/dags/shop/runs/one"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    return tmp_path


def failed(task: str, run: str = "one") -> Alert:
    return Alert("failed", "shop", run, "because", LINK, task)


def test_an_alert_says_what_failed_what_readers_see_and_where_the_log_is() -> None:
    alert = Alert("failed", "shop", "one", "orders: no such column", LINK, "orders.run", "2 of 4", "A model failed")
    assert alert.title() == "shop failed: orders.run"
    assert alert.body().splitlines() == [
        "orders: no such column",
        "",
        "DAG shop · task orders.run · run one · try 2 of 4",
        "Readers see: nothing: no run has published yet",
        f"Log: {LINK}",
        'Runbook: "A model failed" in docs/runbook.md, also on the DAG\'s page under Dag Docs',
    ]


def test_an_alert_names_the_published_release_or_why_it_is_unknown(folder: Path) -> None:
    with target().open_working() as connection:
        connection.execute("create schema marts; create table marts.t as select 1 as i")
    target().publish("green", unchecked)
    assert "Readers see: release green, made 2" in failed("load").body() and "0.0 hours ago" in failed("load").body()
    paths.published_path().unlink()
    paths.published_path().write_text("not a database")
    assert "Readers see: unknown: " in failed("load").body()


def test_an_alert_is_sent_whatever_keeps_it_from_reading_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_NAME", "not a name")
    assert "Readers see: unknown: WAREHOUSE_NAME must be" in failed("load").body()


def test_a_failed_task_is_alerted_once_and_covers_its_run() -> None:
    started = datetime.now(UTC)
    assert alerts.should_send(failed("load"), started)
    assert not alerts.should_send(failed("load"), started)
    assert not alerts.should_send(failed(""), started), "the run failed with its task"
    assert alerts.should_send(failed("publish"), started)
    assert alerts.should_send(failed("load", run="two"), started)


def test_a_failed_run_is_alerted_if_no_task_was_and_covers_its_tasks() -> None:
    started = datetime.now(UTC)
    assert alerts.should_send(failed(""), started)
    assert not alerts.should_send(failed("load"), started)


def test_a_cleared_run_that_fails_again_is_alerted_again() -> None:
    assert alerts.should_send(failed("load"), datetime.now(UTC) - timedelta(hours=1))
    assert alerts.should_send(failed("load"), datetime.now(UTC))


def test_recovery_is_reported_once_with_the_failure_it_resolves() -> None:
    assert alerts.resolve_failures("shop", None) is None
    alerts.should_send(failed("load"), None)
    assert alerts.resolve_failures("shop", None) == "Run one was red at load; this run is green."
    assert alerts.resolve_failures("shop", None) is None


def test_a_green_run_reported_late_does_not_resolve_the_next_runs_failure() -> None:
    green = datetime.now(UTC)
    alerts.should_send(failed("load", run="two"), None)
    assert alerts.resolve_failures("shop", green) is None
    assert not alerts.should_send(failed("", run="two"), green), "the run failed with its task"
    assert alerts.resolve_failures("shop", datetime.now(UTC)) == "Run two was red at load; this run is green."


def test_a_full_disk_does_not_silence_alerts(folder: Path) -> None:
    (folder / "alerts").write_text("in the way")
    assert alerts.should_send(failed("load"), None)


def test_a_pipeline_error_gives_its_message_and_runbook_section() -> None:
    assert describe_failure(RejectedRowsError("raw_customers.csv:7: no")) == (
        "raw_customers.csv:7: no",
        "The load rejected rows",
    )


def test_every_runbook_section_named_by_an_error_exists() -> None:
    titles = {line[3:] for line in (ROOT / "docs" / "runbook.md").read_text().splitlines() if line.startswith("## ")}

    def below(error: type[BaseException]) -> set[type[BaseException]]:
        return {error}.union(*(below(one) for one in error.__subclasses__()))

    from include.errors import PipelineError, TimeLimitError

    named = {error.runbook for error in below(PipelineError)}  # type: ignore[attr-defined]
    named |= {describe_failure(exception)[1] for exception in (None, TimeLimitError(), ValueError())}
    assert len(named) > 8 and named <= titles


def test_a_full_disk_does_not_lose_which_failures_are_open(folder: Path) -> None:
    assert alerts.should_send(failed("load"), None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (folder.joinpath("alerts", "shop.json").stat().st_size, hard))
    try:
        assert alerts.should_send(failed("publish"), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert alerts.resolve_failures("shop", None) == "Run one was red at load; this run is green."
