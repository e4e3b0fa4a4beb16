#!/bin/sh
# Without pandas, each value bound to a query costs DuckDB two searches for it on the disk.
#
# duckdb 1.5.5, Python 3.11.
# Guess: a missing pandas is noticed once, at the latest with the first query.
# Seen:  a list of 1,000 texts as one parameter makes 2,002 calls of `find_spec("pandas")`, each of which looks through all folders
#        of sys.path; the same list as literals in the SQL makes none.
# Remedy: many or long parameters as quoted literals, or from a table; one or two do no harm.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check duckdb==1.5.5

cat > "$dir/searches.py" <<'EOP'
import sys

import duckdb


class Counter:
    searches = 0

    def find_spec(self, name, path=None, target=None):
        Counter.searches += name.split(".")[0] == "pandas"


sys.meta_path.insert(0, Counter())


def searches(query, *parameters):
    Counter.searches = 0
    assert duckdb.execute(query, list(parameters)).fetchone() == (True,)
    return Counter.searches


texts = ["a"] * 999 + ["x"]
print("as a parameter:", bound := searches("select list_contains(?, 'x')", texts))
print("as literals:", literal := searches(f"select list_contains({texts}, 'x')"))
if not (bound > 1000 > literal):
    sys.exit("it has changed")
EOP
"$dir/venv/bin/python" "$dir/searches.py"
