"""The pipeline on Dagster, using dagster-dlt and dagster-dbt as documented."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DbtCliResource, DbtProject, dbt_assets
from dagster_dlt import DagsterDltResource, DagsterDltTranslator, dlt_assets
from dagster_dlt.translator import DltResourceTranslatorData

from benchmarks.peers import stock_load
from include.warehouse.targets import target

PROJECT = Path(__file__).resolve().parents[2] / "include" / "dbt_project"
project = DbtProject(project_dir=PROJECT, profiles_dir=PROJECT, target_path=Path(os.environ["DBT_TARGET_PATH"]))


class AsDbtSources(DagsterDltTranslator):
    """Give the raw tables the asset keys of dbt's sources, so that dbt's models depend on them."""

    def get_asset_spec(self, data: DltResourceTranslatorData) -> dg.AssetSpec:
        return super().get_asset_spec(data).replace_attributes(key=dg.AssetKey(["jaffle_shop", data.resource.name]))


@dlt_assets(
    dlt_source=stock_load.csv_files(),
    dlt_pipeline=stock_load.pipeline("jaffle_shop_dagster"),
    name="load",
    dagster_dlt_translator=AsDbtSources(),
)
def load(context: dg.AssetExecutionContext, dlt: DagsterDltResource) -> Iterator[Any]:
    yield from dlt.run(context=context, loader_file_format="parquet")


@dbt_assets(manifest=project.manifest_path, project=project)
def transform(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    yield from dbt.cli(["build"], context=context).stream()


@dg.asset(deps=[transform])
def publish(context: dg.AssetExecutionContext) -> None:
    target().publish(context.run_id, lambda _: None)


defs = dg.Definitions(
    assets=[load, transform, publish],
    jobs=[dg.define_asset_job("jaffle_shop", selection="*")],
    resources={
        "dbt": DbtCliResource(project_dir=project, profiles_dir=str(PROJECT)),
        "dlt": DagsterDltResource(),
    },
)
