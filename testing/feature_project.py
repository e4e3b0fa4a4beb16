"""A dbt project with one minimal node of each kind that a pipeline must run, record and demand."""

import shutil
import textwrap
from pathlib import Path

DBT_PROJECT = Path(__file__).resolve().parents[1] / "include" / "dbt_project"
# What only DuckDB has.
_ON_DUCKDB = "enabled=(target.type == 'duckdb')"
# What a lake does not have.
_INDEXES = "indexes=[{'columns': ['id']}] if 'lake' not in env_var('DBT_TARGET', '') else []"

FILES = {
    "dbt_project.yml": """
        name: analytics
        profile: analytics
        flags: {send_anonymous_usage_stats: false}
        models: {+schema: marts, +materialized: table}
        seeds: {+schema: marts}
        data_tests: {+store_failures: true, +schema: audit}
        """,
    "seeds/countries.csv": "id,country\n1,Chile\n2,Ghana\n",
    "macros/factor.sql": "{% macro factor() %} 1 {% endmacro %}",
    "macros/late.sql": "{% macro late() %} {{ return(later()) }} {% endmacro %}\n{% macro later() %} 1 {% endmacro %}",
    "macros/alias.sql": """
        {% macro generate_alias_name(custom_alias_name=none, node=none) %}
            {{ return(default__generate_alias_name(custom_alias_name, node)) }}
        {% endmacro %}
        """,
    "macros/plain.sql": """
        {% materialization plain, default %}
            {% set found = load_cached_relation(this) %}
            {% if found %} {% do adapter.drop_relation(found) %} {% endif %}
            {% call statement('main') %} create table {{ this }} as {{ sql }} {% endcall %}
            {% do adapter.commit() %}
            {{ return({'relations': [this]}) }}
        {% endmaterialization %}
        """,
    "models/inlined.sql": "{{ config(materialized='ephemeral') }} select id, i from {{ source('one', 'raw') }}",
    "models/stg.sql": "{{ config(materialized='view', schema='staging') }} select id, i from {{ ref('inlined') }}",
    "models/orders.sql": "select id, i * {{ factor() }} as i from {{ ref('stg') }}",
    # A folder of the name of a model.
    "models/orders/by_i.sql": "select i, count(*) as n from {{ ref('orders') }} group by i",
    "models/by_country.sql": "select id, country from {{ source('seeded', 'countries') }}",
    "models/random.sql": "select id, {{ 'rand' if target.type == 'bigquery' else 'random' }}() as r"
    " from {{ ref('stg') }}",
    "models/growing.sql": "{{ config(materialized='incremental') }} select id, i from {{ ref('stg') }}"
    " {% if is_incremental() %} where id > (select max(id) from {{ this }}) {% endif %}",
    "models/batches.sql": "{{ config(materialized='incremental', incremental_strategy='microbatch',"
    " event_time='happened_at', begin='2026-01-01', batch_size='year',"
    " unique_key='id' if target.type == 'postgres' else none,"
    # It overwrites partitions there, in SQL that the emulator cannot parse.
    " enabled=(target.type != 'bigquery')) }}"
    " select id, cast('2026-01-01' as timestamp) as happened_at from {{ ref('stg') }}",
    "models/from_two.sql": "{{ config(post_hook='create table if not exists"
    " {{ this.database }}.{{ this.schema }}.log as select 1 as i') }}"
    " select id from {{ source('two', 'items') }}",
    "models/constant.sql": "select 42 as answer",
    # Names that would be the same task, or that dbt's selections and Airflow's templates take for their own.
    "models/by.i.sql": "{{ config(alias='by.i' if target.type in ('duckdb', 'postgres') else 'by_dot_i') }}"
    " select id from {{ ref('stg') }}",
    "models/stg_run.sql": "select id from {{ ref('stg') }}",
    # BigQuery's emulator takes names of ASCII alone, Snowflake does without quotes.
    "models/a folder, {{odd}}+/größe.sql": "{{ config(enabled=(target.type in ('duckdb', 'postgres'))) }}"
    " select id as größe from {{ ref('stg') }}",
    "models/indexed.sql": "{{ config(" + _INDEXES + ") }} select id, i from {{ ref('stg') }}",
    "models/late_macro.sql": "select id, {% if execute %}{{ late() }}{% else %}0{% endif %} as v from {{ ref('stg') }}",
    "models/custom.sql": "{{ config(materialized='plain') }} select id from {{ ref('stg') }}",
    "models/prices.sql": "{{ config(" + _ON_DUCKDB + ") }} select id, price from {{ source('elsewhere', 'prices') }}",
    "models/off.sql": "{{ config(enabled=false) }} select 1 as id",
    "snapshots/history.yml": """
        snapshots:
          - name: history
            relation: ref('stg')
            config: {schema: marts, unique_key: id, strategy: check, check_cols: [i]}
        """,
    "models/models.yml": """
        sources:
          - {name: one, schema: one_raw, tables: [{name: raw}]}
          - {name: two, schema: two_raw, tables: [{name: items, columns: [{name: id, data_tests: [not_null]}]}]}
          - name: seeded
            schema: marts
            tables: [{name: countries, columns: [{name: country, data_tests: [not_null]}]}]
          - name: elsewhere
            config:
              enabled: "{{ target.type == 'duckdb' }}"
              loaded_at_field: now()
              freshness: {error_after: {count: 1, period: day}}
            tables:
              - name: prices
                config: {meta: {external_location: "{{ env_var('PRICES', 'prices.csv') }}"}}
                columns: [{name: id, data_tests: [not_null]}]
        models:
          - name: orders
            columns: [{name: id, data_tests: [unique]}]
          - name: random
            columns: [{name: r, data_tests: [not_null]}]
          - name: growing
            columns: [{name: id, data_tests: [not_null: {config: {store_failures_as: view}}]}]
          - name: from_two
            columns: [{name: id, data_tests: [unique]}]
          - name: stg_run
            columns: [{name: id, data_tests: [unique]}]
          - name: größe
            columns: [{name: größe, data_tests: [unique]}]
        unit_tests:
          - name: orders_keep_i
            model: orders
            given: [{input: ref('stg'), rows: [{id: 1, i: 5}]}]
            expect: {rows: [{id: 1, i: 5}]}
          - name: countries_are_kept
            model: by_country
            given: [{input: "source('seeded', 'countries')", rows: [{id: 1, country: Chile}]}]
            expect: {rows: [{id: 1, country: Chile}]}
        """,
    "tests/few.sql": "{{ config(severity='warn') }} select * from {{ ref('orders') }} where i > 100",
    "tests/of_a_source.sql": "select * from {{ source('two', 'items') }} where id < 0",
    "tests/of_nothing.sql": "select 1 as one where 1 = 0",
}


def write(folder: Path, *, machinery_only: bool = False) -> None:
    """Write the project, or one without nodes, with the real project's machinery and profile."""
    for name, text in FILES.items():
        if machinery_only and name != "dbt_project.yml":
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    (folder / "macros").mkdir(exist_ok=True)
    for name in ("profiles.yml", "macros/generate_schema_name.sql"):
        shutil.copy(DBT_PROJECT / name, folder / name)
    package = folder / "dbt_packages" / "warehouse"  # where `dbt deps` puts it
    package.parent.mkdir(exist_ok=True)
    package.symlink_to(DBT_PROJECT.parent / "dbt_warehouse")
    # dbt 1.12 refuses a package that is installed and not named.
    (folder / "packages.yml").write_text(f"packages: [{{local: '{package.resolve()}'}}]\n")
    (folder / "prices.csv").write_text("id,price\n1,10\n")
