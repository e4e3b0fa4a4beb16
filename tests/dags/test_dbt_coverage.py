"""Every model and test of a dbt project is run by exactly one task: of this project, and of one with every kind."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from include.runs import manifest
from testing import feature_project
from testing.project import NAME

pytestmark = pytest.mark.dags


@dataclass
class Rendered:
    """A DAG, and the nodes that each of its dbt tasks selects, as resolved by dbt."""

    dag: Any
    manifest: dict[str, Any]
    selected: dict[str, list[str]]

    def upstream(self, task: str) -> set[str]:
        return self.dag.get_task(task).get_flat_relative_ids(upstream=True)


@pytest.fixture(scope="module", params=["this project", "every kind of node"])
def rendered(
    request: pytest.FixtureRequest, dag_bag: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rendered]:
    with pytest.MonkeyPatch.context() as patch:
        dag = dag_bag.dags[NAME]
        if request.param != "this project":
            project = tmp_path_factory.mktemp("project")
            feature_project.write(project)
            patch.setattr(manifest, "DBT_PROJECT", project)
            patch.setattr("elt.DBT_PROJECT", project)
            from elt import elt_dag, load, publish, source_freshness, transform

            with elt_dag("features", schedule=None, description="") as dag:
                models = transform()
                load(("one", "two")) >> source_freshness(("one", "two")) >> models >> publish(models)
        parsed = manifest.current()
        yield Rendered(dag, json.loads(parsed.manifest.read_text()), _selected(dag, tmp_path_factory.mktemp("target")))


def _selected(dag: Any, scratch: Path) -> dict[str, list[str]]:
    from cosmos.operators.local import (
        DbtRunLocalOperator,
        DbtSeedLocalOperator,
        DbtSnapshotLocalOperator,
        DbtTestLocalOperator,
    )
    from dbt.cli.main import dbtRunner
    from dbt.contracts.graph.manifest import Manifest

    kinds = {
        DbtTestLocalOperator: ["test", "unit_test"],
        DbtRunLocalOperator: ["model"],
        DbtSeedLocalOperator: ["seed"],
        DbtSnapshotLocalOperator: ["snapshot"],
    }
    parsed = dbt(dbtRunner(), ["parse"], scratch)
    assert isinstance(parsed, Manifest)
    lister = dbtRunner(manifest=parsed)
    listed: dict[str, list[str]] = {}
    for task in dag.tasks:
        if type(task) not in kinds:
            continue
        words = ["ls", "--output", "json", "--output-keys", "unique_id"]
        for resource_type in kinds[type(task)]:
            words += ["--resource-type", resource_type]
        for option in ("select", "models", "exclude", "selector", "indirect_selection"):
            value = getattr(task, option)
            if value:
                values = [value] if isinstance(value, str) else value
                words += [f"--{option.replace('_', '-')}", *" ".join(values).split()]
        rows = dbt(lister, words, scratch)
        listed[task.task_id] = [json.loads(row)["unique_id"] for row in rows]
    return listed


def dbt(runner: Any, words: list[str], scratch: Path) -> Any:
    folders = ["--project-dir", manifest.DBT_PROJECT, "--profiles-dir", manifest.DBT_PROJECT]
    folders += ["--target-path", scratch, "--log-path", scratch]
    outcome = runner.invoke(["--quiet", *words, *map(str, folders)])
    assert outcome.success, outcome.exception
    return outcome.result


def test_every_node_that_publish_demands_is_run_by_exactly_one_task(rendered: Rendered) -> None:
    from include.runs.build_graph import BuildGraph

    run = Counter(node for nodes in rendered.selected.values() for node in nodes)
    demanded = [node.id for node in BuildGraph(rendered.manifest).nodes]
    assert run == Counter(demanded)
    kinds = ("model", "seed", "snapshot", "test")
    known = {id_ for id_, node in rendered.manifest["nodes"].items() if node["resource_type"] in kinds}
    inlined = {id_ for id_ in known if rendered.manifest["nodes"][id_]["config"]["materialized"] == "ephemeral"}
    assert set(demanded) == (known - inlined) | rendered.manifest["unit_tests"].keys()


def test_no_dbt_task_selects_nothing(rendered: Rendered) -> None:
    assert [task for task, nodes in rendered.selected.items() if not nodes] == []


def test_the_manifest_is_up_to_date(rendered: Rendered, tmp_path: Path) -> None:
    from dbt.cli.main import dbtRunner

    parsed = dbt(dbtRunner(), ["parse"], tmp_path)
    nodes = {key: node["checksum"]["checksum"] for key, node in rendered.manifest["nodes"].items()}
    assert nodes == {key: node.checksum.checksum for key, node in parsed.nodes.items()}


@pytest.mark.parametrize("rendered", ["every kind of node"], indirect=True)
def test_tasks_wait_for_the_sources_tests_and_for_seeds_read_as_sources(rendered: Rendered) -> None:
    tests = {nodes[0].split(".")[2]: task for task, nodes in rendered.selected.items() if len(nodes) == 1}
    assert tests["of_nothing"] == "transform.of_nothing_test"
    assert {"transform.orders.run", "transform.history_snapshot"} <= rendered.upstream("transform.of_nothing_test")
    assert "transform.source_two_test" in rendered.upstream("transform.from_two.run")
    assert sorted(one.split(".")[2] for one in rendered.selected["transform.source_two_test"]) == [
        "of_a_source",
        "source_not_null_two_items_id",
    ]
    by_country = rendered.upstream("transform.by_country.run")
    assert {"transform.countries_seed", "transform.source_seeded_countries_test"} <= by_country
    assert rendered.selected["transform.by_country.test"] == ["unit_test.analytics.by_country.countries_are_kept"]


@pytest.mark.parametrize("rendered", ["every kind of node"], indirect=True)
def test_sources_that_dbt_reads_by_itself_are_checked_for_freshness_and_not_loaded(rendered: Rendered) -> None:
    assert rendered.dag.get_task("source_freshness").select == ["source:elsewhere"]
    loads = {task for task in rendered.dag.task_ids if task.startswith("load.")}
    assert loads == {"load.one", "load.two"}
