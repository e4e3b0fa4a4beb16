-- Best customers without an order in the last 180 days of data
select customer_id, most_recent_order, number_of_orders, customer_lifetime_value
from marts.customers
where most_recent_order < (select max(order_date) - 180 from marts.orders)
order by customer_lifetime_value desc
limit 20
