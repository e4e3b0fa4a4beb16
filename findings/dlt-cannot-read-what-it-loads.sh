#!/bin/sh
# A fresh install of dlt loads data and cannot read it: every `pipeline.dataset()` query raises TypeError.
#
# dlt 1.31.0 with sqlglot 30.30.0, which it asks for as `sqlglot>=26.32.0`, and duckdb 1.5.5.
# Guess: what pip resolves for dlt works with dlt, so a table that was just loaded can be read back.
# Seen:  dlt passes `infer_schema` to sqlglot's `qualify()`, which no longer takes it. Loading does not use it, so nothing fails
#        until the first `fetchall()`, `arrow()` or `df()`, which fail on the simplest of tables.
# Remedy: sqlglot 30.19.0 still works: `sqlglot<30.20`; or read through `pipeline.sql_client()`.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check "dlt[duckdb]==1.31.0" duckdb==1.5.5 sqlglot==30.30.0
cd "$dir"
RUNTIME__DLTHUB_TELEMETRY=false venv/bin/python - > seen 2> log <<'EOF' || { tail -20 log; exit 1; }
import dlt

pipeline = dlt.pipeline("p", pipelines_dir="state", destination=dlt.destinations.duckdb("d.duckdb"), dataset_name="raw")
pipeline.run([{"id": 1}], table_name="t")
try:
    print("dataset", pipeline.dataset().t.select("id").fetchall())
except TypeError as error:
    print("dataset", error)
with pipeline.sql_client() as client:
    print("sql_client", client.execute_sql("select id from t"))
EOF
cat seen
diff seen - <<'EOF'
dataset qualify() got an unexpected keyword argument 'infer_schema'
sql_client [(1,)]
EOF
