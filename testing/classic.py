"""The marts of the public dbt-labs jaffle shop, built from the same files, to compare with."""

from pathlib import Path

import duckdb

from testing.project import NAME

# The models of the public dbt-labs jaffle shop, reading the CSV files directly.
CLASSIC = """
    create or replace view stg_customers as
        select id as customer_id, first_name, last_name from read_csv('{data}/raw_customers.csv');
    create or replace view stg_orders as
        select id as order_id, user_id as customer_id, order_date, status from read_csv('{data}/raw_orders.csv');
    create or replace view stg_payments as
        select id as payment_id, order_id, payment_method, cast(amount / 100 as decimal(18, 2)) as amount
        from read_csv('{data}/raw_payments.csv');
    create or replace view classic_orders as
        with order_payments as (
            select
                order_id,
                sum(case when payment_method = 'credit_card' then amount else 0 end) as credit_card_amount,
                sum(case when payment_method = 'coupon' then amount else 0 end) as coupon_amount,
                sum(case when payment_method = 'bank_transfer' then amount else 0 end) as bank_transfer_amount,
                sum(case when payment_method = 'gift_card' then amount else 0 end) as gift_card_amount,
                sum(amount) as total_amount
            from stg_payments
            group by order_id
        )
        select
            orders.order_id, orders.customer_id, orders.order_date, orders.status,
            credit_card_amount, coupon_amount, bank_transfer_amount, gift_card_amount, total_amount as amount
        from stg_orders as orders
        left join order_payments on orders.order_id = order_payments.order_id;
    create or replace view classic_customers as
        with customer_orders as (
            select
                customer_id,
                min(order_date) as first_order,
                max(order_date) as most_recent_order,
                count(order_id) as number_of_orders
            from stg_orders
            group by customer_id
        ),
        customer_payments as (
            select orders.customer_id, sum(amount) as total_amount
            from stg_payments as payments
            left join stg_orders as orders on payments.order_id = orders.order_id
            group by orders.customer_id
        )
        select
            customers.customer_id, customers.first_name, customers.last_name,
            first_order, most_recent_order, number_of_orders, total_amount as customer_lifetime_value
        from stg_customers as customers
        left join customer_orders on customers.customer_id = customer_orders.customer_id
        left join customer_payments on customers.customer_id = customer_payments.customer_id;
"""


def count_differences_from_classic(published: Path, data_dir: Path) -> dict[str, int]:
    """Count, for each mart, the rows found on one side only, comparing the classic columns."""
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"attach '{published}' as {NAME} (read_only)")
        return count_differences(connection, data_dir)


def count_differences(connection: duckdb.DuckDBPyConnection, data_dir: Path) -> dict[str, int]:
    """Do that on a connection with the warehouse attached."""
    connection.execute(f"use memory; {CLASSIC.format(data=data_dir)}")
    different = {}
    for mart in ("customers", "orders"):
        classic = f"from classic_{mart}"
        columns = ", ".join(column[0] for column in connection.execute(f"describe {classic}").fetchall())
        published = f"select {columns} from {NAME}.marts.{mart}"
        both = f"(({classic}) except all ({published})) union all (({published}) except all ({classic}))"
        different[mart] = len(connection.execute(both).fetchall())
    return different
