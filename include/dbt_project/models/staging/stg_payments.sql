with

source as (

    select * from {{ source('jaffle_shop', 'raw_payments') }}

),

renamed as (

    select
        id as payment_id,
        order_id,
        payment_method,

        -- A product of decimals stays exact; `amount / 100` would be a double.
        {{ money("amount * 0.01") }} as amount

    from source

)

select * from renamed
