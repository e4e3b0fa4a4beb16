#!/bin/sh
# duckdb_indexes() fails for everybody while a transaction has renamed a table that had an index, and has not committed.
#
# duckdb 1.5.5.
# Guess: another transaction still sees the table and its index under their old names.
# Seen:  the table's row is right, but the list of indexes is an error, `Table with name new does not exist`: the name of
#        the other transaction. So it fails for any table, also those that have no index.
# Remedy: try again until the other transaction has ended. `duckdb_tables()` has a right `index_count` meanwhile.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check duckdb==1.5.5
cd "$dir"
venv/bin/python - > seen <<'PY'
import duckdb

connection = duckdb.connect()
connection.execute("create table old as select 1 as id; create index by_id on old (id)")
writer, reader = connection.cursor(), connection.cursor()
writer.begin()
writer.execute("drop index by_id; alter table old rename to new")
print(reader.execute("select table_name, index_count from duckdb_tables()").fetchall())
try:
    print(reader.execute("select index_name from duckdb_indexes()").fetchall())
except duckdb.CatalogException as error:
    print(str(error).splitlines()[0])
writer.rollback()
print(reader.execute("select index_name from duckdb_indexes()").fetchall())
PY
cat seen
diff seen - <<'EOS'
[('old', 1)]
Catalog Error: Table with name new does not exist!
[('by_id',)]
EOS
