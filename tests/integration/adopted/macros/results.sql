{% macro note_results(results) %}
    {% if execute %}{% for result in results if result.status == 'error' %}{{ log(result.message, info=true) }}{% endfor %}{% endif %}
{% endmacro %}
