"""The pipeline on Prefect, using prefect-dbt as documented: a task for each node of `dbt build`."""

from pathlib import Path

from prefect import flow, task
from prefect.runtime import flow_run
from prefect_dbt import PrefectDbtRunner, PrefectDbtSettings

from benchmarks.peers import stock_load
from include.warehouse.targets import target

PROJECT = Path(__file__).resolve().parents[2] / "include" / "dbt_project"


@task
def load() -> None:
    stock_load.pipeline("jaffle_shop_prefect").run(stock_load.csv_files(), loader_file_format="parquet")


@task
def publish(run_id: str) -> None:
    target().publish(run_id, lambda _: None)


@flow(name="jaffle_shop")
def jaffle_shop() -> None:
    load()
    PrefectDbtRunner(settings=PrefectDbtSettings(project_dir=PROJECT, profiles_dir=PROJECT)).invoke(["build"])
    publish(str(flow_run.id))


if __name__ == "__main__":
    jaffle_shop.serve(name="jaffle_shop")
