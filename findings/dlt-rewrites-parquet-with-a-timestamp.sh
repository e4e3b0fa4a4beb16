#!/bin/sh
# dlt rewrites a Parquet file that it is handed if a column is a timestamp without a time zone.
#
# dlt 1.31.0, duckdb 1.5.5, Python 3.11, Linux.
# Guess: a file of `with_file_import` is loaded as it is: that is what it is for.
# Seen:  normalize reads and writes the whole file again, to label the timestamps as UTC; the column becomes
#        TIMESTAMP WITH TIME ZONE. Without such a column, the load package has the very same file.
# Remedy: the hint `"timezone": False` for the column: then the file is the same, and the column stays a TIMESTAMP.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check "dlt[duckdb,parquet]==1.31.0" duckdb==1.5.5
cat > "$dir/hand_over.py" <<'EOF'
import os
import sys
from pathlib import Path

import dlt
import duckdb
import pyarrow.parquet
from dlt.extract import with_file_import

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
folder = Path(sys.argv[1])


def handed_over(name, value, hints):
    """Load a file of one column; return whether the package had the same file, and the column's type."""
    file = folder / f"{name}.parquet"
    duckdb.sql(f"copy (select {value} as at from range(1000)) to '{file}' (format parquet)")

    def rows():
        yield with_file_import(str(file), "parquet", 1000, hints=pyarrow.parquet.read_schema(file).empty_table())

    pipeline = dlt.pipeline(
        name, pipelines_dir=str(folder / "dlt"), destination=dlt.destinations.duckdb(str(folder / f"{name}.db"))
    )
    pipeline.extract(dlt.resource(rows, name="events", columns=hints))
    pipeline.normalize()
    packed = next((folder / "dlt" / name / "load" / "normalized").rglob("events*.parquet"))
    same = packed.read_bytes() == file.read_bytes()
    pipeline.load()
    with duckdb.connect(str(folder / f"{name}.db")) as connection:
        type_ = connection.execute("select data_type from duckdb_columns() where column_name = 'at'").fetchone()[0]
    return same, type_


moment = "timestamp '2026-01-05 16:05:00'"
found = {
    "a text": handed_over("texts", "'a'", {}),
    "a timestamp": handed_over("moments", moment, {}),
    "with the hint": handed_over("hinted", moment, {"at": {"data_type": "timestamp", "timezone": False}}),
}
for name, (same, type_) in found.items():
    print(f"{name}: {'the same file' if same else 'rewritten'}, {type_}")
expected = [(True, "VARCHAR"), (False, "TIMESTAMP WITH TIME ZONE"), (True, "TIMESTAMP")]
sys.exit(list(found.values()) != expected)
EOF
"$dir/venv/bin/python" "$dir/hand_over.py" "$dir" || { echo "CHANGED: see above"; exit 1; }
