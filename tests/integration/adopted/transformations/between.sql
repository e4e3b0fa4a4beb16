{{ config(materialized='ephemeral') }} select s.*, p.postcode from {{ ref('sales_cleaned') }} s join {{ ref('shops') }} p using (shop)
