{% macro key(columns) %}{{ return(adapter.dispatch('key', 'helpers')(columns)) }}{% endmacro %}
{% macro default__key(columns) %}md5(concat_ws('|', {{ columns | join(', ') }})){% endmacro %}
