#!/bin/sh
# A schema contract that discards rows of the wrong type empties the table, if the rows come as Arrow.
#
# dlt 1.31.0 with duckdb 1.5.5 and pyarrow 26.0.1.
# Guess: `schema_contract={"data_type": "discard_row"}` discards the rows whose values do not fit, as it does with dictionaries,
#        and as `{"columns": "discard_row"}` discards the rows that have a value in a new column, of Arrow tables too.
# Seen:  if a column of an Arrow table has another type than the column loaded before, every row is discarded, even if all
#        values fit. With `write_disposition="replace"` a full table is then empty, and the load succeeds without a warning.
# Remedy: `freeze`, which fails and keeps the table; or cast before dlt sees the data.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check "dlt[duckdb]==1.31.0" duckdb==1.5.5 pyarrow==26.0.1
cd "$dir"
RUNTIME__DLTHUB_TELEMETRY=false venv/bin/python - > seen <<'EOF'
import dlt
import pyarrow as pa

THREE = pa.table({"id": [1, 2, 3], "amount": [10, 20, 30]})


def load(what, contract, first, second):
    destination = dlt.destinations.duckdb(f"{what}.duckdb")
    pipeline = dlt.pipeline(what, pipelines_dir="state", destination=destination, dataset_name="raw")
    for rows in (first, second):
        info = pipeline.run(dlt.resource(rows, name="t", write_disposition="replace", schema_contract=contract))
    with pipeline.sql_client() as client:
        print(f"{what}: failed jobs {info.has_failed_jobs}, rows {client.execute_sql('select id from t order by id')}")


rows = THREE.to_pylist()
load("dictionaries", {"data_type": "discard_row"}, rows, [rows[0], {"id": 2, "amount": "twenty"}, rows[2]])
other_type = pa.table({"id": [1, 2, 3], "amount": ["10", "20", "30"]})
load("arrow_other_type", {"data_type": "discard_row"}, THREE, other_type)
new_column = THREE.append_column("note", pa.array([None, None, "x"]))
load("arrow_new_column", {"columns": "discard_row"}, THREE, new_column)
EOF
cat seen
diff seen - <<'EOF'
dictionaries: failed jobs False, rows [(1,), (3,)]
arrow_other_type: failed jobs False, rows []
arrow_new_column: failed jobs False, rows [(1,), (2,)]
EOF
