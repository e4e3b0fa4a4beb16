{{ config(materialized='ephemeral') }} select order_id, status from {{ ref('stg_orders') }} where order_id > 50
