"""What `make` exports, also for a pytest that is started without it; and which tests share a worker."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from testing import targets
from testing.project import NAME

os.environ["WAREHOUSE_NAME"] = NAME


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", choices=targets.NAMES, default="duckdb", help="run the tests on another target")


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[targets.Target]:
    """What `--target` names, with its servers running."""
    with targets.started(request.config.getoption("--target")) as target:
        yield target


@pytest.fixture(autouse=True)
def _on_target(request: pytest.FixtureRequest) -> None:
    """Give each test an empty warehouse on another target than the file, whose folder the tests set themselves."""
    if request.config.getoption("--target") == "duckdb":
        return
    for marker in request.node.iter_markers("not_on"):
        if request.config.getoption("--target") in marker.args:
            pytest.skip(marker.kwargs["reason"])
    if request.node.get_closest_marker("files"):
        pytest.skip("about the DuckDB file")
    target, folder = request.getfixturevalue("target"), request.getfixturevalue("tmp_path")
    for name, value in target.new(folder).items():
        request.getfixturevalue("monkeypatch").setenv(name, value)


_SHARED = {
    "test_on_call.py": "pipeline",
    "test_pipeline.py": "pipeline",
    "test_access.py": "pages",
    "test_browser.py": "pages",
}


class _Scheduling(LoadFileScheduling):
    """One worker for each file, and for files that share an Airflow."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _SHARED.get(file.rsplit("/", 1)[-1], file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Replace xdist's `loadfile`."""
    return _Scheduling(config, log)
