select day, count(*) as sales from {{ ref('sales_cleaned') }} group by day
