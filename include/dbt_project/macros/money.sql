{#- An amount of money, exact to the cent on every target: PostgreSQL's sums have the scale of what they add up, and
    BigQuery's DECIMAL has 29 digits before the point. The contracts of marts name the same types. -#}
{% macro money(amount) -%}
    cast({{ amount }} as {{ 'bignumeric' if target.type == 'bigquery' else 'decimal(38, 2)' }})
{%- endmacro %}


{#- Cents as money. A product of decimals stays exact; `cents / 100` would be a double, and on BigQuery so would
    `cents * 0.01`. -#}
{% macro cents_to_money(cents) -%}
    {%- if target.type == 'bigquery' -%}
        {{ money("cast(" ~ cents ~ " as bignumeric) * bignumeric '0.01'") }}
    {%- else -%}
        {{ money(cents ~ " * 0.01") }}
    {%- endif -%}
{%- endmacro %}
