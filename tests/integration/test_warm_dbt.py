"""The parsed project that task processes inherit: dbt uses it only for the same project, and reparses changes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[2]
MODEL = 'select \'{{ env_var("COLOUR", "red") }}\' as colour, \'{{ var("size", "big") }}\' as size'
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project that is preloaded, with one extra model."""
    root = tmp_path_factory.mktemp("warm_dbt")
    (root / "include").mkdir()
    for file in (PROJECT / "include").glob("*.py"):
        shutil.copy(file, root / "include")
    for name in ("patches", "runs", "warehouse"):
        shutil.copytree(PROJECT / "include" / name, root / "include" / name)
    for name in ("airflow.env", "dbt_build_graph.py"):
        shutil.copy(PROJECT / name, root)
    ignored = shutil.ignore_patterns("target", "logs")
    shutil.copytree(PROJECT / "include" / "dbt_project", root / "include" / "dbt_project", ignore=ignored)
    (root / "include" / "dbt_project" / "models" / "staging" / "hat.sql").write_text(MODEL)
    return root


@pytest.fixture(scope="module")
def warm(root: Path) -> Iterator["subprocess.Popen[str]"]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("DBT_")}
    env |= {"PYTHONPATH": str(root), "WAREHOUSE_DIR": str(root), "OPENLINEAGE_DISABLED": "True", "DO_NOT_TRACK": "1"}
    probe = Path(__file__).with_name("warm_dbt_probe.py")
    with subprocess.Popen([sys.executable, str(probe)], env=env, stdin=-1, stdout=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def linked(root: Path, tmp_path: Path) -> Path:
    """Return the project as Cosmos's tasks see it: a folder of symlinks."""
    folder = tmp_path / "linked"
    folder.mkdir()
    for entry in (root / "include" / "dbt_project").iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def ask(warm: "subprocess.Popen[str]", linked: Path) -> Ask:
    """Run a dbt command in a fork, by default on the linked project."""

    def ask(*command: str, project: Path = linked, target: str = "duckdb", **env: str) -> dict[str, Any]:
        options = ["--project-dir", str(project), "--profiles-dir", str(project), "--profile", "analytics"]
        # Like Cosmos: dbt's static parser, once used, can hang in a fork.
        command = ("--quiet", "--no-static-parser", *command, *options, "--target", target, "--no-populate-cache")
        assert warm.stdin and warm.stdout
        warm.stdin.write(json.dumps({"command": command, "env": env}) + "\n")
        warm.stdin.flush()
        return dict(json.loads(warm.stdout.readline()))

    return ask


HAT = ("compile", "--select", "hat")


def hat(colour: str = "red", size: str = "big") -> dict[str, str]:
    return {"hat": f"select '{colour}' as colour, '{size}' as size"}


def test_the_same_project_is_not_reparsed(ask: Ask) -> None:
    answer = ask(*HAT)
    assert answer["success"], answer
    assert answer["had the manifest"] and not answer["parsed"]
    assert answer["sql"] == hat()


def test_a_command_skips_macro_compilation_plugin_scans_stacks_and_openlineage(ask: Ask) -> None:
    """include/patches replaces private parts of dbt, which another version may change."""
    answer = ask("run", "--select", "hat")
    assert answer["success"], answer
    assert not answer["parsed"]
    assert answer["macros compiled"] == 0
    assert answer["plugin scans"] == 1  # before the fork
    assert answer["stacks read"] == 0
    assert not answer["openlineage"]


def test_a_commands_manifest_matches_the_one_dbt_writes(ask: Ask, linked: Path, tmp_path: Path) -> None:
    ask(*HAT, "--target-path", str(tmp_path / "warm"))
    copied = shutil.copytree(linked, tmp_path / "copy")
    ask("parse", "--target-path", str(tmp_path / "cold"), project=copied)
    warm, cold = (json.loads((tmp_path / each / "manifest.json").read_text()) for each in ("warm", "cold"))
    assert warm["nodes"].keys() == cold["nodes"].keys()
    for part in ("child_map", "parent_map", "selectors", "exposures"):
        without_times = [json.loads(json.dumps(one[part]), object_hook=_without_time) for one in (warm, cold)]
        assert without_times[0] == without_times[1], part


def _without_time(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "created_at"}


def test_a_different_project_is_parsed_even_if_it_looks_the_same(ask: Ask, linked: Path, tmp_path: Path) -> None:
    other = shutil.copytree(linked, tmp_path / "other")
    answer = ask(*HAT, project=other)
    assert answer["success"] and not answer["had the manifest"]
    (other / "models" / "staging" / "hat.sql").write_text("select 'none' as colour")
    assert ask(*HAT, project=other)["sql"] == {"hat": "select 'none' as colour"}


@pytest.mark.parametrize("edited", ["models/staging/hat.sql", "macros/colour.sql"])
def test_an_edited_file_is_reparsed(ask: Ask, root: Path, edited: str) -> None:
    file, model = (root / "include" / "dbt_project" / name for name in (edited, "models/staging/hat.sql"))
    try:
        if file == model:
            file.write_text(MODEL.replace("red", "pink"))
        else:
            file.write_text("{% macro env_var(name, default) %}pink{% endmacro %}")
            model.write_text(MODEL + " ")
        answer = ask(*HAT)
        assert answer["success"] and answer["had the manifest"] and answer["parsed"]
        assert {name: sql.strip() for name, sql in answer["sql"].items()} == hat("pink")
    finally:
        model.write_text(MODEL)
        if file != model:
            file.unlink()


def test_a_new_model_is_found_and_a_deleted_one_is_not(ask: Ask, root: Path) -> None:
    models = root / "include" / "dbt_project" / "models" / "staging"
    (models / "hat.sql").rename(models / "cap.sql")
    try:
        assert ask("compile", "--select", "cap")["sql"] == {"cap": hat()["hat"]}
        assert not ask(*HAT)["success"]
    finally:
        (models / "cap.sql").rename(models / "hat.sql")


def test_command_line_vars_are_applied(ask: Ask) -> None:
    answer = ask(*HAT, "--vars", "size: small")
    assert answer["success"] and not answer["had the manifest"]
    assert answer["sql"] == hat(size="small")


def test_env_vars_are_read_from_the_tasks_environment(ask: Ask) -> None:
    answer = ask(*HAT, COLOUR="blue")
    assert answer["success"] and answer["parsed"]
    assert answer["sql"] == hat("blue")


def test_another_target_or_warehouse_is_reparsed(ask: Ask, tmp_path: Path) -> None:
    assert not ask("parse", target="encrypted")["had the manifest"]
    assert not ask("parse", WAREHOUSE_DIR=str(tmp_path))["had the manifest"]


def test_an_edited_project_file_is_reread(ask: Ask, root: Path) -> None:
    file = root / "include" / "dbt_project" / "dbt_project.yml"
    before = file.read_text()
    try:
        file.write_text(before + "\nvars: {size: small}\n")
        assert ask(*HAT)["sql"] == hat(size="small")
    finally:
        file.write_text(before)


@pytest.mark.parametrize("kind", ["the same project", "another project"])
def test_an_empty_selection_is_an_error(ask: Ask, linked: Path, tmp_path: Path, kind: str) -> None:
    project = linked if kind == "the same project" else shutil.copytree(linked, tmp_path / "other")
    for command in (("run", "--select", "hatt"), ("test", "--select", "hat")):
        answer = ask(*command, project=project)
        assert not answer["success"], command
        assert "does not match any enabled nodes" in answer["exception"] or "Nothing to do" in answer["exception"], (
            answer
        )
