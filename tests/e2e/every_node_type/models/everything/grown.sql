{{ config(materialized='incremental', unique_key='order_id', tags=['nightly']) }}
select order_id, status, {{ cents.to_cents('order_id') }} as cents from {{ ref('large') }}
{% if is_incremental() %} where order_id > (select max(order_id) from {{ this }}) {% endif %}
