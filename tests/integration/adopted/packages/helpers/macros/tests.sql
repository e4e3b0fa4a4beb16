{% test matches(model, column_name, pattern) %}
select {{ column_name }} from {{ model }} where not regexp_matches({{ column_name }}, '{{ pattern }}')
{% endtest %}
{% test same_number_of_rows(model, other) %}
select 1 as one from (select count(*) as n from {{ model }}) a, (select count(*) as n from {{ other }}) b where a.n <> b.n
{% endtest %}
