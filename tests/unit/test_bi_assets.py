"""The dashboards' files, without Superset: they belong to the dbt project."""

import json
import re
from typing import Any

import pytest
import yaml

from include.runs import manifest
from include.settings import REPOSITORY_ROOT as ROOT

pytestmark = pytest.mark.unit

ASSETS = ROOT / "bi" / "assets"


def read(folder: str) -> dict[str, dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted((ASSETS / folder).rglob("*.yaml"))]
    return {one["uuid"]: one for one in files}


DATASETS, CHARTS, DASHBOARDS = read("datasets"), read("charts"), read("dashboards")
MANIFEST = json.loads(manifest.current().manifest.read_text())


def charts_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    placed = (one for name, one in dashboard["position"].items() if name.startswith("CHART-"))
    return [CHARTS[one["meta"]["uuid"]] for one in placed]


@pytest.mark.parametrize("exposure", MANIFEST["exposures"].values(), ids=lambda one: str(one["name"]))
def test_an_exposure_is_a_dashboard_that_reads_what_it_depends_on(exposure: dict[str, Any]) -> None:
    (dashboard,) = (
        one for one in DASHBOARDS.values() if exposure["url"].endswith(f"/superset/dashboard/{one['slug']}/")
    )
    assert dashboard["dashboard_title"] == exposure["label"] and exposure["owner"]["email"]
    datasets = [DATASETS[chart["dataset_uuid"]] for chart in charts_of(dashboard)]
    models = {f"model.analytics.{one['table_name']}" for one in datasets if not one["sql"]}
    assert models == set(exposure["depends_on"]["nodes"])


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda one: str(one["table_name"]))
def test_a_dataset_of_a_model_has_its_columns_without_personal_data(dataset: dict[str, Any]) -> None:
    if dataset["sql"]:
        return
    (model,) = (
        node
        for node in MANIFEST["nodes"].values()
        if node["resource_type"] == "model"
        and (node["schema"], node["alias"]) == (dataset["schema"], dataset["table_name"])
    )
    columns = model["columns"].values()
    allowed = {one["name"] for one in columns if not one["config"].get("meta", {}).get("contains_pii")}
    assert {one["column_name"] for one in dataset["columns"]} == allowed


def test_every_chart_is_on_a_dashboard_and_uses_metrics_of_its_dataset() -> None:
    placed = [chart["uuid"] for dashboard in DASHBOARDS.values() for chart in charts_of(dashboard)]
    assert set(placed) == set(CHARTS)
    for chart in CHARTS.values():
        metrics = {one["metric_name"] for one in DATASETS[chart["dataset_uuid"]]["metrics"]}
        used = {*chart["params"].get("metrics", []), *filter(None, [chart["params"].get("metric")])}
        assert used <= metrics, chart["slice_name"]


def test_the_dashboards_have_the_duckdb_that_writes_the_file() -> None:
    (ours,) = re.findall("^duckdb==[^ ]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"\n{ours} " in (ROOT / "requirements" / "bi.txt").read_text()
