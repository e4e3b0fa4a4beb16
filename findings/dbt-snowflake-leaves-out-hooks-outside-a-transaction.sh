#!/bin/sh
# A hook of a model with `transaction: false` never runs on Snowflake, and dbt reports success.
#
# dbt-snowflake 1.12.4 with dbt-core 1.11.16, on fakesnow 0.12.1. The materializations of dbt-bigquery have the same lines.
# Guess: such a hook, or one made by `after_commit()`, runs after the model's transaction, as on PostgreSQL.
# Seen:  of two hooks that each make a table, only the one inside the transaction has made it. The materializations call `run_hooks`
#        only for the hooks that are to run inside one.
# Remedy: leave `transaction` out where the same project is to run on these services.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check dbt-core==1.11.16 dbt-snowflake==1.12.4 fakesnow==0.12.1 snowflake-connector-python==4.8.1 duckdb==2.0.1
cd "$dir"
mkdir -p project/models
echo '{name: hooks, profile: hooks, flags: {send_anonymous_usage_stats: false}}' > project/dbt_project.yml
cat > project/profiles.yml <<'YAML'
hooks:
  target: dev
  outputs:
    dev: {type: snowflake, account: none, user: u, password: p, database: db, schema: s, warehouse: w, threads: 1}
YAML
cat > project/models/one.sql <<'SQL'
{{ config(materialized='table', post_hook=[
    {'sql': 'create table s.inside as select 1 as i'},
    {'sql': 'create table s.outside as select 1 as i', 'transaction': false}]) }}
select 1 as id
SQL
venv/bin/python - > seen 2> log <<'PYTHON'
import fakesnow
from dbt.cli.main import dbtRunner

with fakesnow.patch():
    import snowflake.connector

    with snowflake.connector.connect(database="db", schema="s") as connection:
        done = dbtRunner().invoke(["--quiet", "run", "--project-dir", "project", "--profiles-dir", "project"])
        query = "select table_name from db.information_schema.tables where table_schema = 'S' order by 1"
        print("success:", done.success, *(name for (name,) in connection.cursor().execute(query).fetchall()))
PYTHON
cat seen
test "$(cat seen)" = "success: True INSIDE ONE"
