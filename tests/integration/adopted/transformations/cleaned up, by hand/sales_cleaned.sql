select id, shop, day, cents / 100 as amount from {{ ref('sales') }}
