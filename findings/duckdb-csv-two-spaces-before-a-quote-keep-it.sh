#!/bin/sh
# One space before a quoted CSV value is skipped, two make the spaces and the quotes part of the value.
#
# duckdb 1.5.5.
# Guess: spaces before a quote are either always skipped, or never: `1, "b"` and `1,  "b"` give the same kind of value.
# Seen:  with one space the value is `b`, with two or more it is `  "b"`, also with every option declared and in a file that has both.
#        No error, so a column padded to a width holds `b` in some rows and `  "b"` in others; a delimiter within such a value is
#        an error about the number of columns.
# Remedy: read such columns as text and compare, or strip spaces and quotes afterwards.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check duckdb==1.5.5
cd "$dir"
venv/bin/python - > seen <<'EOF'
from pathlib import Path

import duckdb

Path("padded.csv").write_text("".join(f'{n},{" " * n}"b"\n' for n in range(4)))
options = """delim = ',', quote = '"', header = false, auto_detect = false, columns = {'spaces': 'INTEGER', 'name': 'VARCHAR'}"""
for row in duckdb.sql(f"from read_csv('padded.csv', {options})").fetchall():
    print(row)
EOF
cat seen
diff seen - <<'EOF'
(0, 'b')
(1, 'b')
(2, '  "b"')
(3, '   "b"')
EOF
