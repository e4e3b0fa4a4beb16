-- Revenue by month
select date_trunc('month', order_date)::date as month, count(*) as orders, sum(amount) as revenue
from marts.orders
group by all
order by month
