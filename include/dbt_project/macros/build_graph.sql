{#-
    dbt's part of the build graph (include/warehouse/builds.py): a post-hook records each model, seed or dbt snapshot in
    the transaction that builds it; tests are recorded at the end of the command. include/runs/build_graph.py computes
    the same `code_of` and `parents_of` from the manifest: change both together.
-#}

{% macro builds() -%} {{ builds_schema() }}.builds {%- endmacro %}


{#- PostgreSQL knows its own database only, and `create schema` not even that by name. -#}
{% macro builds_schema() -%}
    {%- if target.type != 'postgres' -%} "{{ target.database }}". {%- endif -%} warehouse
{%- endmacro %}


{#- Elsewhere dbt is run by hand, and nobody publishes what it builds. -#}
{% macro has_build_graph() %} {{ return(target.type in ('duckdb', 'postgres')) }} {% endmacro %}


{% macro create_builds() %}
    {%- if not has_build_graph() -%}{{ return('') }}{%- endif -%}
    create schema if not exists {{ builds_schema() }};
    create table if not exists {{ builds() }} (
        version bigint, node varchar, build_id varchar, code varchar, parents varchar, passed boolean,
        stateful boolean, relation varchar, run_id varchar, recorded_at timestamptz
    )
{% endmacro %}


{#- The latest record of each node. -#}
{% macro seen() -%}
    seen as (
        select node, build_id, code, parents, version
        from (
            select *, row_number() over (partition by node order by version desc) as place
            from {{ builds() }}
        ) as ranked
        where place = 1
    )
{%- endmacro %}


{% macro record_build() %}
    {%- if not execute or not has_build_graph() -%}{{ return('') }}{%- endif -%}
    {%- set kind = model.config.materialized -%}
    {%- set code, parents = code_of(model.unique_id), parents_of(model.unique_id) -%}
    {#- Rows left out on purpose, or variables of this one command: not what the manifest says. -#}
    {%- if flags.EMPTY or flags.SAMPLE or invocation_args_dict.get('vars') -%}
        {%- set code = code ~ ' in part' -%}
    {%- endif -%}
    {%- set stateful = kind in ('incremental', 'snapshot') -%}
    {%- set build_id -%}
        {%- if kind == 'view' or (kind == 'seed' and model.checksum.name != 'path') -%}
            {#- Whatever the database's name is. -#}
            {%- set sql = (model.get('compiled_code') or '') | replace('"' ~ target.database ~ '".', '') -%}
            md5({{ sql_text(code ~ sql) }} || parents)
        {%- elif kind == 'table' and is_same_as_before(code, parents) -%}
            previous
        {%- else -%}
            cast(gen_random_uuid() as varchar)
        {%- endif -%}
    {%- endset %}
    insert into {{ builds() }}
        (version, node, build_id, code, parents, passed, stateful, relation, recorded_at)
    with {{ seen() }}
    select
        coalesce((select max(version) from seen), 0) + 1,
        {{ sql_text(model.unique_id) }},
        {{ build_id }},
        {{ sql_text(code) }},
        parents,
        true,
        {{ stateful }},
        {{ sql_text(model.schema ~ '.' ~ model.alias) }},
        now()
    from (
        select
            {{ builds_of(parents) }} as parents,
            (select build_id from seen where node = {{ sql_text(model.unique_id) }}) as previous
    ) as this_build
{% endmacro %}


{#- Whether a table was rebuilt from the same code and parents with the same rows, so that its descendants and tests stay
    current. The table it replaces exists until the transaction ends. -#}
{% macro is_same_as_before(code, parents) %}
    {%- set backup = make_backup_relation(this, 'table') -%}
    {%- set found = run_query(
        "with " ~ seen()
        ~ " select 1 from seen where node = " ~ sql_text(model.unique_id) ~ " and code = " ~ sql_text(code)
        ~ " and parents = " ~ builds_of(parents)
        ~ " and exists (select 1 from information_schema.tables where table_catalog = " ~ sql_text(backup.database)
        ~ " and table_schema = " ~ sql_text(backup.schema) ~ " and table_name = " ~ sql_text(backup.identifier) ~ ")"
    ) -%}
    {%- if found | length == 0 -%}{{ return(false) }}{%- endif -%}
    {%- set digest = "(select (count(*), sum(" ~ row_hash("one") ~ ")) from {} as one)" -%}
    {%- set compared = run_query(
        "select " ~ digest.format(this) ~ " is not distinct from " ~ digest.format(backup)
    ) -%}
    {{ return(compared.columns[0].values()[0]) }}
{% endmacro %}


{#- Not by `adapter.dispatch`: a manifest that was parsed for one target (the image's) would not do for another. -#}
{% macro row_hash(row) -%}
    {%- if target.type == 'postgres' -%} hashtextextended(cast({{ row }} as text), 0)
    {%- else -%} hash({{ row }}) {%- endif -%}
{%- endmacro %}


{% macro record_tests(results) %}
    {%- if not execute or not has_build_graph() -%}{{ return('') }}{%- endif -%}
    {%- set rows = [] -%}
    {%- for result in results if result.node.resource_type in ('test', 'unit_test') and result.status != 'skipped' -%}
        {%- set id = result.node.unique_id -%}
        {%- do rows.append(
            "select " ~ sql_text(id) ~ " as node, " ~ sql_text(code_of(id)) ~ " as code, "
            ~ builds_of(parents_of(id)) ~ " as parents, " ~ (result.status in ('pass', 'warn')) ~ " as passed"
        ) -%}
    {%- endfor -%}
    {%- for result in results if result.node.resource_type == 'test' and result.status == 'pass' and result.node.relation_name %}
    drop table if exists {{ result.node.relation_name }};  -- no row fails any more
    {%- endfor -%}
    {%- if rows %}
    insert into {{ builds() }} (version, node, code, parents, passed, stateful, recorded_at)
    with {{ seen() }}
    select coalesce((select max(version) from seen), 0) + 1, node, code, parents, passed, false, now()
    from ({{ rows | join(' union all ') }}) as these_tests
    {%- endif -%}
{% endmacro %}


{#- SQL for the build ids of nodes, as JSON; reads the CTE `seen`. -#}
{% macro builds_of(nodes) -%}
    {%- if nodes -%}
    (select '{' || coalesce(string_agg('"' || node || '": "' || build_id || '"', ', ' order by node), '') || '}' from seen
        where node in ({% for node in nodes %}{{ sql_text(node) }}{{ ', ' if not loop.last }}{% endfor %}))
    {%- else -%} '{}' {%- endif -%}
{%- endmacro %}


{% macro sql_text(text) -%} '{{ text | replace("'", "''") }}' {%- endmacro %}


{#- Digest of a node's definition. `ref` is the only way from dbt's context to the manifest. -#}
{% macro code_of(id) %}
    {%- set manifest = builtins.ref.manifest -%}
    {%- if id in manifest.unit_tests -%}
        {%- set test = manifest.unit_tests[id] -%}
        {{ return(local_md5(test.checksum ~ code_of(test.depends_on.nodes[0]))) }}
    {%- endif -%}
    {%- set node, macros, inlined = graph.nodes[id], {}, [] -%}
    {#- Not dbt's own: which of these a node uses is known only after it has run. -#}
    {%- set todo, of_dbt = node.depends_on.macros | list, ('dbt', 'dbt_' ~ target.type) -%}
    {%- for name in todo if name in manifest.macros and name not in macros and name.split('.')[1] not in of_dbt -%}
        {%- do macros.update({name: manifest.macros[name].macro_sql}) -%}
        {%- do todo.extend(manifest.macros[name].depends_on.macros) -%}
    {%- endfor -%}
    {%- for parent in node.depends_on.nodes if is_inlined(parent) -%}
        {%- do inlined.append(code_of(parent)) -%}
    {%- endfor -%}
    {{ return(local_md5(tojson(
        [node.raw_code, node.checksum.checksum, node.config, node.get('contract'), node.get('test_metadata'), macros,
         inlined], sort_keys=true
    ))) }}
{% endmacro %}


{#- Ids of a node's parents, looking through ephemeral models; loaded tables as `schema.table`. -#}
{% macro parents_of(id) %}
    {%- set parents = [] -%}
    {%- for parent in graph.nodes.get(id, {}).get('depends_on', {}).get('nodes', []) -%}
        {%- if parent in graph.sources -%}
            {%- do parents.append(graph.sources[parent].schema ~ '.' ~ graph.sources[parent].identifier) -%}
        {%- elif is_inlined(parent) -%}
            {%- do parents.extend(parents_of(parent)) -%}
        {%- else -%}
            {%- do parents.append(parent) -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(parents) }}
{% endmacro %}


{% macro is_inlined(id) %}
    {{ return(id in graph.nodes and graph.nodes[id].config.materialized == 'ephemeral') }}
{% endmacro %}
