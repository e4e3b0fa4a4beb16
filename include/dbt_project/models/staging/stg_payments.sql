with

source as (

    select * from {{ source('jaffle_shop', 'raw_payments') }}

),

renamed as (

    select
        id as payment_id,
        order_id,
        payment_method,

        {{ cents_to_money("amount") }} as amount

    from source

)

select * from renamed
