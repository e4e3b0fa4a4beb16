{% macro prepare() %}
    {% if execute and flags.WHICH in ('build', 'test', 'run', 'seed', 'snapshot') %}
        {% do run_query('create schema if not exists ' ~ target.schema ~ '_watcher_tests') %}
    {% endif %}
{% endmacro %}
{% macro upload(results) %}
    {% if execute and var('enabled', false) %}
        {% set found = load_relation(api.Relation.create(database=target.database, schema='watched', identifier='results')) %}
        {% if found %}
            {% for result in results %}
                {% do run_query("insert into " ~ found ~ " values ('" ~ result.node.unique_id | replace("'", "") ~ "', '"
                    ~ result.status ~ "', current_timestamp)") %}
            {% endfor %}
        {% endif %}
    {% endif %}
{% endmacro %}
{% test number_of_rows(model) %}
    {% if execute %}
        {% set name = target.schema ~ '_watcher_tests.n_' ~ model.identifier %}
        {% do run_query('create or replace table ' ~ name ~ ' as select count(*) as n from ' ~ model) %}
    {% endif %}
    select 1 as one from {{ model }} having count(*) = 0
{% endtest %}
