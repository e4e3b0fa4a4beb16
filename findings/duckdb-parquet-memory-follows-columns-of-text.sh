#!/bin/sh
# DuckDB's Parquet writer takes most of a megabyte for each column of text, however few rows there are.
#
# duckdb 1.5.5, Python 3.11, Linux.
# Guess: 54 rows of 600 short texts, 97 kB of CSV, can be copied to Parquet within a memory limit of 512 MB; what does not
#        fit is spilled.
# Seen:  Out of Memory, also with one thread, without insertion order and with small row groups. The same rows into a table
#        are no problem.
# Remedy: beyond some 200 columns, fetch Arrow batches and write them with pyarrow (include/dlt_pipelines/files/output.py).
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check duckdb==1.5.5
cat > "$dir/copy.py" <<'EOF'
import sys

import duckdb

folder, columns, rows = sys.argv[1], 600, 54
with open(f"{folder}/wide.csv", "w") as file:
    file.write(",".join(f"c{at}" for at in range(columns)) + "\n")
    file.write((",".join(["ab"] * columns) + "\n") * rows)


def outcome(statement, **config):
    limits = {"memory_limit": "512MB", "temp_directory": f"{folder}/spill"}
    with duckdb.connect(config=limits | config) as connection:
        try:
            connection.execute(statement)
            return "done"
        except duckdb.OutOfMemoryException:
            return "out of memory"


source = f"select * from read_csv('{folder}/wide.csv', all_varchar=true)"
to_parquet = f"copy ({source}) to '{folder}/wide.parquet' (format parquet"
found = {
    "to a table": outcome(f"create table wide as {source}"),
    "to Parquet": outcome(f"{to_parquet})"),
    "one thread": outcome(f"{to_parquet}, row_group_size 2048)", threads=1, preserve_insertion_order=False),
}
for name, result in found.items():
    print(f"{name}: {result}")
sys.exit(list(found.values()) != ["done", "out of memory", "out of memory"])
EOF
"$dir/venv/bin/python" "$dir/copy.py" "$dir" || { echo "CHANGED: see above"; exit 1; }
