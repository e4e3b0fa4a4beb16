select shop from {{ ref('sales_cleaned') }} left join {{ ref('by_shop') }} using (shop) where by_shop.amount is null
