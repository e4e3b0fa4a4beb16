"""Contracts of the jaffle shop's CSV files, loaded into the schema `jaffle_shop_raw`.

    include/data/raw_*.csv ──parse──▶ Parquet ──dlt, one transaction──▶ jaffle_shop_raw.*
                              └─ rejected rows ──────────────────────▶ jaffle_shop_raw.rejected_rows

Run it alone: `python -m include.dlt_pipelines jaffle_shop`. `SOURCES__JAFFLE_SHOP__DATA_DIR` sets another folder.
"""

from include.dlt_pipelines.file_source import FileSource, TableContract

SOURCE = FileSource(
    "jaffle_shop",
    folder="include/data",
    tables=(
        TableContract(
            "raw_customers",
            {"id": "BIGINT", "first_name": "VARCHAR", "last_name": "VARCHAR"},
            primary_key=("id",),
        ),
        TableContract(
            "raw_orders",
            {"id": "BIGINT", "user_id": "BIGINT", "order_date": "DATE", "status": "VARCHAR"},
            primary_key=("id",),
        ),
        TableContract(
            "raw_payments",
            {"id": "BIGINT", "order_id": "BIGINT", "payment_method": "VARCHAR", "amount": "BIGINT"},
            primary_key=("id",),
        ),
    ),
)
