"""The manifest of the project's files: what makes dbt parse again, and what does not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from include.runs import manifest
from include.runs.manifest import DbtParseError
from include.runs.publish import publish
from include.settings import REPOSITORY_ROOT
from include.warehouse.errors import NotReadyError
from testing import feature_project

pytestmark = [pytest.mark.integration, pytest.mark.files]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one model, and nothing parsed."""
    folder = tmp_path / "project"
    feature_project.write(folder, machinery_only=True)
    (folder / "models").mkdir()
    (folder / "models" / "one.sql").write_text('select \'{{ env_var("COUNTRY", "Chile") }}\' as country')
    monkeypatch.setattr(manifest, "DBT_PROJECT", folder)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "warehouse"))
    return folder


def parsed_at() -> str:
    """Parse the project if need be, and return which parse the manifest is of."""
    found = json.loads(manifest.current().manifest.read_text())
    return str(found["metadata"]["invocation_id"])


def test_only_what_changes_the_project_is_parsed_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = parsed_at()
    model = project / "models" / "one.sql"
    os.utime(model)
    assert parsed_at() == first, "the same text, written again"
    (project / "target" / "run").mkdir(parents=True)
    (project / "target" / "run" / "one.sql").write_text("select 1")
    monkeypatch.setenv("WAREHOUSE_DIR", str(project / "elsewhere"))
    assert parsed_at() == first

    model.write_text(model.read_text() + " where true")
    second = parsed_at()
    assert second != first
    monkeypatch.setenv("COUNTRY", "Ghana")
    assert parsed_at() not in (first, second), "an environment variable that a file names"


@pytest.mark.long
def test_dbt_by_hand_changes_nothing_whatever_its_target_path(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, tasks = parsed_at(), manifest.current().tasks.read_text()
    for place in (str(tmp_path / "elsewhere"), "target/pipeline"):
        env = os.environ | {"PYTHONPATH": str(REPOSITORY_ROOT), "DO_NOT_TRACK": "1", "DBT_TARGET_PATH": place}
        subprocess.run([Path(sys.executable).with_name("dbt"), "--quiet", "build"], cwd=project, env=env, check=True)
        monkeypatch.setenv("DBT_TARGET_PATH", place)
        assert parsed_at() == first
    assert manifest.current().tasks.read_text() == tasks
    assert (tmp_path / "elsewhere" / "manifest.json").exists()
    assert publish("a-run", manifest.current().manifest).published, "what was built by hand counts"


@pytest.mark.long
def test_a_damaged_manifest_is_made_again(project: Path) -> None:
    for name, damage in (("manifest.json", ""), ("tasks.json", None), ("files.json", "{}")):
        file = manifest.current().folder / name
        file.unlink()
        if damage is not None:
            file.write_text(damage)
        assert "model.analytics.one" in json.loads(manifest.current().tasks.read_text())["nodes"]
        assert "model.analytics.one" in json.loads(manifest.current().manifest.read_text())["nodes"]


@pytest.mark.long
def test_a_project_without_models_is_not_published(project: Path) -> None:
    shutil.rmtree(project / "models")
    file = manifest.current().manifest
    with pytest.raises(NotReadyError, match=r"manifest\.json has no models"):
        publish("a-run", file)


@pytest.mark.long
def test_what_dbt_refuses_is_its_own_message_and_leaves_the_manifest(project: Path) -> None:
    before = manifest.current().tasks.read_text()
    model = project / "models" / "one.sql"
    model.write_text("select * from {{ ref('nothing') }}")
    with pytest.raises(DbtParseError, match="which was not found"):
        manifest.current()
    assert manifest.latest() and (manifest.latest() or model).with_name("tasks.json").read_text() == before
    model.write_text("select 1 as one")
    assert parsed_at()


@pytest.mark.long
def test_where_the_project_cannot_be_written_the_manifest_is_beside_airflows_files(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = manifest.current()
    assert manifest.current() == shipped
    (project / "models" / "two.sql").write_text("select 2 as two")

    def fake_writable(folder: Path) -> bool:
        folder.mkdir(parents=True, exist_ok=True)
        return folder.is_relative_to(tmp_path / "airflow")

    monkeypatch.setattr(manifest, "_is_writable", fake_writable)
    edited = manifest.current()
    assert edited.folder.is_relative_to(tmp_path / "airflow")
    assert "model.analytics.two" in json.loads(edited.tasks.read_text())["nodes"]
