select day, count(*) as sales, sum(amount) as amount from {{ ref('bakery', 'days') }} left join {{ ref('sales_cleaned') }} using (day) group by day
