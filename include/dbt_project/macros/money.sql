{#- An amount of money, exact to the cent on every target: PostgreSQL's sums have the scale of what they add up. -#}
{% macro money(amount) -%} cast({{ amount }} as decimal(38, 2)) {%- endmacro %}
