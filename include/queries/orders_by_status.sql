-- Orders by status
select status, count(*) as orders, sum(amount) as revenue
from marts.orders
group by all
order by orders desc
