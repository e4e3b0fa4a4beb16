"""Paths of the warehouse files, and release ids."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from include.warehouse import paths
from include.warehouse.errors import WarehouseError
from include.warehouse.paths import release_id
from testing.project import NAME

pytestmark = pytest.mark.unit


def test_default_folder_is_data_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAREHOUSE_DIR", raising=False)
    assert paths.warehouse_dir() == Path(__file__).resolve().parents[2] / "data"


def test_environment_is_read_on_each_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        monkeypatch.setenv("WAREHOUSE_DIR", str(folder))
        assert paths.working_path() == folder / f"{NAME}.duckdb"
        assert paths.published_path() == folder / "published" / f"{NAME}.duckdb"
        assert paths.release_path("a") == folder / "releases" / "a.duckdb"
        assert paths.artifacts_dir() == folder / "artifacts"


def test_relative_folder_does_not_depend_on_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", "some/where")
    before = paths.warehouse_dir()
    monkeypatch.chdir(tmp_path)
    assert paths.warehouse_dir() == before == paths.REPOSITORY_ROOT / "some" / "where"


@pytest.mark.parametrize("folder", ["a b", "it's", "50%", "a=b", "a?b", "a#b", 'a"b'])
def test_a_folder_that_some_tool_would_misread_is_refused(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", f"/tmp/{folder}")
    with pytest.raises(WarehouseError, match="letters, digits and"):
        paths.warehouse_dir()


def test_a_safe_run_id_is_the_release_id() -> None:
    assert release_id("nightly_2026-11-23.1") == "nightly_2026-11-23.1"


def test_an_airflow_run_id_stays_readable() -> None:
    assert re.fullmatch(
        r"manual__2026-11-23T09-40-00-00-00-[0-9a-f]{8}", release_id("manual__2026-11-23T09:40:00+00:00")
    )


def test_similar_run_ids_get_different_releases() -> None:
    runs = ["run 1", "run:1", "run/1", "run-1", "run-1-", "./run-1", "é", "è", "x" * 200, "x" * 201, f"{'x' * 95}:"]
    assert len({release_id(run) for run in runs}) == len(runs)


@example("x" * 101)
@example(f"{'x' * 99}:y")
@given(st.text(min_size=1))
def test_any_run_id_gives_a_safe_and_unique_file_name(run_id: str) -> None:
    slug = release_id(run_id)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}", slug)
    assert release_id(slug) == slug == release_id(run_id)


def test_an_empty_run_id_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        release_id("")
