"""The pipeline's figures, and the files that read them from Prometheus."""

import ast
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from include.runs import artifacts
from include.runs.figures import costs, figures
from include.warehouse import hold, paths
from include.warehouse.targets import target
from testing.project import NAME, PROJECT, unchecked

pytestmark = pytest.mark.unit

MONITORING = PROJECT / "deploy" / "monitoring"
UNITS = {"s": "_seconds", "By": "_bytes", "": ""}


@pytest.fixture(autouse=True)
def warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))


def publish(run_id: str) -> None:
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts")
        connection.execute("create or replace table marts.t as select 1 as i")
    target().publish(run_id, unchecked)


def values() -> dict[tuple[str, str], float]:
    found = figures(NAME)
    assert all(one.labels["warehouse"] == NAME for one in found)
    return {(one.name, one.labels.get("state") or one.labels.get("source", "")): one.value for one in found}


def keep(run_id: str, statuses: list[str], rejected: int) -> None:
    load = artifacts.Load(run_id, "shop", "1", seconds=2.5, tables={"t": artifacts.TableLoad(7, rejected)})
    artifacts.keep(artifacts.write_load(load))
    results = [
        {"unique_id": f"test.p.{at}", "status": status, "execution_time": 1} for at, status in enumerate(statuses)
    ]
    (paths.run_artifacts_dir(run_id) / "transform.t.test.json").write_text(json.dumps({"results": results}))


def test_an_empty_warehouse_has_figures_of_its_disk_and_no_release() -> None:
    found = values()
    assert found["warehouse.held", ""] == found["warehouse.waiting", ""] == 0
    assert 0 < found["warehouse.disk.free", ""] <= found["warehouse.disk.size", ""]
    assert not {name for name, _ in found} & {"warehouse.release.age", "warehouse.rows.loaded", "warehouse.tests"}


@pytest.mark.files
def test_figures_are_of_what_readers_see_and_of_the_last_load() -> None:
    publish("one")
    keep("one", ["pass"], 0)
    publish("two")
    time.sleep(0.01)
    keep("two", ["pass", "pass", "fail", "runtime error"], 3)
    found = values()
    assert 0 <= found["warehouse.release.age", ""] < 60
    assert found["warehouse.release.size", ""] == paths.published_path().stat().st_size
    assert (found["warehouse.rows.loaded", "shop"], found["warehouse.rows.rejected", "shop"]) == (7, 3)
    assert found["warehouse.load.duration", "shop"] == 2.5
    states = {state: value for (name, state), value in found.items() if name == "warehouse.tests"}
    assert states == {"pass": 2, "warn": 0, "fail": 1, "error": 1, "skipped": 0}
    hold.roll_back("one")
    assert values()["warehouse.held", ""] == 1


def test_the_cost_of_a_task_is_that_of_all_its_tries_and_what_the_engine_bills() -> None:
    artifacts.keep_cost("one", "load.shop", 1, 2.0)
    artifacts.keep_cost("one", "load.shop", 2, 0.5)
    artifacts.keep_cost("one", "load.shop", 2, 1.5)  # of the same try: it is written once more
    billed = [
        {"unique_id": f"model.p.{name}", "status": "success", "adapter_response": response}
        for name, response in (("a", {"bytes_billed": 10}), ("b", {"bytes_billed": 5}), ("c", {}))
    ]
    (paths.run_artifacts_dir("one") / "transform.a.run.json").write_text(json.dumps({"results": billed[:2]}))
    (paths.run_artifacts_dir("one") / "transform.c.run.json").write_text(json.dumps({"results": billed[2:]}))
    found = {(one.name, one.labels["task"]): one.value for one in costs(NAME, "one")}
    assert found == {("warehouse.task.cpu", "load.shop"): 3.5, ("warehouse.task.billed", "transform.a.run"): 15}
    (paths.run_artifacts_dir("one") / "load.shop.cost.json").write_text("half")
    assert artifacts.costs_of("one") == {}
    artifacts.keep_cost("one", "load.shop", 3, 1.0)
    assert artifacts.costs_of("one") == {"load.shop": 1.0}


def names() -> set[str]:
    """Return every figure's name as Prometheus has it, from the code that makes them."""
    found = set()
    for file in ("include/runs/figures.py", "plugins/watch.py"):
        for call in ast.walk(ast.parse((PROJECT / file).read_text())):
            if (
                isinstance(call, ast.Call)
                and ast.unparse(call.func) == "Figure"
                and isinstance(call.args[0], ast.Constant)
            ):
                unit = ast.literal_eval(call.args[2]) if len(call.args) > 2 else ""
                found.add(call.args[0].value.replace(".", "_") + UNITS[unit])
    return found


def test_dashboard_and_alert_rules_read_figures_that_exist() -> None:
    assert {"warehouse_release_age_seconds", "warehouse_tests", "warehouse_disk_free_bytes"} <= names()
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    read = {name for text in shown for name in re.findall(r"\bwarehouse_\w+", text)}
    assert read == names()
    watched = {name for rule in rules for name in re.findall(r"\bwarehouse_\w+", rule["expr"])}
    assert watched <= names(), watched - names()
    runbook = (PROJECT / "docs" / "runbook.md").read_text() + (PROJECT / "docs" / "deployment.md").read_text()
    for rule in rules:
        assert f"\n## {rule['annotations']['runbook'].split(chr(34))[1]}\n" in runbook, rule["alert"]


def test_alert_rules_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("needs promtool: apt-get install prometheus")
    subprocess.run([promtool, "check", "rules", MONITORING / "alerts.yaml"], check=True)
    folder = PROJECT / "tests" / "data" / "monitoring"
    done = subprocess.run([promtool, "test", "rules", "alerts.test.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
