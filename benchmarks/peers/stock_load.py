"""The load of the peers that have none: dlt as documented, with pyarrow's reader of CSV files."""

import os
from pathlib import Path
from typing import Any

import dlt
import pyarrow.csv

from include.dlt_pipelines.jaffle_shop_pipeline import SOURCE
from include.warehouse import paths

DATA = Path(os.environ["SOURCES__JAFFLE_SHOP__DATA_DIR"])


@dlt.source(name="jaffle_shop")
def csv_files() -> Any:
    for table in SOURCE.tables:
        yield dlt.resource(
            lambda name=table.name: pyarrow.csv.open_csv(DATA / f"{name}.csv"),
            name=table.name,
            write_disposition="replace",
        )


def pipeline(name: str) -> Any:
    return dlt.pipeline(
        name,
        destination=dlt.destinations.duckdb(str(paths.working_path())),
        dataset_name="jaffle_shop_raw",
        pipelines_dir=str(paths.warehouse_dir() / "dlt"),
    )
