"""A source's secrets stay out of errors, logs, alerts and artifacts; its errors are short and say what to do."""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dlt
import pytest

from include.dlt_pipelines import load as load_module
from include.dlt_pipelines import source_errors
from include.dlt_pipelines.load import find_source, load
from include.dlt_pipelines.source_errors import SourceError
from include.errors import describe_failure
from include.masking import mask
from include.runs.alerts import Alert

pytestmark = pytest.mark.integration

SECRET = "s3cr3t/of+the=source"
MODULE = """
import os
import sys
import dlt
from dlt.sources.rest_api import rest_api_source

WHO, TOKEN = os.environ["WHOLESALE_ACCOUNT"], os.environ.get("WHOLESALE_API_TOKEN", "")
if WHO == "nobody at all":
    raise ValueError(f"{WHO} has no account")
SOURCE = rest_api_source(
    {
        "client": {"base_url": os.environ["WHOLESALE_URL"], "headers": {"X-Wholesale": TOKEN}},
        "resource_defaults": {"endpoint": {"params": {"k": WHO}, "paginator": "single_page"}},
        "resources": [{"name": "items", "endpoint": {"path": "items"}}],
    },
    name="wholesale",
)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RUNTIME__REQUEST_MAX_ATTEMPTS", "1")


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a web service that refuses everybody, and answers with what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401, "Who is that?", str(self.path))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `wholesale_pipeline` that reads the environment."""
    package = tmp_path / "declared"
    package.mkdir()
    (package / "wholesale_pipeline.py").write_text(MODULE)
    monkeypatch.setattr(source_errors, "__file__", str(package / "source_errors.py"))
    monkeypatch.setattr(load_module, "__package__", "declared")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "declared.wholesale_pipeline", raising=False)
    monkeypatch.setenv("WHOLESALE_ACCOUNT", "nobody-knows-it")
    monkeypatch.setenv("WHOLESALE_API_TOKEN", SECRET)


def failure(source: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> tuple[str, str, SourceError]:
    """Return all that is printed of a failed load, the alert, and the error."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SourceError) as failed:
        load(source() if callable(source) else source, "run")
    kept = [file.read_text(errors="replace") for file in tmp_path.glob("data/artifacts/**/*") if file.is_file()]
    shown = "".join(traceback.format_exception(failed.value))
    reason, runbook = describe_failure(failed.value)
    alert = Alert("failed", "shop", "run", reason, "http://log", runbook=runbook).body()
    assert "Nothing was loaded." in reason and len(reason.splitlines()) == 1 and len(reason) < 1000
    assert len(shown.splitlines()) < 30, shown
    return "\n".join([shown, caplog.text, *kept]), alert, failed.value


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize("up", [True, False])
def test_an_api_that_is_down_or_refuses_shows_no_secret(
    server: str, up: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("WHOLESALE_URL", server if up else "http://user:pa55word@127.0.0.1:9")
    printed, alert, error = failure(find_source("wholesale"), caplog, tmp_path)
    for secret in ("nobody-knows-it", SECRET, "pa55word"):
        assert secret not in printed and secret not in alert
    assert "wholesale, resource items: " in alert and "127.0.0.1" in alert and "A source cannot be read" in alert
    assert error.retryable is not up and ("401" in alert) is up


@pytest.mark.usefixtures("declared")
def test_a_declaration_that_cannot_be_imported_names_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOLESALE_ACCOUNT", "nobody at all")
    with pytest.raises(SourceError, match=r": \*\*\* has no account \(at wholesale_pipeline.py:9\)"):
        find_source("wholesale")
    monkeypatch.delenv("WHOLESALE_ACCOUNT")
    with pytest.raises(SourceError, match=r"KeyError: 'WHOLESALE_ACCOUNT' \(at wholesale_pipeline.py:7\).*Correct"):
        find_source("wholesale")


@pytest.mark.parametrize("where", ["connection string", "header", "dlt", "log", "environment"])
def test_a_generator_shows_no_secret_wherever_it_stands(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOURCES__CRM__API_KEY", SECRET)
    monkeypatch.setenv("CRM_DATABASE", "postgresql://crm:pa55word%2F@db.internal:5432/crm")

    @dlt.resource(name="accounts")
    def accounts(api_key: str = dlt.secrets.value) -> Iterator[Any]:
        if where == "log":
            try:
                raise OSError(f"no route for {api_key}")
            except OSError:
                logging.getLogger("urllib3").warning("retrying /accounts?k=%s", api_key, exc_info=True)
        texts = {
            "connection string": "no postgresql://crm:pa55word%2F@db.internal:5432/crm, pa55word/ is wrong",
            "header": "sent {'Authorization': 'Bearer s3cr3tOfThis', 'X-Api-Key': 's3cr3tOfThis'}",
            "dlt": f"{api_key} is no key",
            "environment": f"{os.environ['SOURCES__CRM__API_KEY']!r} is no key",
        }
        raise RuntimeError(texts.get(where, "lost"))
        yield

    @dlt.source(name="crm", section="crm")
    def crm() -> Any:
        return accounts

    printed, alert, _ = failure(crm, caplog, tmp_path)
    assert "***" in printed
    for secret in (SECRET, "pa55word", "s3cr3tOfThis"):
        assert secret not in printed and secret not in alert


def test_a_setting_that_is_missing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @dlt.source(name="crm", section="crm")
    def crm() -> Any:
        @dlt.resource(name="accounts")
        def accounts(api_key: str = dlt.secrets.value) -> Iterator[Any]:
            yield [{"id": api_key}]

        return accounts

    _, alert, error = failure(crm, caplog, tmp_path)
    assert "api_key not set, in the environment or in .dlt/secrets.toml" in alert and not error.retryable


def test_ordinary_texts_stay_as_they_are() -> None:
    for text in (
        "column order_id: primary_key = 5 rejected",
        "orders.csv:101: 2 row(s) rejected, at most 0 tolerated",
        "HTTPConnectionPool(host='127.0.0.1', port=9): Connection refused",
        "ratio: 12:30, key: value, total=3",
    ):
        assert mask(text) == text
    assert mask("GET /a?since=3&key=abc (x)") == "GET /a?since=***&key=*** (x)"
