{#- Delete the rows of an incremental model whose key is no longer in the relation that it reads: a file was withdrawn.
    For a post-hook. The key must be unique in both. Counting them first spares the comparison of all keys, which at
    20 million rows takes longer than the rest of the model. -#}
{% macro delete_withdrawn(relation, key) -%}
    delete from {{ this }} where {{ key }} in (
        select {{ key }} from (
            select {{ key }} from {{ this }}
            where (select count(*) from {{ this }}) > (select count(*) from {{ relation }})
        ) as held
        where not exists (select 1 from {{ relation }} as kept where kept.{{ key }} = held.{{ key }})
    )
{%- endmacro %}
