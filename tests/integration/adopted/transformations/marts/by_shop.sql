{{ config(access='public', post_hook="insert into {{ target.schema }}.starts values (null)") }}
select shop, postcode, {{ helpers.key(['shop', 'postcode']) }} as key, sum(amount) as amount from {{ ref('between') }} group by all
