with

payments as (

    select * from {{ ref('stg_payments') }}

),

orders as (

    select * from {{ ref('orders') }}

),

customers as (

    select * from {{ ref('customers') }}

),

compared as (

    select
        'orders' as mart,
        order_id as id,
        amount as expected,
        0 as found
    from payments

    union all

    select
        'orders' as mart,
        order_id as id,
        0 as expected,
        amount as found
    from orders

    union all

    select
        'customers' as mart,
        customer_id as id,
        amount as expected,
        0 as found
    from orders

    union all

    select
        'customers' as mart,
        customer_id as id,
        0 as expected,
        customer_lifetime_value as found
    from customers

),

totals as (

    select
        mart,
        id,
        coalesce(sum(expected), 0) as expected_amount,
        coalesce(sum(found), 0) as mart_amount

    from compared

    group by mart, id

)

select
    mart,
    id,
    expected_amount,
    mart_amount,
    mart_amount - expected_amount as difference

from totals

where expected_amount != mart_amount
