#!/bin/sh
# Rows of a CSV file whose first value starts with `#` disappear, if other rows do not.
#
# duckdb 1.5.5.
# Guess: `#` is a character like any other, as the standard (RFC 4180) says; comments are for who asks for `comment='#'`.
# Seen:  the dialect's detection also tries `#` as the start of comments, and takes it if that makes the rows more alike. Here
#        the column is then numeric, and ten of a hundred orders are gone: no error, a sum that is too small. If every row
#        starts with `#`, all are kept, as text; so a feed can lose rows from one day to the next. Nor can the lost rows be
#        inspected: with `store_rejects` detection decides otherwise, reads all rows, and there is nothing to see.
# Remedy: `comment=''`, or a declared dialect.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check duckdb==1.5.5
cd "$dir"
venv/bin/python - > seen <<'EOF'
from pathlib import Path

import duckdb


def orders(name, number):
    Path(name).write_text("order,amount\n" + "".join(f"{number(n)},{n}\n" for n in range(1, 101)))


orders("some.csv", lambda n: f"#{n}" if n % 10 == 0 else n)
orders("all.csv", lambda n: f"#{n}")
connection = duckdb.connect()
for source in ("'some.csv'", "read_csv('some.csv', store_rejects = true)", "read_csv('some.csv', comment = '')", "'all.csv'"):
    query = f'select count(*), sum(amount)::bigint, any_value(typeof("order")) from {source}'
    print(source, connection.execute(query).fetchone())
EOF
cat seen
diff seen - <<'EOF'
'some.csv' (90, 4500, 'BIGINT')
read_csv('some.csv', store_rejects = true) (100, 5050, 'VARCHAR')
read_csv('some.csv', comment = '') (100, 5050, 'VARCHAR')
'all.csv' (100, 5050, 'VARCHAR')
EOF
