"""Each release says which code made it, whatever kind of checkout that runs in."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from include import provenance
from include.provenance import Provenance
from include.warehouse import builds
from include.warehouse.errors import NotReadyError

pytestmark = pytest.mark.unit


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "include" / "data").mkdir(parents=True)
    (tmp_path / "include" / "model.sql").write_text("select 1")
    (tmp_path / "include" / "data" / "orders.csv").write_text("id\n1\n")
    (tmp_path / ".gitignore").write_text("target/\n")
    run("init", "-q", "-b", "main")
    run("add", "-A")
    run("commit", "-qm", "First")
    return run


def test_a_clean_checkout(git: Callable[..., str], tmp_path: Path) -> None:
    found = provenance.current(tmp_path)
    assert (found.commit, found.branch, found.is_dirty) == (git("rev-parse", "HEAD"), "main", False)
    assert found.title == "branch main"
    assert found.text == f"{found.commit[:10]} on main"
    assert {"dbt-core", "dlt", "duckdb"} <= found.versions.keys()
    assert found.started_by


def test_changed_and_new_code_is_dirty_and_delivered_files_are_not(git: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "include" / "data" / "orders.csv").write_text("id\n2\n")
    (tmp_path / "include" / "data" / "new.csv").write_text("id\n2\n")
    (tmp_path / "notes.txt").write_text("not code")
    assert provenance.current(tmp_path).is_dirty is False
    (tmp_path / "include" / "new.sql").write_text("select 2")
    assert provenance.current(tmp_path).is_dirty is True
    (tmp_path / "include" / "new.sql").unlink()
    (tmp_path / "include" / "model.sql").write_text("select 2")
    assert provenance.current(tmp_path).text.endswith(" on main with uncommitted changes")


def test_a_commit_without_a_branch(git: Callable[..., str], tmp_path: Path) -> None:
    git("checkout", "-q", "--detach")
    found = provenance.current(tmp_path)
    assert (found.branch, found.title) == ("", f"commit {found.commit[:10]}")


def test_an_image_says_what_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.current(tmp_path).is_dirty is None
    assert provenance.current(tmp_path).title == ""
    monkeypatch.setenv("SOURCE_COMMIT", "a" * 40)
    monkeypatch.setenv("SOURCE_BRANCH", "main")
    assert provenance.current(tmp_path).text == "aaaaaaaaaa on main"
    monkeypatch.setenv("SOURCE_COMMIT", "a" * 40 + "-dirty")
    assert provenance.current(tmp_path).text == "aaaaaaaaaa on main with uncommitted changes"
    monkeypatch.setenv("PATH", "/nowhere")  # no git at all
    assert provenance.current(tmp_path).commit == "a" * 40


def test_whoever_started_the_run_is_recorded() -> None:
    with provenance.started_by("ops"):
        assert provenance.current().started_by == "ops"
    assert provenance.current().started_by != "ops"


def test_what_is_kept_can_be_read_and_anything_else_is_unknown() -> None:
    kept = Provenance("a" * 40, "main", True, {"dbt-core": "1"}, "ops")
    assert Provenance.from_json(kept.to_json()) == kept
    for other in (None, "", "null", "[]", "{", '{"later": 1}'):
        assert Provenance.from_json(other) == Provenance()


def test_uncommitted_code_is_refused_only_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    dirty, clean = Provenance("a" * 40, "main", True), Provenance("a" * 40, "main", False)
    with duckdb.connect(":memory:") as connection:
        connection.execute("attach ':memory:' as jaffle_shop; use jaffle_shop")
        builds.stamp(connection, "id", "run", dirty)
        monkeypatch.setenv("PUBLISH_DIRTY_TREE", "refuse")
        builds.stamp(connection, "id", "run", clean)
        builds.stamp(connection, "id", "run", Provenance())
        with pytest.raises(NotReadyError, match=r"differs from its commit aaaaaaaaaa.*Commit or undo"):
            builds.stamp(connection, "id", "run", dirty)
        (text,) = connection.execute("select provenance from warehouse.release").fetchone() or ("",)
    assert Provenance.from_json(text) == Provenance()
