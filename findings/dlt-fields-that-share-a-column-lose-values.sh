#!/bin/sh
# Of two fields whose names differ only in spelling, the later one in each dictionary replaces the earlier; with Arrow it is an error.
#
# dlt 1.31.0 with duckdb 1.5.5 and pyarrow 26.0.1.
# Guess: `userID` and `user_id` both become the column `user_id`, so dlt refuses the data, as it does with an Arrow table
#        (`NameNormalizationCollision`), or makes two columns.
# Seen:  with dictionaries, each row keeps the field that comes last in it and loses the other, without a word. Which one that is
#        can differ from row to row, so the column mixes the two.
# Remedy: compare the normalised names before loading: `pipeline.default_schema.naming.normalize_identifier(name)`.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check "dlt[duckdb]==1.31.0" duckdb==1.5.5 pyarrow==26.0.1
cd "$dir"
RUNTIME__DLTHUB_TELEMETRY=false venv/bin/python - > seen <<'EOF'
import dlt
import pyarrow as pa

rows = [{"id": 1, "userID": "anna", "user_id": "A-1"}, {"id": 2, "user_id": "B-2", "userID": "ben"}]
for data in (rows, pa.Table.from_pylist(rows)):
    name = type(data).__name__
    destination = dlt.destinations.duckdb(f"{name}.duckdb")
    pipeline = dlt.pipeline(name, pipelines_dir="state", destination=destination, dataset_name="raw")
    try:
        pipeline.run(data, table_name="t")
    except Exception as error:
        print(name, type(error.__cause__ or error).__name__)
        continue
    with pipeline.sql_client() as client:
        print(name, client.execute_sql("select id, user_id from t order by id"))
EOF
cat seen
diff seen - <<'EOF'
list [(1, 'A-1'), (2, 'ben')]
Table NameNormalizationCollision
EOF
