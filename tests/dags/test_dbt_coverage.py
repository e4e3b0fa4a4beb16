"""Every model and every test of the dbt project is run by exactly one task."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from testing.project import NAME

pytestmark = pytest.mark.dags

PROJECT = Path(__file__).resolve().parents[2]
DBT_PROJECT = PROJECT / "include" / "dbt_project"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((DBT_PROJECT / "target" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def selected(dag_bag: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The nodes selected by each dbt task, by task id, as resolved by dbt."""
    from cosmos.operators.local import DbtRunLocalOperator, DbtTestLocalOperator
    from dbt.cli.main import dbtRunner
    from dbt.contracts.graph.manifest import Manifest

    parsed = dbt(dbtRunner(), ["parse"], tmp_path_factory.mktemp("target"))
    assert isinstance(parsed, Manifest)
    lister = dbtRunner(manifest=parsed)
    listed: dict[str, list[str]] = {}
    for task in dag_bag.dags[NAME].tasks:
        if isinstance(task, DbtTestLocalOperator):
            types = ["test", "unit_test"]
        elif isinstance(task, DbtRunLocalOperator):
            types = ["model"]
        else:
            continue
        words = ["ls", "--output", "json", "--output-keys", "unique_id"]
        for resource_type in types:
            words += ["--resource-type", resource_type]
        for option in ("select", "models", "exclude", "selector", "indirect_selection"):
            value = getattr(task, option)
            if value:
                values = [value] if isinstance(value, str) else value
                words += [f"--{option.replace('_', '-')}", " ".join(values)]
        rows = dbt(lister, words, tmp_path_factory.mktemp("target"))
        listed[task.task_id] = [json.loads(row)["unique_id"] for row in rows]
    return listed


def dbt(runner: Any, words: list[str], target: Path) -> Any:
    folders = [
        "--project-dir",
        DBT_PROJECT,
        "--profiles-dir",
        DBT_PROJECT,
        "--target-path",
        target,
        "--log-path",
        target,
    ]
    outcome = runner.invoke(["--quiet", *words, *map(str, folders)])
    assert outcome.success, outcome.exception
    return outcome.result


def test_every_model_is_run_by_exactly_one_task(selected: dict[str, list[str]], manifest: dict[str, Any]) -> None:
    models = [key for key, node in manifest["nodes"].items() if node["resource_type"] == "model"]
    run = Counter(node for nodes in selected.values() for node in nodes if node.startswith("model."))
    assert run == Counter(models)


def test_every_dbt_test_is_run_by_exactly_one_task(selected: dict[str, list[str]], manifest: dict[str, Any]) -> None:
    tests = [key for key, node in manifest["nodes"].items() if node["resource_type"] == "test"]
    run = Counter(node for nodes in selected.values() for node in nodes if not node.startswith("model."))
    assert run == Counter([*tests, *manifest["unit_tests"]])


def test_no_dbt_task_selects_nothing(selected: dict[str, list[str]]) -> None:
    assert [task for task, nodes in selected.items() if not nodes] == []


def test_the_manifest_is_up_to_date(manifest: dict[str, Any], tmp_path: Path) -> None:
    from dbt.cli.main import dbtRunner

    parsed = dbt(dbtRunner(), ["parse"], tmp_path)
    nodes = {key: node["checksum"]["checksum"] for key, node in manifest["nodes"].items()}
    assert nodes == {key: node.checksum.checksum for key, node in parsed.nodes.items()}
