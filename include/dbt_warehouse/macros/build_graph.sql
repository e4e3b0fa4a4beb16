{#-
    dbt's part of the build graph (include/warehouse/builds.py): a post-hook records each model, seed or dbt snapshot in
    the transaction that builds it; tests are recorded at the end of the command. What is recorded is decided in Python:
    `graph.builds` is the Recorder of include/runs/recorder.py.
-#}

{#- Remember what the selected nodes read, as it is before the command changes any of it; make the table for it first. -#}
{% macro start_builds() %}
    {%- if graph.builds is not defined -%}
        {%- set builds = flags.WHICH in ('build', 'retry', 'run', 'seed', 'snapshot', 'test') -%}
        {%- if execute and builds and target.type in ('duckdb', 'postgres', env_var('DBT_TARGET', '')) -%}
            {{ exceptions.raise_compiler_error(
                'This build could not be recorded, so it could not be published. Run dbt in `make shell`, or with the '
                ~ "project's root folder on PYTHONPATH, and not without JSON artifacts (`dbt --write-json`)."
            ) }}
        {%- endif -%}
        {{ return('') }}
    {%- endif -%}
    {%- set table = graph.builds.table(target.database) -%}
    {#- Where a target is not named here, `Target.create_working` has made the table. -#}
    {%- set found = [1] if target.type not in ('duckdb', 'postgres') else run_query(
        "select 1 from information_schema.tables where table_catalog = '" ~ target.database
        ~ "' and table_schema = 'warehouse' and table_name = 'builds'"
    ) -%}
    {%- if found | length == 0 %}
    create schema if not exists {{ table.rsplit('.', 1)[0] }};
    create table if not exists {{ table }} (
        version bigint, node varchar, build_id varchar, code varchar, parents varchar, passed boolean,
        stateful boolean, relation varchar, run_id varchar, recorded_at timestamptz
    )
    {%- elif selected_resources -%}
        {%- do graph.builds.start(run_query(
            "select node, build_id, code, parents from (select *, row_number() over (partition by node order by version"
            ~ " desc) as place from " ~ table
            ~ " where node in (" ~ graph.builds.wanted(selected_resources) | join(', ') ~ ")) as ranked where place = 1"
        ).rows) -%}
    {%- endif -%}
{% endmacro %}


{#- Where creating a table is no part of a transaction: void the record of the build before first. -#}
{% macro start_build() %}
    {%- if not execute or graph.builds is not defined -%}{{ return('') }}{%- endif -%}
    {{ graph.builds.starts(model, target.database) }}
{% endmacro %}


{% macro record_build() %}
    {%- if not execute or graph.builds is not defined -%}{{ return('') }}{%- endif -%}
    {%- set same = model.config.materialized == 'table' and graph.builds.may_be_same(model.unique_id)
        and warehouse.has_same_rows() -%}
    {{ graph.builds.built(model, target.database, same) }}
{% endmacro %}


{#- Whether a rebuilt table has the rows of the one before, so that its descendants and tests stay current. The table
    that it replaces exists until the transaction ends. -#}
{% macro has_same_rows() %}
    {%- set backup = make_backup_relation(this, 'table') -%}
    {%- set found = run_query(
        "select 1 from information_schema.tables where table_catalog = '" ~ backup.database ~ "' and table_schema = '"
        ~ backup.schema ~ "' and table_name = '" ~ backup.identifier ~ "'"
    ) -%}
    {%- if found | length == 0 -%}{{ return(false) }}{%- endif -%}
    {%- set digest = "(select (count(*), sum(" ~ graph.builds.row_hash('one') ~ ")) from {} as one)" -%}
    {%- set compared = run_query(
        "select " ~ digest.format(this) ~ " is not distinct from " ~ digest.format(backup)
    ) -%}
    {{ return(compared.columns[0].values()[0]) }}
{% endmacro %}


{% macro record_results(results) %}
    {%- if not execute or graph.builds is not defined -%}{{ return('') }}{%- endif -%}
    {%- set records = graph.builds.finished(results, target.database) -%}
    {{ records }}{{ ';' if records }}
    {{- drop_passed(results) }}
{% endmacro %}


{#- The failing rows of tests that pass now; a view, if that is how they are stored. -#}
{% macro drop_passed(results) %}
    {%- if not execute or graph.builds is not defined -%}{{ return('') }}{%- endif -%}
    {%- set passed = graph.builds.passed_tables(results) -%}
    {%- if not passed -%}{{ return('') }}{%- endif -%}
    {%- if target.type not in ('duckdb', 'postgres') -%}
        {%- for result in results if result.status == 'pass' and result.node.relation_name %}
    drop {{ result.node.config.store_failures_as or 'table' }} if exists {{ result.node.relation_name }};
        {%- endfor -%}
    {%- else -%}
    {%- set found = run_query(
        "select table_schema, table_name, table_type from information_schema.tables where table_catalog = '"
        ~ target.database ~ "' and table_schema || '.' || table_name in (" ~ passed | join(', ') ~ ")"
    ) -%}
    {%- for schema, name, type in found.rows %}
    drop {{ 'view' if type == 'VIEW' else 'table' }} {{ api.Relation.create(database=target.database, schema=schema, identifier=name) }};
    {%- endfor -%}
    {%- endif -%}
{% endmacro %}
